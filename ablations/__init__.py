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

This package exports the names in `__all__`. The modules of `ablations.engine` may change in any release. Importing the package
takes milliseconds; a name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.engine.cli.study import main
    from ablations.engine.study.definition import Study

__all__ = ["Study", "main"]

_MODULES = {"Study": "ablations.engine.study.definition", "main": "ablations.engine.cli.study"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ablations.engine.environment import signals

    if signals.is_imported_by_program():
        import_module("ablations.engine.cli.study")  # handles signals before the other imports, which take most of a second
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
