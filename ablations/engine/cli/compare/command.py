"""The command `ablations compare`: train both sides with the same seeds, and give a verdict with an exit code.

Without `--study`, it compares two studies that MLflow has; see `stored`.
"""

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.compare import stored
from ablations.engine.cli.compare.arms import Arm, checked_out, parse_arm
from ablations.engine.environment.console import format_duration
from ablations.engine.environment.validation import AUTO, check_positive
from ablations.engine.study.designs import FACTORIAL
from ablations.engine.study.factors import format_level, is_level
from ablations.engine.study.plan import CONFIGURATION
from ablations.engine.task.metric import Metric
from resnet_core.fields import ConfigError, counted, reject

HELP = "compare two studies in MLflow, or train one before and after a change"
DESCRIPTION = (
    "Without --study, compare two studies that MLflow has, or two settings of one, by name: paired by cell and seed, without "
    "training. With --study, train what is missing of a study before and after a change, with the same seeds, and answer keep, "
    "discard or undecided. "
    "A side is a commit, . for the working tree, or a configuration: fields of a run that differ from the study. "
    "Factors of the study are at their baseline, unless --levels or the configuration names others."
)
EPILOG = """examples:
  ablations compare shortcuts@optim.lr=0.1 shortcuts@optim.lr=0.2
  ablations compare HEAD . --study my_study.py --seeds 5
  ablations compare . "optim.lr=0.2 width=8" --study my_study.py

exit codes with --study: 0 keep, 3 undecided, 4 discard, 1 a run has no result,
2 wrong request, 5 the study is running already"""
SCHEMA = "ablations-comparison/1"
EXIT_CODES = {"keep": 0, "undecided": 3, "discard": 4}
PASSED_ON = ("preset", "workers", "cpus_per_worker", "gpus_per_worker", "max_concurrent", "tracking_uri", "storage")
"""Options that both sides receive as they are given."""
ONLY_TRAINING = ("seeds", "levels", "set", "plan", *(name for name in PASSED_ON if name != "tracking_uri"))
"""Options that concern training."""
DEFAULT_SEEDS = 5
Values = dict[int, list[float | None]]
"""Values of the metric by seed, one per cell; None for a run that failed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description, parser.epilog = options.fill(DESCRIPTION), EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("base", metavar="BASE", help="side before the change, or name of a study")
    parser.add_argument("changed", metavar="CHANGED", help="side after the change, or name of a study")
    parser.add_argument("--study", metavar="FILE", help="file of the study to train (default: compare studies in MLflow)")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"number of pairs of runs of each cell (default: {DEFAULT_SEEDS})")
    parser.add_argument(
        "--levels", nargs="+", action="extend", default=[], metavar="FACTOR=A,B", help="levels of the study's factors"
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="fields of both sides")
    parser.add_argument(
        "--by", type=float, default=0.0, metavar="N", help="least improvement worth the change, in the metric's unit (default: 0)"
    )
    parser.add_argument(
        "--looks", type=int, default=1, metavar="N", help="how often this comparison is judged, this time included (default: 1)"
    )
    parser.add_argument("--plan", action="store_true", help="print what is missing and how long it takes; start nothing")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON to standard output")
    for name in PASSED_ON:
        metavar = {"preset": "NAME", "tracking_uri": "URI", "storage": "URI"}.get(name, "N")
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help="as for a study")


def run(given: argparse.Namespace) -> int:
    """Compare both sides and print the verdict; return the exit code."""
    check_positive("--looks", given.looks)
    if not 0 <= given.by < float("inf"):
        raise reject("--by", given.by, "accepted: a number of 0 or more")
    if given.study is None:
        if option := next((name for name in ONLY_TRAINING if getattr(given, name)), None):
            raise ConfigError(f"--{option.replace('_', '-')}: accepted with --study FILE, which trains")
        return stored.run(given)
    check_positive("--seeds", given.seeds)
    given.seeds = DEFAULT_SEEDS if given.seeds is None else given.seeds
    study = Path(given.study)
    if not study.is_file():
        raise reject("--study", given.study, "accepted: the file of a study")
    base, changed = (parse_arm(text, study) for text in (given.base, given.changed))
    own_code = bool(base.commit or changed.commit)
    with ExitStack() as stack:
        arms = [stack.enter_context(checked_out(arm, own_code=own_code)) for arm in (base, changed)]
        with ThreadPoolExecutor(len(arms)) as pool:  # a plan imports PyTorch and MLflow, which takes seconds
            requests, plans = zip(*pool.map(lambda arm: _request(arm, given), arms), strict=True)
        _check_comparable(arms, plans)
        if given.gpus_per_worker in (None, AUTO):
            _check_devices(arms, plans)
        _print_plans(arms, plans)
        if given.plan:
            return 0
        found = [arm.document(words) for arm, words in zip(arms, requests, strict=True)]
    return _conclude(given, arms, found)


def _request(arm: Arm, given: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Return the options of a side, and its plan."""
    words = _options(arm, given)
    return words, _plan(arm, words)


