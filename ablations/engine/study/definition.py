"""The `Study` class, which a study file instantiates. All fields are checked on creation."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self

from ablations.engine.study.factors import NOT_SETTINGS, Level, format_level, validated_factors, values_by_field
from resnet_core import PRESETS, ConfigError
from resnet_core.fields import reject
from resnet_core.overrides import convert, field_name

STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Pattern of a study's name: valid as the name of an MLflow experiment, in a URL and as a file name on every system."""
PRESET_OVERRIDES = ("factors", "baseline", "settings")
"""Fields of a study that `on` may override for a preset."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question about networks, and the design of the experiment that answers it."""

    name: str
    """Name of the MLflow experiment."""
    question: str
    """The question in one sentence, shown next to all results."""
    factors: Mapping[str, Sequence[Level]]
    """Levels of each factor, by `RunSpec` field: `{"depth": (20, 56), "optim.lr": (0.05, 0.1)}`."""
    baseline: Mapping[str, Level] = field(default_factory=dict)
    """Reference levels: each cell is compared with the cell that has these levels and is otherwise equal."""
    seeds: int = 3
    """Number of replicates of every cell, with seeds 0, 1, …"""
    preset: str = "digits"
    """Preset to run on unless `--preset` overrides it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`RunSpec` fields that override the preset in all runs: `{"probes": ("responses",)}`."""
    space: Callable[[Any], object] | None = None
    """Search space, which makes the study a search: a function that takes an `optuna.Trial` and suggests `RunSpec` fields, as in
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

    def __post_init__(self) -> None:
        """Check every field and convert levels and settings to the types of their `RunSpec` fields; raise ConfigError."""
        if not (isinstance(self.name, str) and STUDY_NAME.fullmatch(self.name)):
            raise reject("study name", self.name, "accepted: up to 64 of a-z, A-Z, 0-9, - and _, the first a letter or digit")
        if not (isinstance(self.question, str) and self.question.strip()):
            raise reject("question", self.question, "accepted: a sentence")
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, int) or self.seeds < 1:
            raise reject("seeds", self.seeds, "accepted: a number of replicates, 1 or more")
        if self.space is not None and not callable(self.space):
            raise reject("space", self.space, "accepted: a function of a trial")
        if not isinstance(self.on, Mapping):
            raise reject("on", self.on, f"accepted: changes by preset: {', '.join(PRESETS)}")
        for preset in (self.preset, *self.on):
            check_preset("preset", preset)
        factors = validated_factors("factors", self.factors)
        if not factors and self.space is None:
            raise reject("factors", self.factors, "accepted: one factor or more, such as {'depth': (20, 56)}")
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "baseline", _checked_baseline(self.baseline, factors))
        object.__setattr__(self, "settings", _checked_settings(self.settings))
        for preset, changes in self.on.items():
            if not isinstance(changes, Mapping):
                raise reject(f"on {preset}", changes, f"accepted: changes of {', '.join(PRESET_OVERRIDES)}")
            if unknown := set(changes) - {*PRESET_OVERRIDES}:
                raise reject(f"on {preset}", min(map(str, unknown)), f"accepted: {', '.join(PRESET_OVERRIDES)}")
            try:
                self.for_preset(preset)
            except ConfigError as error:
                raise ConfigError(f"on {preset}: {error}") from error

    def for_preset(self, preset: str) -> "Study":
        """Return the study with the overrides for a preset applied."""
        merged: dict[str, Any] = {}
        for part, changes in self.on.get(preset, {}).items():
            own = values_by_field(part, getattr(self, part))
            changed = values_by_field(part, changes)
            names = {dotted: own[dotted][0] if dotted in own else name for dotted, (name, _) in changed.items()}
            merged[part] = {**getattr(self, part), **{names[dotted]: value for dotted, (_, value) in changed.items()}}
        return replace(self, on={}, **merged)


def check_preset(option: str, preset: object) -> None:
    """Raise ConfigError for an unknown preset."""
    if not isinstance(preset, str) or preset not in PRESETS:
        raise reject(option, preset, f"accepted: {', '.join(PRESETS)}")


def _checked_baseline(baseline: object, factors: Mapping[str, Sequence[Level]]) -> dict[str, Level]:
    """Return the baseline under the names of the factors; raise ConfigError for an unknown factor or level."""
    names = {field_name(name): name for name in factors}
    found: dict[str, Level] = {}
    for dotted, (name, level) in values_by_field("baseline", baseline).items():
        if dotted not in names:
            raise reject("baseline", name, f"not a factor; accepted: {', '.join(factors)}")
        found[names[dotted]] = converted = convert(dotted, level)
        levels = factors[names[dotted]]
        if converted not in levels:
            raise reject(
                f"baseline {name}", format_level(converted), f"accepted: a level of it: {', '.join(map(format_level, levels))}"
            )
    return found


def _checked_settings(settings: object) -> dict[str, Any]:
    """Return the settings converted to the types of their fields; raise ConfigError for a field that cannot be a setting."""
    found: dict[str, Any] = {}
    for dotted, (name, value) in values_by_field("settings", settings).items():
        if dotted in NOT_SETTINGS:
            raise reject("settings", name, f"accepted: {NOT_SETTINGS[dotted]}")
        found[name] = convert(dotted, value)
    return found
