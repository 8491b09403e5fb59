"""Reports with one figure, for tests that look at none: drawing all figures of a study takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.report import figures
from ablations.engine.report.figures.curves import curves_figure


def curves_only(evidence: Evidence, _: Findings) -> dict[str, Figure]:
    """Return the learning curves, as `all_figures` does, where there are any."""
    curves = curves_figure(evidence)
    return {"curves": curves} if curves else {}


@contextmanager
def one_figure(*, unless: bool = False) -> Iterator[None]:
    """Context in which reports have their learning curves as their only figure."""
    with pytest.MonkeyPatch.context() as patched:
        if not unless:
            patched.setattr(figures, "all_figures", curves_only)
        yield