def _options(arm: Arm, given: argparse.Namespace) -> list[str]:
    """Return the options with which a side trains: factors at their baseline, or at the levels that are asked for."""
    passed = [word for name in PASSED_ON if (value := getattr(given, name)) for word in (f"--{name.replace('_', '-')}", str(value))]
    passed += ["--seeds", str(given.seeds)]
    outline = _plan(arm, passed)
    if outline.get("design", FACTORIAL) != FACTORIAL:  # other designs need several factors with several levels
        passed += ["--design", FACTORIAL]
    if given.levels:
        outline = _plan(arm, [*passed, "--levels", *given.levels])
    factors: Mapping[str, Sequence[Any]] = outline["factors"]
    if outline["search"] or CONFIGURATION in factors:
        raise reject("--study", given.study, "is a search, which has no fixed runs to compare; accepted: a study without space")
    asked = {name for name in factors if any(_is_same_field(name, word.partition("=")[0]) for word in given.levels)}
    levels = {name: [format_level(level)] for name, level in outline["baseline"].items() if name not in asked}
    settings = {}
    for name, value in arm.fields.items():
        factor = next((each for each in factors if _is_same_field(each, name)), None)
        if factor is None:
            settings[name] = value
        elif factor not in asked:  # a study always trains its baseline
            baseline = outline["baseline"].get(factor)
            levels[factor] = levels.get(factor, []) if is_level(baseline, value) else [*levels.get(factor, []), value]
    words = [*given.levels, *(f"{name}={','.join(values)}" for name, values in levels.items())]
    fields = [*given.set, *(f"{name}={value}" for name, value in settings.items())]
    return [*passed, *(["--levels", *words] if words else []), *(["--set", *fields] if fields else [])]


def _is_same_field(one: str, other: str) -> bool:
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _plan(arm: Arm, words: Sequence[str]) -> dict[str, Any]:
    _, plan = arm.document(["--plan", *words])
    if plan is None:
        raise reject("compare", arm.name, "its study prints no plan; accepted: a version of this project that has --json")
    return plan


