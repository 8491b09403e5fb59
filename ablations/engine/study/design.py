"""The design of a submitted study as plain data, stored as JSON in MLflow and read back without Ray, MLflow or torch."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from ablations.engine.study.designs import FACTORIAL, LADDER, RESOLUTIONS
from ablations.engine.study.factors import format_level
from ablations.engine.study.plan import Cell, Plan, Run
from ablations.engine.study.request import Rates
from ablations.engine.study.seeds import max_seeds
from ablations.engine.task.metric import Metric, error_metric
from resnet_core.fields import ConfigError
from resnet_core.renamed_fields import current_fields, current_name, current_value


@dataclass(frozen=True, kw_only=True)
class DesignCell:
    """One combination of levels, and the fingerprints of its runs."""

    label: str
    """Name of the cell, such as `shortcut=A depth=20`."""
    levels: Mapping[str, str]
    """Level of each factor, as text."""
    spec: Mapping[str, Any]
    """`RunSpec.flat()` of its runs, without the seed."""
    fingerprints: tuple[str, ...]
    """Fingerprints of its runs, in the order of their seeds 0, 1, …"""
    data_version: str
    """Version of the images that its runs are trained and scored on. Cells of a study may differ in training images."""
    train_examples: int
    """Number of training examples; 0 if it is not known."""


@dataclass(frozen=True, kw_only=True)
class SearchCell:
    """A combination of levels that has a search of its own."""

    label: str
    """Name of the cell, such as `shortcut=A`; empty if the search has no factors."""
    levels: Mapping[str, str]
    """Level of each factor, as text."""
    spec: Mapping[str, Any]
    """`RunSpec.flat()` of its trials, without the seed, and with default values for the searched fields."""


@dataclass(frozen=True, kw_only=True)
class SearchDesign:
    """The design of a search. All trials are scored by the same metric and have the same seed."""

    cells: tuple[SearchCell, ...]
    """Cells of the search. Each has a search of its own, with the same budget."""
    fields: Mapping[str, Mapping[str, Any]]
    """Searched fields: `{"optim.lr": {"low": 0.001, "high": 1.0, "log": True}, "model.width": {"choices": [8, 16]}}`."""
    sampler: str
    """`tpe`, `random` or `gp`; in earlier searches also `cmaes` or `nsga2`."""
    scheduler: str
    """Early stopping of trials: `asha`, `hyperband`, `pbt` or `none`."""
    trials: int
    """Number of trials of each cell's search, 0 if not limited; with `pbt`, the size of the population."""
    seconds: float | None
    """Training time of each cell's search, in seconds; None if not limited."""
    objective: str | None
    """Second objective besides the metric: `flops` or `seconds`."""
    epochs: int
    """Epochs of a trial that is not stopped early."""
    seed: int
    """Seed of the sampler and of all trials. No run whose results are reported has this seed."""
    metric: Metric
    """Metric that trials are scored by."""
    train_examples: int
    """Number of examples that trials are trained on; 0 if it is not known."""
    validation_examples: int
    """Number of held-out training examples that trials are scored on; 0 if it is not known."""
    data_version: str
    """Version of the split into training and validation images."""
    base: str
    """`Plan.base_id` of the study."""
    chosen: Mapping[str, Mapping[str, int]]
    """Numbers of the chosen trials, by label of the search's cell and by level of the factor `configuration`: `tuned`, or with two
    objectives `front-1`, …. Empty until the search has ended."""

    @property
    def tag(self) -> str:
        """Name of the MLflow tag that marks its trials. Population-based training numbers its trials separately."""
        return f"trial.{self.base}.pbt" if self.scheduler == "pbt" else f"trial.{self.base}"

    def restricted_to(self, levels: Mapping[str, tuple[str, ...]]) -> Self:
        """Return the design with only the cells that have these levels."""
        cells = [cell for cell in self.cells if all(cell.levels.get(name) in of_factor for name, of_factor in levels.items())]
        return replace(self, cells=tuple(cells))


