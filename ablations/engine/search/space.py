"""The space of a search: that of the study, restricted or extended on the command line.

A space is a function of an Optuna trial. It calls `suggest_float`, `suggest_int` and `suggest_categorical` with names of fields,
dotted (`optim.lr`) or short (`lr`), and may branch on the values that they return. Functions here take the fields of the
study's configurations as `schema`; without it, those of `RunSpec`.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import create_trial

from ablations.engine.task.image_classification import IMAGE_CLASSIFICATION
from ablations.engine.task.workload import Workload
from resnet_core.fields import ConfigError, reject
from resnet_core.schema import Schema

Space: TypeAlias = Callable[[Any], object]
Dimension: TypeAlias = FloatDistribution | IntDistribution | CategoricalDistribution
"""The values of a field: a range, on a linear or logarithmic scale, or choices."""
FIELDS = IMAGE_CLASSIFICATION.schema
"""Fields of `RunSpec`."""
SPACE_SAMPLES = 200
"""Number of random configurations from which the fields and ranges of a space are inferred."""

optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna logs the creation of every study otherwise


def parse_space(texts: Sequence[str], schema: Schema = FIELDS) -> dict[str, Dimension | None]:
    """Return the dimension of each field that `--space` names, such as `lr`, `lr=0.001..1:log` or `width=8,16,24`.

    A name alone has the dimension None: the study's space must then suggest the field.

    Raises:
        ConfigError: unknown or repeated field, or a range or choices that the field does not accept.
    """
    fields: dict[str, Dimension | None] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        field = schema.field_name(name)
        if field in fields:
            raise reject("--space", text, "is named twice")
        fields[field] = _dimension(text, field, given, schema) if equals else None
    return fields


def restrict_space(
    space: Space | None,
    fields: Mapping[str, Dimension | None],
    default: Any,
    fixed: Collection[str],
    schema: Schema = FIELDS,
) -> Space:
    """Return the study's space restricted to `fields`, or the whole space if `fields` is empty.

    Other fields of the space get their value in `default`, so that branches on them still work.

    Args:
        space: the study's space, if it has one.
        fields: fields to search. A dimension replaces that of the study's space.
        default: default configuration.
        fixed: dotted names of fields that cannot be searched. If the space suggests one, it gets its default.

    Raises:
        ConfigError: a field to search is fixed, or has a dimension neither in `fields` nor in the study's space.
    """
    known = list(_distributions(sample_space(space), schema)) if space else []
    for name, dimension in fields.items():
        if name in fixed:
            raise reject("--space", name, "cannot be searched: it is a factor, set by --set, or the same in all trials")
        if dimension is None and name not in known:
            others = f"accepted: {', '.join(known)}; " if known else ""
            raise reject("--space", name, f"{others}other fields need a range or choices: {name}=LOW..HIGH or {name}=A,B")
    values = default.flat()

    def composed(trial: Any) -> None:
        restricted = _RestrictedTrial(trial, fields, fixed, values, schema)
        if space:
            space(restricted)
        for name, dimension in fields.items():
            if dimension is not None:
                restricted.suggest(name, dimension)

    return composed


def check_space(space: Space, default: Any, workload: Workload = IMAGE_CLASSIFICATION) -> dict[str, dict[str, Any]]:
    """Return the fields of a space, as in `SearchDesign.fields`. If ranges differ between branches, the result has their union.

    Raises:
        ConfigError: the space raises an error, suggests nothing or an invalid value, or has no valid configuration.
    """
    trials, schema = sample_space(space), workload.schema
    distributions = _distributions(trials, schema)
    if not distributions:
        raise ConfigError("--space: the space suggests nothing; accepted: FIELD=LOW..HIGH or FIELD=A,B")
    refusals = [_refusal(workload, default, field_values(trial.params, schema)) for trial in trials]
    if all(refusals):
        raise ConfigError(f"--space: no configuration of the space is valid; the last one: {refusals[-1]}")
    return {name: _union(name, found, schema) for name, found in distributions.items()}


def sample_space(space: Space) -> list[optuna.Trial]:
    """Return trials with random configurations, the same in every call; raise ConfigError if the space raises an error."""
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    trials = [study.ask() for _ in range(SPACE_SAMPLES)]
    for trial in trials:
        try:
            space(trial)
        except ConfigError:
            raise
        except Exception as error:  # the space is user code, which may raise anything
            raise ConfigError(f"the study's space fails: {type(error).__name__}: {error}") from error
    return trials


def numeric_ranges(space: Space, schema: Schema = FIELDS) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each field that has a range in every configuration, by dotted name."""
    trials = sample_space(space)
    always = set.intersection(*({schema.field_name(name) for name in trial.params} for trial in trials))
    unions = {name: _union(name, found, schema) for name, found in _distributions(trials, schema).items() if name in always}
    return {name: (union["low"], union["high"]) for name, union in unions.items() if union.get("low") != union.get("high")}


def field_values(params: Mapping[str, Any], schema: Schema = FIELDS) -> dict[str, Any]:
    """Return the parameters of a trial as values of fields, by dotted name; raise ConfigError for an invalid value."""
    return {schema.field_name(name): schema.convert(schema.field_name(name), value) for name, value in params.items()}


