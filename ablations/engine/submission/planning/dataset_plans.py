"""The plans of a study on several data sets, with their totals, on the terminal and as JSON."""

from collections.abc import Sequence
from typing import Any

from ablations.engine.environment.console import format_duration, make_console, print_line
from ablations.engine.submission.planning.plan_json import plan_document
from ablations.engine.submission.planning.preview import Preview, show_preview
from resnet_core.fields import counted

SCHEMA = "ablations-datasets-plan/1"
"""Name and version of the format."""


def show(names: Sequence[str], previews: Sequence[Preview]) -> None:
    """Print the plan on each data set and the totals."""
    console = make_console()
    for name, each in zip(names, previews, strict=True):
        console.print(f"Data set {name}", style="bold", markup=False)
        show_preview(console, each)
        console.print()
    found = totals(previews)
    most = "at most " if any(each.seeds for each in previews) else ""
    line = f"{counted(len(names), 'data set')}, one after another: {most}{counted(found['runs'], 'run')}, "
    line += f"{found['missing']} to train, {found['done']} done already."
    if found["hours"] is not None:
        line += f" About {format_duration(3600 * found['hours'])} in all."
    print_line(console, line)
    if len(names) < 3:
        print_line(console, "Two data sets show whether effects agree. A claim about data sets like them takes three or more.")


def document(names: Sequence[str], previews: Sequence[Preview]) -> dict[str, Any]:
    """Return the plans as JSON values."""
    plan = previews[0].plan
    return {
        "schema": SCHEMA,
        "study": {"name": plan.study.name, "question": plan.study.question},
        "datasets": [{"name": name, "plan": plan_document(each)} for name, each in zip(names, previews, strict=True)],
        "totals": totals(previews),
    }


def totals(previews: Sequence[Preview]) -> dict[str, Any]:
    """Return the numbers of runs, and the duration in hours; None if one of the studies has no estimate."""
    runs = sum(len(each.plan.runs) for each in previews)
    done = sum(run.fingerprint in each.done for each in previews for run in each.plan.runs)
    missing = sum(_missing(each) for each in previews)
    to_train = [each for each in previews if _missing(each)]
    known = all(each.estimate.runs_estimated and each.estimate.hours is not None for each in to_train)
    hours = sum(each.estimate.hours or 0.0 for each in to_train) if known else None
    return {"runs": runs, "done": done, "missing": missing, "hours": hours}


def _missing(preview: Preview) -> int:
    """Return the number of runs to train, at most."""
    if preview.seeds:
        return round(preview.seeds.worst.missing)
    return sum(run.fingerprint not in preview.done for run in preview.plan.runs)
