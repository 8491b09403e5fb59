"""The command `ablations fields`: the fields that `--set` and `--levels` take."""

import argparse
import importlib.util
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablations.engine.cli import options
from ablations.engine.environment.console import make_console, print_line
from ablations.engine.study.definition import Study
from ablations.engine.study.factors import NOT_SETTINGS
from resnet_core import PRESETS
from resnet_core.config.reference import FieldReference, describe_fields
from resnet_core.fields import ConfigError, reject
from resnet_core.overrides import run_schema
from resnet_core.schema import Schema

HELP = "list the fields that --set and --levels take"
EXAMPLES = """examples:
  ablations fields
  ablations fields lr
  ablations fields augment --preset cifar10
  ablations fields --study my_study.py --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = options.fill(
        "List the fields that --set and --levels take: name and value, type, what is accepted, and meaning."
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="only fields with this word in name or description")
    parser.add_argument(
        "--preset", metavar="NAME", help="show the values of a preset (default: those of the study, or of no preset)"
    )
    parser.add_argument("--study", metavar="FILE", help="file of a study, whose own network or task may have other fields")
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(given: argparse.Namespace) -> int:
    """Print the fields; return 0. Raise ConfigError for a wrong file or preset, or a word that no field has."""
    schema, values = _values(given.study, given.preset)
    found = [each for each in describe_fields(schema) if each.name not in NOT_SETTINGS and _matches(each, given.word, schema)]
    found.sort(key=lambda each: given.word.lower() not in each.name)
    if not found:
        raise reject("ablations fields", given.word, "no field has this word in its name or description; all: ablations fields")
    if given.json:
        print(json.dumps([{**asdict(each), "default": values[each.name]} for each in found], indent=1, ensure_ascii=False))
        return 0
    console = make_console()
    for each in found:
        print_line(
            console,
            f"{each.name}={_text(values[each.name])}  ({each.type}{f', {each.unit}' if each.unit not in ('', 'none') else ''})",
        )
        accepted = f" Accepted: {each.accepted.replace('`', '')}." if each.accepted else ""
        for line in textwrap.wrap(f"{_first_sentence(each.description)}{accepted}", max(40, min(console.width, 110) - 4)):
            print_line(console, f"    {line}")
    return 0


def _values(file: str | None, preset: str | None) -> tuple[Schema, dict[str, Any]]:
    """Return the fields of a study's runs, and their values in a preset; without a study, those of the built-in networks."""
    if file:
        study = load_study(Path(file))
        schema, presets = study.workload.schema, study.workload.presets
        chosen, settings = preset or study.preset, study.settings
    else:
        schema, presets, chosen, settings = run_schema(), {**PRESETS, "": run_schema().default}, preset or "", {}
    if chosen not in presets:
        raise reject("--preset", chosen, f"accepted: {', '.join(filter(None, presets))}")
    config = schema.override(presets[chosen], settings) if settings else presets[chosen]
    return schema, schema.flat(config)


def load_study(file: Path) -> Study:
    """Return the study that a file defines, without running it.

    Raises:
        ConfigError: the file cannot be run, or defines no study or several.
    """
    if not file.is_file():
        raise reject("--study", str(file), "accepted: the file of a study")
    spec = importlib.util.spec_from_file_location(f"study file {file.stem}", file)
    if spec is None or spec.loader is None:
        raise reject("--study", str(file), "accepted: a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where `inspect` looks for the source of its classes
    sys.path.insert(0, str(file.resolve().parent))  # as `python FILE` does
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:  # code of the user
        raise reject("--study", str(file), f"cannot be run ({type(error).__name__}: {error})") from error
    finally:
        sys.path.pop(0)
    found = {id(each): each for each in vars(module).values() if isinstance(each, Study)}
    if len(found) != 1:
        raise reject("--study", str(file), f"defines {len(found)} studies; accepted: one Study(…) at the top of the file")
    return next(iter(found.values()))


def _matches(field: FieldReference, word: str, schema: Schema) -> bool:
    word = word.lower()
    meant = schema.synonyms.get(word.rpartition(".")[2].replace("-", "_"))
    return meant == field.name or any(word in text.lower() for text in (field.name, field.description, field.accepted))


def _first_sentence(text: str) -> str:
    head, dot, _ = text.replace("`", "").partition(". ")
    return head + "." * bool(dot)


def _text(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
