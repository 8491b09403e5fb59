"""All figures of a study, drawn from its evidence and findings."""

from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.report.figures.axes import save, svg_text
from ablations.engine.report.figures.captions import Caption, caption
from ablations.engine.report.figures.curves import budget_figure, curves_figure, gradients_figure, responses_figure
from ablations.engine.report.figures.designs import design_figures
from ablations.engine.report.figures.forest import forest_figure
from ablations.engine.report.figures.layout import narrow_figures
from ablations.engine.report.figures.levels import depth_figure, interaction_figure
from ablations.engine.report.figures.pareto import pareto_figure
from ablations.engine.report.figures.search_fields import importances_figure, parallel_figure, sensitivity_figure, slices_figure
from ablations.engine.report.figures.search_history import history_figure, search_pareto_figure
from ablations.engine.study.designs import FACTORIAL

__all__ = ["Caption", "all_figures", "caption", "narrow_svgs", "save"]


def all_figures(evidence: Evidence, findings: Findings) -> dict[str, Figure]:
    """Return every figure that has something to show, by name, in the order of the report."""
    factorial = evidence.design.kind == FACTORIAL  # the figures of another design replace those of combinations
    drawn = {
        **design_figures(evidence, findings),
        "curves": curves_figure(evidence),
        "depth": depth_figure(evidence, findings) if factorial else None,
        "differences": forest_figure(findings) if factorial else None,
        "interaction": interaction_figure(evidence, findings) if factorial else None,
        "cost": pareto_figure(evidence, findings),
        "budget": budget_figure(evidence),
        "responses": responses_figure(evidence),
        "gradients": gradients_figure(evidence),
    }
    if findings.search:
        drawn |= {
            "search-history": history_figure(evidence),
            "search-sensitivity": sensitivity_figure(evidence, findings),
            "search-slices": slices_figure(evidence),
            "search-importances": importances_figure(evidence, findings),
            "search-parallel": parallel_figure(evidence),
            "search-pareto": search_pareto_figure(evidence),
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def narrow_svgs(evidence: Evidence, findings: Findings) -> dict[str, str]:
    """Return the same figures for a phone, as SVG, by name."""
    with narrow_figures():
        return {name: svg_text(figure) for name, figure in all_figures(evidence, findings).items()}
