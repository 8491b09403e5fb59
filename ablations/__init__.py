"""Ablation and hyperparameter studies of residual networks on Ray, with every run in MLflow.

A study is a Python file that lists factors, their levels and a baseline:

    from ablations import Study, main

    STUDY = Study(
        name="zero-init",
        question="Does a network train better if every block starts as the identity?",
        factors={"zero_init_residual": (False, True), "depth": (20, 56)},
        baseline={"zero_init_residual": False},
        preset="digits",
        seeds=3,
        on={"smoke": {"factors": {"depth": (8,)}}},
    )

    if __name__ == "__main__":
        main(STUDY)

Factors are fields of `resnet_core.RunSpec`. Every combination of levels is a cell, and every cell is trained once for each seed.
The comparisons with the baseline are paired by seed. `on` overrides factors and settings for a preset, here for a quick run with
`--preset smoke`. `python my_study.py --plan` shows the cost, `python my_study.py` trains.

A notebook or a program calls the study instead:

    from ablations import run

    result = run(STUDY, preset="smoke", seeds=5)
    result.cells, result.findings, result.report

This package exports the names in `__all__`. The modules of `ablations.engine` may change in any release. Importing the package
takes milliseconds; a name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.engine.api.calls import load, run
    from ablations.engine.api.datasets_result import DatasetsResult
    from ablations.engine.api.result import Result
    from ablations.engine.cli.study import main
    from ablations.engine.study.definition import Study
    from ablations.engine.task.definition import Context, Epoch, Task
    from ablations.engine.task.metric import Metric
    from resnet_core.fields import ConfigError

__all__ = ["ConfigError", "Context", "DatasetsResult", "Epoch", "Metric", "Result", "Study", "Task", "load", "main", "run"]

_MODULES = {
    "ConfigError": "resnet_core.fields",
    "Context": "ablations.engine.task.definition",
    "DatasetsResult": "ablations.engine.api.datasets_result",
    "Epoch": "ablations.engine.task.definition",
    "Metric": "ablations.engine.task.metric",
    "Result": "ablations.engine.api.result",
    "Study": "ablations.engine.study.definition",
    "Task": "ablations.engine.task.definition",
    "load": "ablations.engine.api.calls",
    "main": "ablations.engine.cli.study",
    "run": "ablations.engine.api.calls",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ablations.engine.environment import signals

    if name in ("load", "run"):  # the program handles its signals itself
        signals.stop_exiting_on_signals()
    elif signals.is_imported_by_program():
        import_module("ablations.engine.cli.study")  # handles signals before the other imports, which take most of a second
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
