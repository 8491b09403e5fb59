"""The `Study` class, which a study file instantiates. All fields are checked on creation."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self

from ablations.engine.study.datasets import check_not_factors, dataset_entries
from ablations.engine.study.designs import FACTORIAL, check_design
from ablations.engine.study.factors import NOT_SETTINGS, Level, format_level, validated_factors, values_by_field
from ablations.engine.study.grid import ARM, check_pair_baseline, checked_arms, checked_pairs, pair_name
from ablations.engine.study.seeds import checked_seeds
from ablations.engine.task.custom_training import CustomTraining
from ablations.engine.task.definition import Task
from ablations.engine.task.image_classification import IMAGE_CLASSIFICATION, own_images
from ablations.engine.task.workload import Workload
from resnet_core.fields import ConfigError, reject

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Pattern of a study's name: valid as the name of an MLflow experiment, in a URL and as a file name on every system."""
PRESET_OVERRIDES = ("factors", "baseline", "settings")
"""Fields of a study that `on` may override for a preset."""


class _WorkloadSlot:
    """A place for a study's workload outside of its fields, so that `vars` of a study are its fields."""

    __slots__ = ("_workload",)


@dataclass(frozen=True, kw_only=True)
class Study(_WorkloadSlot):
    """A question about networks, and the design of the experiment that answers it."""

    name: str
    """Name of the MLflow experiment."""
    question: str
    """The question in one sentence, shown next to all results."""
    factors: Mapping[str, Sequence[Level]] = field(default_factory=dict)
    """Levels of each factor, by field: `{"depth": (20, 56), "optim.lr": (0.05, 0.1)}`. Empty only with arms or a search space."""
    baseline: Mapping[str, Level] = field(default_factory=dict)
    """Reference levels: each cell is compared with the cell that has these levels and is otherwise equal."""
    seeds: int | Sequence[int] = 3
    """Number of replicates of every cell, with seeds 0, 1, … A range such as `(3, 12)` makes it adaptive: cells get more seeds only
    while a comparison of theirs is undecided; more than two numbers are the looks."""
    margin: float | None = None
    """Largest difference that counts as no effect, above 0, in the unit of differences: percentage points for errors in percent.
    With a margin, a study can show that a factor has no effect larger than it. None: no such claim."""
    design: str = "factorial"
    """Combinations of levels to train, one of `DESIGNS`: all of them (`factorial`); the baseline, and each other level by
    itself (`one-at-a-time`); the levels added one after another (`ladder`); a fraction of the combinations of factors with two
    levels that tells their main effects apart (`screening`, of resolution IV, or `screening-iii`)."""
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Configurations that form no grid, by name: `{"paper": {}, "modern": {"schedule": "cosine", "nesterov": True}}`. They are the
    levels of a factor `arm`; without a baseline, the first one is the reference."""
    zip: Sequence[Sequence[str]] = ()
    """Groups of factors whose levels are paired instead of crossed: `[("depth", "width")]` pairs the first depth with the first
    width. They count as one factor, `depth+width`, with levels such as `20+16`."""
    datasets: Sequence[str] | Mapping[str, Mapping[str, Any]] = ()
    """Data sets on which the study is repeated: names of data sets or presets, or settings by name. The answer
    generalizes over them."""
    preset: str = ""
    """Preset to run on unless `--preset` overrides it. Empty: `digits`, or the first preset of the task."""
    model: Any = None
    """Network of one's own: a frozen dataclass with a method `build(image_size, in_channels, num_classes)`, or an instance whose
    values are the defaults. None: the networks of He et al."""
    reader: Callable[[Any], Any] | None = None
    """Function that reads images of one's own. None: the data sets of `DataConfig.name`."""
    task: Task | None = None
    """Training of one's own. None: image classification."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields that override the preset in all runs: `{"probes": ("responses",)}`."""
    space: Callable[[Any], object] | None = None
    """Search space, which makes the study a search: a function that takes an `optuna.Trial` and suggests fields, as in
    `trial.suggest_float("optim.lr", 1e-3, 1, log=True)`. With `--per-cell`, each combination of levels has its own search."""
    on: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Overrides of factors, baseline and settings by preset: `{"smoke": {"factors": {"depth": (8, 14)}}}`."""

    def __new__(cls, *args: object, **given: object) -> Self:
        """Raise ConfigError for unknown or missing fields, instead of the TypeError of a dataclass."""
        every = {f.name: f for f in fields(cls)}
        for name in (*map(repr, args), *(name for name in given if name not in every)):
            raise ConfigError(f"Study: {name}: no such field; accepted, by name: {', '.join(every)}")
        for name, f in every.items():
            if name not in given and f.default is MISSING and f.default_factory is MISSING:
                raise ConfigError(f"Study: {name} is missing; accepted: {name}=…")
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        """Return the arguments with which `copy` and `pickle` call `__new__`."""
        return (), vars(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, without the workload, which is made anew."""
        return vars(self)

    def __post_init__(self) -> None:
        """Check every field and convert levels and settings to the types of their fields; raise ConfigError."""
        if not (isinstance(self.name, str) and STUDY_NAME.fullmatch(self.name)):
            raise reject("study name", self.name, "accepted: up to 64 of a-z, A-Z, 0-9, - and _, the first a letter or digit")
        if not (isinstance(self.question, str) and self.question.strip()):
            raise reject("question", self.question, "accepted: a sentence")
        object.__setattr__(self, "seeds", checked_seeds("seeds", self.seeds))
        if self.margin is not None:
            check_margin("margin", self.margin)
            object.__setattr__(self, "margin", float(self.margin))
        if self.space is not None and not callable(self.space):
            raise reject("space", self.space, "accepted: a function of a trial")
        workload = self.workload
        if not self.preset:
            object.__setattr__(self, "preset", workload.default_preset)
        if not isinstance(self.on, Mapping):
            raise reject("on", self.on, f"accepted: changes by preset: {', '.join(workload.presets)}")
        for preset in (self.preset, *self.on):
            check_preset("preset", preset, workload)
        factors = validated_factors("factors", self.factors, workload)
        if not factors and not self.arms and self.space is None:
            raise reject("factors", self.factors, "accepted: one factor or more, such as {'depth': (20, 56)}")
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "arms", checked_arms(self.arms, factors, workload))
        object.__setattr__(self, "zip", checked_pairs(self.zip, factors, workload.schema))
        object.__setattr__(self, "baseline", _checked_baseline(self.baseline, factors, self.arms, workload))
        check_pair_baseline(self.zip, factors, self.baseline)
        check_design("design", self.design)
        if self.space is not None and (self.arms or self.zip or self.design != FACTORIAL):
            name = "arms" if self.arms else "zip" if self.zip else "design"
            raise reject(name, getattr(self, name), "accepted without a search space, which goes with a factorial design")
        object.__setattr__(self, "settings", _checked_settings(self.settings, workload))
        entries = dataset_entries("datasets", self.datasets, workload)
        check_not_factors("datasets", entries, {workload.schema.field_name(name): name for name in factors})
        if entries and self.space is not None:
            raise reject(
                "datasets", [each.name for each in entries], "a search is on one data set; accepted: a study without space"
            )
        for preset, changes in self.on.items():
            if not isinstance(changes, Mapping):
                raise reject(f"on {preset}", changes, f"accepted: changes of {', '.join(PRESET_OVERRIDES)}")
            if unknown := set(changes) - {*PRESET_OVERRIDES}:
                raise reject(f"on {preset}", min(map(str, unknown)), f"accepted: {', '.join(PRESET_OVERRIDES)}")
            try:
                self.for_preset(preset)
            except ConfigError as error:
                raise ConfigError(f"on {preset}: {error}") from error

    @property
    def workload(self) -> Workload:
        """Trainings that the study runs, with the user's code as it was when this study was made or expanded."""
        found: Workload | None = getattr(self, "_workload", None)
        if found is None:
            found = _make_workload(self.task, self.model, self.reader)
            object.__setattr__(self, "_workload", found)
        return found

    @property
    def compound_factors(self) -> tuple[str, ...]:
        """Names of the factors that set several fields: arms, and factors that are paired."""
        return (*((ARM,) if self.arms else ()), *map(pair_name, self.zip))

    def for_preset(self, preset: str) -> "Study":
        """Return the study with the overrides for a preset applied."""
        merged: dict[str, Any] = {}
        for part, changes in self.on.get(preset, {}).items():
            of_arms = {ARM} if self.arms and part == "baseline" and isinstance(changes, Mapping) else set()
            before, after = (
                {name: value for name, value in values.items() if name not in of_arms} if of_arms else values
                for values in (getattr(self, part), changes)
            )
            own, changed = (values_by_field(part, values, self.workload.schema) for values in (before, after))
            names = {dotted: own[dotted][0] if dotted in own else name for dotted, (name, _) in changed.items()}
            merged[part] = {**getattr(self, part), **{names[dotted]: value for dotted, (_, value) in changed.items()}}
            merged[part] |= {name: changes[name] for name in of_arms & changes.keys()}
        return replace(self, on={}, **merged)


