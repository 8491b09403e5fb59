"""Command lines: of study files, and the console command `ablations`.

Study files import `main` from `ablations`. `from ablations.engine.cli import main` is an older way that keeps working.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.engine.cli.study import main as main


def __getattr__(name: str) -> Any:
    if name != "main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ablations.engine.cli.study import main

    return main
