"""What a submission asked for, as plain data that is kept in MLflow and read back without Ray, MLflow or torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from ablations.engine.study.factors import format_level
from ablations.engine.study.plan import Cell, Plan, Run
from resnet_core.fields import ConfigError
from resnet_core.identity import TRAINING_VERSION, code_version


@dataclass(frozen=True, kw_only=True)
class DesignCell:
    """One combination of levels, and its runs."""

    label: str
    """`shortcut=A depth=20`."""
    levels: Mapping[str, str]
    """Level of each factor, as shown."""
    spec: Mapping[str, Any]
    """`RunSpec.flat()` of its runs, seed aside."""
    fingerprints: tuple[str, ...]
    """Of its runs, by seed: 0, 1, …"""
    data_version: str
    """Of the images that its runs are trained and scored on. Cells of a study may differ in training images."""
    train_images: int


@dataclass(frozen=True, kw_only=True)
class SearchCell:
    """A combination of levels inside which configurations are searched for."""

    label: str
    """`shortcut=A`; empty where the search has no factors."""
    levels: Mapping[str, str]
    """Level of each factor, as shown."""
    spec: Mapping[str, Any]
    """`RunSpec.flat()` of its trials, seed aside, with the default values of the fields that are searched."""


@dataclass(frozen=True, kw_only=True)
class SearchDesign:
    """How configurations are searched for. Trials are scored on validation images, with one seed for all."""

    cells: tuple[SearchCell, ...]
    """Each has a search of its own, with the same budget."""
    fields: Mapping[str, Mapping[str, Any]]
    """What is searched: `{"optim.lr": {"low": 0.001, "high": 1.0, "log": True}, "model.width": {"choices": [8, 16]}}`."""
    sampler: str
    """`tpe`, `random` or `gp`; in earlier searches also `cmaes` or `nsga2`."""
    scheduler: str
    """Who ends trials early: `asha`, `hyperband`, `pbt` or `none`."""
    trials: int
    """Budget of each cell's search; of a population (`pbt`), how many are trained at a time."""
    seconds: float | None
    """Another budget: training time of each cell's search."""
    objective: str | None
    """A second objective beside the validation error: `flops` or `seconds`."""
    epochs: int
    """Of a trial that is not ended early."""
    seed: int
    """Of sampler and trials. No run that results are reported of has it."""
    train_images: int
    validation_images: int
    data_version: str
    """Of the training images without those held out."""
    base: str
    """Identity of the study's run in MLflow."""
    chosen: Mapping[str, Mapping[str, int]]
    """What the search chose: by label of the search's cell, and by level of the factor `configuration` (`tuned`, or `front-1`, …
    with a second objective), the number of the trial. Empty while it searches."""

    @property
    def tag(self) -> str:
        """Name of the tag that its trials bear in MLflow. A population has trials, and numbers, of its own."""
        return f"trial.{self.base}.pbt" if self.scheduler == "pbt" else f"trial.{self.base}"

    def restricted_to(self, levels: Mapping[str, tuple[str, ...]]) -> Self:
        """The searches inside these levels of these factors."""
        cells = [cell for cell in self.cells if all(cell.levels.get(name) in of_factor for name, of_factor in levels.items())]
        return replace(self, cells=tuple(cells))


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a submission asked for: all that a report needs to know besides the runs themselves. Kept with the study in MLflow."""

    study: str
    question: str
    preset: str
    dataset: str
    code_version: str
    """Hash of the sources of `resnet_core` at the submission."""
    scored_on: str
    """`test` or `validation`."""
    factors: Mapping[str, tuple[str, ...]]
    """Levels as shown, in the study's order."""
    baseline: Mapping[str, str]
    """Levels that others are compared with; a factor that is not named is compared at equal level."""
    cells: tuple[DesignCell, ...]
    skipped: tuple[tuple[str, str], ...]
    """Combinations that do not exist, and why."""
    origin: Mapping[str, str]
    """Where the submission came from: command, commit, versions, …; shown as it is."""
    training_version: str = ""
    """`TRAINING_VERSION` of the submission; empty for those of before 2026-11-27, whose fingerprints hold `code_version`."""
    search: SearchDesign | None = None
    """Where the study's configurations are searched for: its cells have a factor `configuration` with the level `default`, and
    those that the search chose once it is over."""

    @classmethod
    def from_plan(cls, plan: Plan, origin: Mapping[str, str]) -> Self:
        """A plan as plain data."""
        of_cell: dict[Cell, list[Run]] = {cell: [] for cell in plan.cells}
        for run in sorted(plan.runs, key=lambda run: run.seed):
            of_cell[run.cell].append(run)
        return cls(
            study=plan.study.name,
            question=plan.study.question,
            preset=plan.preset,
            dataset=plan.dataset.name,
            code_version=code_version(),
            training_version=str(TRAINING_VERSION),
            scored_on=plan.base.data.scored_on,
            factors={name: tuple(map(format_level, levels)) for name, levels in plan.factors.items()},
            baseline={name: format_level(level) for name, level in plan.baseline.items()},
            cells=tuple(
                DesignCell(
                    label=str(cell),
                    levels={name: format_level(level) for name, level in cell.levels},
                    spec=_plain(of_this[0].spec.flat()),
                    fingerprints=tuple(run.fingerprint for run in of_this),
                    data_version=plan.dataset_for_run(of_this[0]).version,
                    train_images=plan.training_images(of_this[0]),
                )
                for cell, of_this in of_cell.items()
            ),
            skipped=tuple((str(cell), reason) for cell, reason in plan.skipped),
            origin=dict(origin),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The design that `to_json` wrote."""
        values = json.loads(text)
        # Designs of earlier versions have these once, for all cells.
        of_all = {name: values.pop(name) for name in ("data_version", "train_images") if name in values}
        cells = [of_all | cell | {"fingerprints": tuple(cell["fingerprints"])} for cell in values["cells"]]
        values["cells"] = tuple(DesignCell(**cell) for cell in cells)
        values["factors"] = {name: tuple(levels) for name, levels in values["factors"].items()}
        values["skipped"] = tuple((cell, reason) for cell, reason in values["skipped"])
        if search := values.get("search"):  # studies of earlier versions have none
            if "against" in search:  # the name of `objective` until 2026-11-27
                search["objective"] = search.pop("against")
            search["cells"] = tuple(SearchCell(**cell) for cell in search["cells"])
            values["search"] = SearchDesign(**search)
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def restricted_to(self, levels: Mapping[str, tuple[str, ...]], seeds: int | None) -> Self:
        """Of what was asked, these levels of these factors and the first so many seeds; raises ConfigError if that is nothing."""
        cells = tuple(
            replace(cell, fingerprints=cell.fingerprints[:seeds])
            for cell in self.cells
            if all(cell.levels.get(name) in of_factor for name, of_factor in levels.items())
        )
        if not cells:
            asked = " ".join(f"{name}={','.join(self.factors[name])}" for name in levels if name in self.factors)
            raise ConfigError(f"--levels: nothing of that is in MLflow; accepted: {asked}")
        factors = {name: tuple(level for level in all_ if level in levels.get(name, all_)) for name, all_ in self.factors.items()}
        return replace(self, cells=cells, factors=factors, search=self.search and self.search.restricted_to(levels))

    @property
    def title(self) -> str:
        return f"{self.study} on {self.dataset}"

    def baseline_label(self, cell: DesignCell) -> str | None:
        """Label of the cell that another is compared with; None for a baseline itself, and where there is no such cell."""
        wanted = {**cell.levels, **self.baseline}
        return next((other.label for other in self.cells if other.levels == wanted and other is not cell), None)

    @property
    def data_versions(self) -> tuple[str, ...]:
        """Those of all cells, each once."""
        return tuple(dict.fromkeys(cell.data_version for cell in self.cells))

    @property
    def training_images(self) -> dict[str, int]:
        """How many images are trained on where, if cells differ in that: `{"train_examples=300": 300, …}`. Else empty."""
        if len(self.data_versions) == 1:
            return {}
        for factor in self.factors:
            of_level = {(cell.levels[factor], cell.data_version, cell.train_images) for cell in self.cells}
            if len(of_level) == len({level for level, *_ in of_level}):
                found = {level: images for level, _, images in of_level}
                return {f"{factor}={level}": found[level] for level in self.factors[factor] if level in found}
        return {cell.label: cell.train_images for cell in self.cells}

    def images_per_epoch(self, cell: DesignCell) -> int:
        """Images that training sees in a whole epoch: full global batches only."""
        batch = int(cell.spec["optim.global_batch_size"])
        return cell.train_images // batch * batch


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Without the seed, and as JSON has it: the same before and after MLflow."""
    values: dict[str, Any] = json.loads(json.dumps({name: value for name, value in spec.items() if name != "seed"}))
    return values
