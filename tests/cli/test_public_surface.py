"""The public interface is frozen: the names of `ablations`, and the options of study files and of the console command.

A change of `public_surface.txt` is a change for users: it belongs in the changelog, and an option that gets another name keeps the
old one for one release. After an intended change:

    python -m tests.cli.test_public_surface
"""

import argparse
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

import ablations
from ablations.engine.cli import commands, options, search_options
from ablations.engine.study.definition import Study
from tests.helpers.project import PROJECT

FROZEN = Path(__file__).with_name("public_surface.txt")
FACTORS = {"depth": (20, 56)}
PLAIN = Study(name="plain", question="?", factors=FACTORS, baseline={"depth": 20})
SEARCH = Study(name="search", question="?", factors=FACTORS, baseline={"depth": 20}, space=lambda trial: None)


def public_names() -> Iterator[str]:
    """Yield a line for each public name, and for each of its parameters with its default."""
    for public in sorted(ablations.__all__):
        value = getattr(ablations, public)
        yield f"ablations.{public}"
        if is_dataclass(value):
            for field in fields(value):
                required = field.default is MISSING and field.default_factory is MISSING
                shown = "empty" if field.default is MISSING else getattr(field.default, "__name__", field.default)
                yield f"    {field.name}: {'required' if required else f'default {shown}'}"
        elif inspect.isclass(value):
            yield from (f"    .{member}" for member in vars(value) if not member.startswith("_"))
        else:
            for name, parameter in inspect.signature(value).parameters.items():
                yield f"    **{name}" if parameter.kind is inspect.Parameter.VAR_KEYWORD else f"    {name}: required"


def options_of(parser: argparse.ArgumentParser, title: str) -> Iterator[str]:
    """Yield a line for each option of a parser, by group, and the same of its subcommands."""
    yield title
    for group in parser._action_groups:
        if not group._group_actions or isinstance(group._group_actions[0], argparse._SubParsersAction):
            continue
        yield f"  {group.title}"
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS:
                continue
            names = ", ".join(action.option_strings) or action.dest
            takes = {None: "", "?": " [optional]", "+": " …", "*": " […]", 0: ""}[action.nargs]
            metavar = f" {action.metavar}" if action.metavar and action.option_strings else ""
            shown = not isinstance(action.default, (bool, list)) and action.default not in (None, argparse.SUPPRESS)
            default = f" = {action.default}" if shown else ""
            default = " = a folder" if action.dest == "storage" and default else default
            yield f"    {names}{metavar}{takes}{default}"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield ""
                yield from options_of(command, f"{title} {name}")


def surface() -> str:
    """Return the public surface as text."""
    renamed = (f"    {old} → {new}" for old, new in search_options.RENAMED_OPTIONS.items())
    parts = [
        public_names(),
        options_of(options.make_parser(PLAIN), "python my_study.py"),
        options_of(options.make_parser(SEARCH), "python my_search.py"),
        ["old names of options, for one release", *renamed],
        options_of(commands.make_parser(), "ablations"),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def test_the_public_surface_is_the_frozen_one() -> None:
    assert surface().splitlines() == FROZEN.read_text().splitlines()


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, ablations; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT).stdout.split()
    assert not {name for name in loaded if name.startswith(("ablations.", "resnet_core", "numpy", "argparse"))}


def test_older_ways_to_import_the_public_names_lead_to_the_same() -> None:
    from ablations.engine.cli import main
    from ablations.engine.study import Study as StudyOfThePackage

    assert ablations.main is main
    assert ablations.Study is StudyOfThePackage


@pytest.mark.parametrize("package", [ablations, commands])
def test_a_name_that_does_not_exist_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--fresh"], ["--rerun"]),
        (["--against", "flops"], ["--objective", "flops"]),
        (["--against=flops"], ["--objective=flops"]),
        (["--search", "lr", "width=8,16"], ["--space", "lr", "width=8,16"]),
    ],
)
def test_an_option_that_was_renamed_works_under_its_old_name_and_says_so(
    old: list[str], new: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study = PLAIN if "--rerun" in new else SEARCH
    assert options.parse_options(study, new) == options.parse_options(study, old)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert old[0].partition("=")[0] in err
    assert new[0].partition("=")[0] in err


@pytest.mark.parametrize("study", [PLAIN, SEARCH])
def test_old_names_are_not_in_the_help(study: Study) -> None:
    text = options.make_parser(study).format_help()
    assert not [old for old in search_options.RENAMED_OPTIONS if f"{old} " in text]


def test_help_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = commands.make_parser()
    (subcommands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for each in (parser, *subcommands.choices.values(), options.make_parser(SEARCH)):
        assert all(len(line) <= 80 for line in each.format_help().splitlines()), each.format_help()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ablations", "ablations.engine"])
def test_both_modules_are_the_console_command(module: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ablations ")


if __name__ == "__main__":
    FROZEN.write_text(surface())