@dataclass(frozen=True, kw_only=True)
class Design:
    """The design of a submitted study: everything that a report needs besides the runs. Stored in MLflow with the study."""

    study: str
    question: str
    preset: str
    dataset: str
    code_version: str
    """`Workload.code_version` of the submission."""
    metric: Metric
    """Metric by which runs are compared, in their final epoch."""
    factors: Mapping[str, tuple[str, ...]]
    """Levels of each factor as text, in the study's order."""
    baseline: Mapping[str, str]
    """Reference levels: each cell is compared with the cell that has these levels and is otherwise equal."""
    cells: tuple[DesignCell, ...]
    skipped: tuple[tuple[str, str], ...]
    """Combinations that cannot be trained, each with the reason."""
    origin: Mapping[str, str]
    """Origin of the submission, shown in the report as it is: command, commit, versions, …"""
    task: str = ""
    """Name of the task of one's own; empty for image classification."""
    training_version: str = ""
    """`Workload.training_version` of the submission. Empty before 2026-11-27, when fingerprints included `code_version` instead."""
    planned_seeds: int = 0
    """Number of seeds that the study plans: its own or, if that is larger, that of its first submission; that of the last look of
    an adaptive study. 0 if it is not known."""
    margin: float | None = None
    """Largest difference that counts as no effect, in `Metric.difference_unit`; None if the study does not say."""
    test_examples: int = 0
    """Number of examples that the metric is a share of; 0 if it is not known or the metric is no share."""
    chance: float | None = None
    """Value of the metric that guessing gives, such as 90 % error for 10 balanced classes; None if it is not known."""
    kind: str = FACTORIAL
    """Kind of the design: `factorial`, `one-at-a-time`, `ladder`, `screening` or `screening-iii`."""
    seed_looks: tuple[int, ...] = ()
    """Numbers of seeds at which an adaptive study decides which cells get more seeds, ascending; empty for a fixed number."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Fields in which the study was asked to differ from its own settings, as text by dotted name; earlier versions did not store
    them."""
    rates: Rates = field(default_factory=Rates)
    """Rates for the cost of the study, as of its last submission."""
    search: SearchDesign | None = None
    """Design of the search, if there is one. The cells of the study then have a factor `configuration`, with the level `default`
    and, once the search has ended, the levels of the chosen configurations."""

    @classmethod
    def from_plan(cls, plan: Plan, origin: Mapping[str, str]) -> Self:
        """Return the design of a plan."""
        of_cell: dict[Cell, list[Run]] = {cell: [] for cell in plan.cells}
        for run in sorted(plan.runs, key=lambda run: run.seed):
            of_cell[run.cell].append(run)
        return cls(
            study=plan.study.name,
            question=plan.study.question,
            preset=plan.preset,
            dataset=plan.dataset.name,
            code_version=plan.workload.code_version(),
            training_version=plan.workload.training_version,
            task=plan.workload.task_name,
            metric=plan.metric,
            factors={name: tuple(map(format_level, levels)) for name, levels in plan.factors.items()},
            baseline={name: format_level(level) for name, level in plan.baseline.items()},
            cells=tuple(
                DesignCell(
                    label=str(cell),
                    levels={name: format_level(level) for name, level in cell.levels},
                    spec=_plain(of_this[0].spec.flat()),
                    fingerprints=tuple(run.fingerprint for run in of_this),
                    data_version=plan.dataset_for_run(of_this[0]).version,
                    train_examples=plan.training_examples(of_this[0]),
                )
                for cell, of_this in of_cell.items()
            ),
            skipped=tuple((str(cell), reason) for cell, reason in plan.skipped),
            origin=dict(origin),
            kind=plan.grid.kind,
            planned_seeds=plan.seed_looks[-1] if plan.seed_looks else max(max_seeds(plan.study.seeds), _seeds_of(plan)),
            seed_looks=plan.seed_looks,
            settings={name: format_level(value) for name, value in plan.requested_settings().items()},
            margin=plan.study.margin,
            test_examples=plan.workload.evaluation_examples(plan.dataset),
            chance=plan.workload.chance_value(plan.dataset),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the design that `to_json` wrote, in this version or an earlier one."""
        values = json.loads(text)
        # Earlier versions stored these once for all cells.
        of_all = {name: values.pop(name) for name in ("data_version", "train_images") if name in values}
        values["metric"] = _stored_metric(values)
        values["cells"] = [of_all | cell | {"fingerprints": tuple(cell["fingerprints"])} for cell in values["cells"]]
        values["factors"] = {name: tuple(levels) for name, levels in values["factors"].items()}
        for each in values["cells"]:
            if "train_images" in each:  # the name of `train_examples` until 2026-11-27
                each["train_examples"] = each.pop("train_images")
        if not values.get("task"):
            _rename_fields(values)
        values["cells"] = tuple(DesignCell(**cell) for cell in values["cells"])
        values["skipped"] = tuple((cell, reason) for cell, reason in values["skipped"])
        values["seed_looks"] = tuple(values.get("seed_looks", ()))  # earlier versions did not store the field
        values["rates"] = Rates(**values.get("rates", {}))
        if search := values.get("search"):  # earlier versions did not store the field
            if "against" in search:  # the name of `objective` until 2026-11-27
                search["objective"] = search.pop("against")
            search["cells"] = tuple(SearchCell(**cell) for cell in search["cells"])
            search["metric"] = _stored_metric(search)
            for name in ("train_images", "validation_images"):  # their names until 2026-11-27
                if name in search:
                    search[name.replace("images", "examples")] = search.pop(name)
            values["search"] = SearchDesign(**search)
        return cls(**values)

    def to_json(self) -> str:
        """Return the design as JSON."""
        return json.dumps(asdict(self), indent=1)

    def restricted_to(self, levels: Mapping[str, tuple[str, ...]], seeds: int | None) -> Self:
        """Return the design with only these levels and the first `seeds` seeds; raise ConfigError if no cell is left."""
        cells = tuple(
            replace(cell, fingerprints=cell.fingerprints[:seeds])
            for cell in self.cells
            if all(cell.levels.get(name) in of_factor for name, of_factor in levels.items())
        )
        if not cells:
            asked = " ".join(f"{name}={','.join(self.factors[name])}" for name in levels if name in self.factors)
            raise ConfigError(f"--levels: MLflow has no runs with these levels; accepted: {asked}")
        factors = {name: tuple(level for level in all_ if level in levels.get(name, all_)) for name, all_ in self.factors.items()}
        return replace(self, cells=cells, factors=factors, search=self.search and self.search.restricted_to(levels))

    @property
    def seeds(self) -> int:
        """Number of seeds of each cell; the largest number if cells differ."""
        return max((len(cell.fingerprints) for cell in self.cells), default=0)

    @property
    def step(self) -> float:
        """Smallest possible change of a value: that of one example, `100 / test_examples` points; 0 if it is not known."""
        return 100 / self.test_examples if self.test_examples else 0.0

    @property
    def title(self) -> str:
        return f"{self.study} on {self.dataset}"

    @property
    def own_code(self) -> bool:
        """True if the training, the network or the reader of the images is the user's own."""
        return bool(self.task) or "-" in self.code_version  # the hash of the user's code follows a hyphen

    @property
    def example(self) -> str:
        """Unit of the data that trainings learn from, in the singular, as reports call it."""
        return "example" if self.task else "image"

    def baseline_label(self, cell: DesignCell) -> str | None:
        """Return the label of the cell that `cell` is compared with; None if there is none or if `cell` is a baseline itself.

        A rung of a ladder is compared with the one below it. No two cells of a screening are compared with each other.
        """
        if self.kind in RESOLUTIONS:
            return None
        if self.kind == LADDER:
            below = next((lower for lower, upper in itertools.pairwise(self.cells) if upper.label == cell.label), None)
            changes = sum(cell.levels[name] != level for name, level in below.levels.items()) if below else 0
            return below.label if below and changes == 1 else None  # a part of a ladder may lack the rung below
        wanted = {**cell.levels, **self.baseline}
        return next((other.label for other in self.cells if other.levels == wanted and other is not cell), None)

    @property
    def data_versions(self) -> tuple[str, ...]:
        """Distinct data versions of the cells."""
        return tuple(dict.fromkeys(cell.data_version for cell in self.cells))

    @property
    def training_examples(self) -> dict[str, int]:
        """Number of training examples by level or cell: `{"train_examples=300": 300, …}`.

        Empty if all cells share a data set, or if a number is not known.
        """
        if len(self.data_versions) == 1 or not all(cell.train_examples for cell in self.cells):
            return {}
        for factor in self.factors:
            of_level = {(cell.levels[factor], cell.data_version, cell.train_examples) for cell in self.cells}
            if len(of_level) == len({level for level, *_ in of_level}):
                found = {level: examples for level, _, examples in of_level}
                return {f"{factor}={level}": found[level] for level in self.factors[factor] if level in found}
        return {cell.label: cell.train_examples for cell in self.cells}

    def examples_per_epoch(self, cell: DesignCell) -> int:
        """Return the number of examples that training sees in an epoch, which has full global batches only; 0 if unknown."""
        batch = int(cell.spec.get("optim.global_batch_size", 1))
        return cell.train_examples // batch * batch


def _seeds_of(plan: Plan) -> int:
    return len({run.seed for run in plan.runs})


def _rename_fields(values: dict[str, Any]) -> None:
    """Give renamed fields of `RunSpec` in a stored design their current names and values."""
    values["cells"] = [_current(cell) for cell in values["cells"]]
    values["factors"] = {
        current_name(name): tuple(_current_level(name, level) for level in levels) for name, levels in values["factors"].items()
    }
    values["baseline"] = _current_levels(values["baseline"])
    if search := values.get("search"):
        search["cells"] = [_current(cell) for cell in search["cells"]]
        search["fields"] = _current_dimensions(search["fields"])


def _current(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored cell under the current names and values of its fields. The label is kept, because tags of runs contain it."""
    return {**cell, "levels": _current_levels(cell["levels"]), "spec": current_fields(cell["spec"])}


def _stored_metric(values: dict[str, Any]) -> Metric:
    """Return the metric of a stored design or search. Earlier versions stored at most the images that runs are scored on."""
    if "metric" in values:
        return Metric.from_dict(values["metric"])
    splits = [values.pop(name) for name in ("scored_on", "evaluation_split") if name in values]
    return error_metric(splits[0] if splits else "validation")


def _current_levels(levels: Mapping[str, str]) -> dict[str, str]:
    return {current_name(name): _current_level(name, level) for name, level in levels.items()}


def _current_level(name: str, level: str) -> str:
    return format_level(current_value(current_name(name), level))


def _current_dimensions(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the searched fields and their choices under current names and values."""
    found: dict[str, dict[str, Any]] = {}
    for name, dimension in fields.items():
        current = current_name(name)
        choices = {"choices": [current_value(current, choice) for choice in dimension["choices"]]} if "choices" in dimension else {}
        found[current] = {**dimension, **choices}
    return found


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without the seed, after a round trip through JSON, so that they equal those read from MLflow."""
    values: dict[str, Any] = json.loads(json.dumps({name: value for name, value in spec.items() if name != "seed"}))
    return values
