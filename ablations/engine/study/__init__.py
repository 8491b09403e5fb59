"""Studies as plain data: factors, the cells and runs that they expand to, and the request of a submission."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.engine.study.definition import Study as Study


def __getattr__(name: str) -> Any:
    """Load `Study`. Study files import it from `ablations`; importing it from here is an older way that keeps working."""
    if name != "Study":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ablations.engine.study.definition import Study

    return Study