def params_for_values(space: Space, values: Mapping[str, Any], schema: Schema = FIELDS) -> dict[str, Any] | None:
    """Return the parameters of a trial of `space` that give exactly these values of fields; None if there are none."""
    trial = _ReplayedTrial(values, schema)
    try:
        space(trial)
        create_trial(value=0, params=trial.params, distributions=trial.distributions)  # raises ValueError outside a range
    except (KeyError, ValueError):
        return None
    return trial.params if set(map(schema.field_name, trial.params)) == set(values) else None


class _TrialAdapter(ABC):
    """An object that a space can use as an Optuna trial. All suggestions go through the method `suggest`."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        return self.suggest(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        return self.suggest(name, IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.suggest(name, CategoricalDistribution(choices))

    @abstractmethod
    def suggest(self, name: str, dimension: Dimension) -> Any: ...


class _RestrictedTrial(_TrialAdapter):
    """A trial that passes suggestions of searched fields on to an Optuna trial and returns defaults for other fields."""

    def __init__(
        self,
        trial: Any,
        fields: Mapping[str, Dimension | None],
        fixed: Collection[str],
        values: Mapping[str, Any],
        schema: Schema,
    ) -> None:
        self._schema = schema
        self._trial, self._fields, self._fixed, self._values = trial, fields, fixed, values

    def suggest(self, name: str, dimension: Dimension) -> Any:
        field = self._schema.field_name(name)
        if field in self._fixed or (self._fields and field not in self._fields):
            return _as_suggested(field, self._values[field], dimension, self._schema)
        own = self._fields.get(field) or dimension
        if isinstance(own, CategoricalDistribution):
            return self._trial.suggest_categorical(field, own.choices)
        if isinstance(own, IntDistribution):
            return self._trial.suggest_int(field, own.low, own.high, step=own.step, log=own.log)
        return self._trial.suggest_float(field, own.low, own.high, step=own.step, log=own.log)


def _as_suggested(field: str, value: Any, dimension: Dimension, schema: Schema) -> Any:
    """Return the choice that stands for a field's value, or the value itself. Conditions in a space compare with its choices."""
    choices = dimension.choices if isinstance(dimension, CategoricalDistribution) else ()
    return next((choice for choice in choices if json.dumps(schema.convert(field, choice)) == json.dumps(value)), value)


class _ReplayedTrial(_TrialAdapter):
    """A trial that returns the values of an earlier one. It raises KeyError if a value is missing or is no choice."""

    def __init__(self, values: Mapping[str, Any], schema: Schema) -> None:
        self._values, self._schema = values, schema
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest(self, name: str, dimension: Dimension) -> Any:
        field = self._schema.field_name(name)
        value = self._values[field]
        if isinstance(dimension, CategoricalDistribution):
            value = {json.dumps(self._schema.convert(field, choice)): choice for choice in dimension.choices}[json.dumps(value)]
        self.params[name], self.distributions[name] = value, dimension
        return value


def _dimension(text: str, field: str, given: str, schema: Schema) -> Dimension:
    if ".." in given:
        return _range(text, field, given, schema)
    choices = [schema.convert(field, choice) for choice in given.split(",")]
    if any(isinstance(choice, tuple) for choice in choices):
        raise reject("--space", text, "lists cannot be searched from the command line; accepted: a study with a space")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise reject("--space", text, f"accepted: two or more different values, {field}=A,B, or a range, {field}=LOW..HIGH")
    return CategoricalDistribution(choices)


def _range(text: str, field: str, given: str, schema: Schema) -> Dimension:
    ends, _, scale = given.partition(":")
    low, high = (schema.convert(field, end) for end in ends.split("..", maxsplit=1))
    if type(low) not in (int, float) or type(high) is not type(low):
        raise reject("--space", text, f"{field} is not a number; accepted: choices, {field}=A,B")
    if scale not in ("", "log") or not (math.isfinite(high - low) and low < high) or (scale and low <= 0):
        raise reject("--space", text, "accepted: LOW..HIGH with LOW < HIGH, both finite, or LOW..HIGH:log with LOW above 0")
    kind = IntDistribution if type(low) is int else FloatDistribution
    return kind(low, high, log=bool(scale))


def _distributions(trials: Sequence[optuna.Trial], schema: Schema) -> dict[str, list[BaseDistribution]]:
    """Return the distinct distributions of each field in these trials, by dotted name."""
    found: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            of_field = found.setdefault(schema.field_name(name), [])
            if distribution not in of_field:
                of_field.append(distribution)
    return found


def _union(name: str, found: Sequence[Any], schema: Schema) -> dict[str, Any]:
    """Return the union of a field's distributions as JSON. Optuna lets only the range differ between branches."""
    if isinstance(found[0], CategoricalDistribution):
        choices: list[Any] = json.loads(json.dumps([schema.convert(name, choice) for choice in found[0].choices]))
        return {"choices": choices}
    return {"low": min(each.low for each in found), "high": max(each.high for each in found), "log": found[0].log}


def _refusal(workload: Workload, default: Any, values: Mapping[str, Any]) -> str:
    """Return why a configuration is invalid; empty if it is valid."""
    try:
        workload.override(default, values)
    except ConfigError as error:
        return str(error)
    return ""