def _cells(arm: Arm, document: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """Return the cells of a side by their levels, without the factors that the configuration of a side sets.

    Args:
        arm: the side.
        document: its plan or its findings.
        named: fields that the configuration of either side sets.
    """
    found: dict[str, Any] = {}
    for cell in document["cells"]:
        levels = dict(cell["levels"])
        set_here = {factor: value for factor in levels for name, value in arm.fields.items() if _is_same_field(factor, name)}
        if not all(is_level(levels[factor], value) for factor, value in set_here.items()):
            continue  # the baseline, which a study always trains
        rest = {factor: level for factor, level in levels.items() if not any(_is_same_field(factor, name) for name in named)}
        if json.dumps(rest) in found:
            raise ConfigError(f"compare: {arm.name} has several cells with {rest}; accepted: one level of the fields that change")
        found[json.dumps(rest)] = cell
    return found


def _fields(arms: Sequence[Arm]) -> set[str]:
    return {name for arm in arms for name in arm.fields}


def _check_comparable(arms: Sequence[Arm], plans: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError if the sides are scored differently, do not have the same cells, or train the same runs."""
    for what in ("dataset", "metric"):
        scored = [plan[what] for plan in plans if what in plan]  # a commit of long ago does not say it
        if len(scored) == 2 and scored[0] != scored[1]:
            shown = "; ".join(each if isinstance(each, str) else " ".join(map(str, each.values())) for each in scored)
            raise ConfigError(f"compare: the sides have different {what}s: {shown}; accepted: sides that are scored alike")
    base, changed = (_cells(arm, plan, _fields(arms)) for arm, plan in zip(arms, plans, strict=True))
    if not base or base.keys() != changed.keys():
        cells = [", ".join(cell["cell"] for cell in of.values()) or "none" for of in (base, changed)]
        raise ConfigError(f"compare: the sides have different cells: {cells[0]}; {cells[1]}; accepted: --levels that both have")
    runs = [{run["fingerprint"] for cell in of.values() for run in cell["runs"]} for of in (base, changed)]
    if runs[0] == runs[1]:
        same = "configuration, training version and the user's code are equal"
        raise ConfigError(f"compare: {arms[0].name} and {arms[1].name} train the same runs: {same}; accepted: sides that differ")


def _check_devices(arms: Sequence[Arm], plans: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError if only one side would train on GPUs. Commits from before this choice was automatic train on CPUs."""
    gpus = [plan.get("resources", {}).get("gpus_per_worker", 0) for plan in plans]
    if bool(gpus[0]) != bool(gpus[1]):
        on = " and ".join(f"{arm.name} on {'GPUs' if number else 'CPUs'}" for arm, number in zip(arms, gpus, strict=True))
        raise ConfigError(f"compare: {on} would train, which is no fair comparison; accepted: --gpus-per-worker 0 or 1 for both")


def _print_plans(arms: Sequence[Arm], plans: Sequence[Mapping[str, Any]]) -> None:
    for arm, plan in zip(arms, plans, strict=True):
        estimate = plan["estimate"]
        seconds = estimate["seconds"] if estimate["hours"] is None else 3600 * estimate["hours"]
        takes = f", about {format_duration(seconds)}" if seconds is not None and plan["missing"] else ""
        left = f"{plan['missing']} of {counted(plan['runs'], 'run')} to train{takes}"
        print(". ".join(filter(None, (f"{arm.name}: {left}", plan["warning"]))), file=sys.stderr)


def _values(cells: Mapping[str, Any]) -> Values:
    found: Values = {}
    for _, cell in sorted(cells.items()):
        for each in cell["runs"]:
            found.setdefault(each["seed"], []).append(each["value"])
    return found


def _conclude(given: argparse.Namespace, arms: Sequence[Arm], found: Sequence[tuple[int, dict[str, Any] | None]]) -> int:
    from ablations.engine.analysis.verdicts.change import judge_change  # imports SciPy

    documents = [document for _, document in found if document is not None]
    if len(documents) < len(found) or any(code for code, _ in found):
        print("compare: some run has no result; the same command continues", file=sys.stderr)
        return 1
    metric = {name: documents[0]["protocol"]["metric"][name] for name in ("name", "unit", "better")}
    values = [_values(_cells(arm, document, _fields(arms))) for arm, document in zip(arms, documents, strict=True)]
    base, changed = values
    finding = judge_change(base, changed, Metric.from_dict(metric), by=given.by, looks=given.looks)
    if given.json:
        sides = {name: _side(arm, of) for name, arm, of in zip(("base", "changed"), arms, values, strict=True)}
        document = {"schema": SCHEMA, "study": documents[0]["study"], "metric": metric, "by": given.by, "looks": given.looks}
        print(json.dumps({**document, **asdict(finding), **sides}, indent=1, ensure_ascii=False))
    print(finding.text, file=sys.stderr if given.json else sys.stdout)
    return EXIT_CODES[finding.verdict]


def _side(arm: Arm, values: Values) -> dict[str, Any]:
    """Return a side as JSON values; those of the metric are a list per seed with a value per cell."""
    of_seeds = {str(seed): of_seed for seed, of_seed in values.items()}
    return {"name": arm.name, "commit": arm.commit, "fields": dict(arm.fields), "values": of_seeds}
