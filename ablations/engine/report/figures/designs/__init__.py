"""Figures of designs other than factorial and of adaptive seeds."""

from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.report.figures.designs.changes import effects_figure, ladder_figure
from ablations.engine.report.figures.designs.screening import effect_sizes_figure, half_normal_figure
from ablations.engine.report.figures.designs.seed_path import seed_path_figure


def design_figures(evidence: Evidence, findings: Findings) -> dict[str, Figure | None]:
    """Return the figures of the study's design by name; all are None for a factorial design with a fixed number of seeds."""
    design = evidence.design
    return {
        "effect-sizes": effect_sizes_figure(design, findings),
        "half-normal": half_normal_figure(design, findings),
        "ladder": ladder_figure(findings),
        "effects": effects_figure(design, findings),
        "seed-path": seed_path_figure(design, findings),
    }