def check_margin(option: str, margin: object) -> None:
    """Raise ConfigError for a margin that is no finite number above 0."""
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 < margin < math.inf:
        raise reject(option, margin, "accepted: a number above 0, in the unit of differences")


def check_preset(option: str, preset: object, workload: Workload) -> None:
    """Raise ConfigError for an unknown preset."""
    if not isinstance(preset, str) or preset not in workload.presets:
        raise reject(option, preset, f"accepted: {', '.join(workload.presets)}")


def _make_workload(task: object, model: object, reader: object) -> Workload:
    if task is not None:
        if not isinstance(task, Task):
            raise reject("task", task, "accepted: an ablations.Task")
        if model is not None or reader is not None:
            raise ConfigError(
                f"{'model' if model is not None else 'reader'}: accepted without a task, which trains its own networks"
            )
        return CustomTraining(task)
    if reader is not None and not callable(reader):
        raise reject("reader", reader, "accepted: a function of a DataConfig")
    return IMAGE_CLASSIFICATION if model is None and reader is None else own_images(model, reader)


def _checked_baseline(
    baseline: object, factors: Mapping[str, Sequence[Level]], arms: Mapping[str, Any], workload: Workload
) -> dict[str, Level]:
    """Return the baseline under the names of the factors; raise ConfigError for an unknown factor or level."""
    schema = workload.schema
    names = {schema.field_name(name): name for name in factors}
    found: dict[str, Level] = {}
    if arms and isinstance(baseline, Mapping) and ARM in baseline:
        if not isinstance(baseline[ARM], str) or baseline[ARM] not in arms:
            raise reject(f"baseline {ARM}", baseline[ARM], f"accepted: {', '.join(arms)}")
        found[ARM], baseline = baseline[ARM], {name: level for name, level in baseline.items() if name != ARM}
    for dotted, (name, level) in values_by_field("baseline", baseline, schema).items():
        if dotted not in names:
            raise reject("baseline", name, f"not a factor; accepted: {', '.join(factors)}")
        found[names[dotted]] = converted = schema.convert(dotted, level)
        levels = factors[names[dotted]]
        if converted not in levels:
            raise reject(
                f"baseline {name}", format_level(converted), f"accepted: a level of it: {', '.join(map(format_level, levels))}"
            )
    return found


def _checked_settings(settings: object, workload: Workload) -> dict[str, Any]:
    """Return the settings converted to the types of their fields; raise ConfigError for a field that cannot be a setting."""
    found: dict[str, Any] = {}
    for dotted, (name, value) in values_by_field("settings", settings, workload.schema).items():
        if dotted in NOT_SETTINGS:
            raise reject("settings", name, f"accepted: {NOT_SETTINGS[dotted]}")
        found[name] = workload.schema.convert(dotted, value)
    return found
