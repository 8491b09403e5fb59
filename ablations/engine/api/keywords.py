"""Keywords of `run` and `load`. They are the options of the command line: names, types and defaults come from its parser."""

import argparse
import operator
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ablations.engine.cli import options
from ablations.engine.environment.validation import read_worker_gpus
from ablations.engine.study.definition import Study
from ablations.engine.study.request import Options
from ablations.engine.study.seeds import read_seeds
from resnet_core.fields import ConfigError, nearest, reject

NOT_KEYWORDS = ("help", "plan", "calibrate", "report", "json")
"""Options that select what a command prints. A `Result` has it all."""
NAMES = {"set": "settings"}
"""Keywords with another name than their option, by option."""
MAPPINGS = ("levels", "set")
"""Options that are mappings by field."""
NAMED_MAPPINGS = ("datasets",)
"""Options that are lists of names, or mappings by name."""
LOAD_KEYWORDS = (
    *("preset", "datasets", "design", "seeds", "levels", "settings"),
    *("probe", "workers", "expect", "margin", "price", "co2_per_kwh", "tracking_uri", "storage"),
)
"""Keywords of `load`; with a search, those of its group as well."""


def parse_keywords(study: Study, given: Mapping[str, Any], *, training: bool) -> Options:
    """Return the options that keywords stand for. A keyword that is None has its default.

    Args:
        study: the study. One with a search space has further keywords.
        given: the keywords.
        training: accept the keywords that concern training as well.

    Raises:
        ConfigError: unknown keyword, or a value that the option does not accept.
    """
    parser = options.make_parser(study)
    actions = {NAMES.get(action.dest, action.dest): action for action in parser._actions if action.dest not in NOT_KEYWORDS}
    if not training:
        of_search = {action.dest for group in parser._action_groups if group.title == "search" for action in group._group_actions}
        actions = {name: action for name, action in actions.items() if name in LOAD_KEYWORDS or name in of_search}
    namespace = parser.parse_args([])
    for name, value in given.items():
        if name not in actions:
            raise _unknown(name, actions)
        if value is not None:
            setattr(namespace, actions[name].dest, _converted(name, actions[name], value))
    return options.from_namespace(study, namespace)


def _unknown(name: str, accepted: Collection[str]) -> ConfigError:
    near = nearest(name.replace("-", "_"), accepted)
    hint = f"did you mean {' or '.join(near)}?" if near else f"accepted: {', '.join(accepted)}"
    return ConfigError(f"{name}: no such keyword; {hint}")


def _converted(name: str, action: argparse.Action, value: Any) -> Any:
    """Return a value as the parser would have stored it."""
    if action.dest in MAPPINGS:
        if not isinstance(value, Mapping):
            raise reject(name, value, "accepted: values by field, such as {'depth': …}")
        return dict(value)
    if action.dest in NAMED_MAPPINGS and isinstance(value, Mapping):
        return dict(value)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise reject(name, value, "accepted: True or False")
        return value
    if action.nargs in ("+", "*") or isinstance(action.default, list):
        several = [value] if isinstance(value, str) else value
        if not (isinstance(several, Sequence) and all(isinstance(each, str) for each in several)):
            raise reject(name, value, "accepted: text, or a list of texts")
        return list(several)
    if action.dest == "seeds":
        read_seeds(name, value)  # raises ConfigError
        return value
    if action.dest == "gpus_per_worker":
        read_worker_gpus(name, value)  # raises ConfigError
        return value
    if action.type in (int, float):
        return _number(name, action.type, value)
    if not isinstance(value, (str, os.PathLike)):
        raise reject(name, value, "accepted: text")
    return os.fspath(value)


def _number(name: str, kind: Any, value: Any) -> float:
    accepted = "a whole number" if kind is int else "a number"
    if isinstance(value, (bool, str)):
        raise reject(name, value, f"accepted: {accepted}")
    try:
        return operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError) as error:
        raise reject(name, value, f"accepted: {accepted}") from error
