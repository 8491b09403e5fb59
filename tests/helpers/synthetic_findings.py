"""Synthetic findings of every kind, and their report."""

from typing import Any

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Anova, AnovaTerm, Answer, CellFinding, Comparison, Effect, Findings, Interaction
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.html import render
from ablations.engine.report.page.figures import ReportFigure
from tests.helpers import synthetic_study

HOSTILE = "a|b\\ $x$ <script>alert('1')</script> \"q\" & 100 % #1 {_^~} [l](u) `c` *s* -- ü 中\n\x00\u202e"
PRINTED = "a|b\\ $x$ <script>alert('1')</script> \"q\" & 100 % #1 {_^~} [l](u) `c` *s* -- ü 中\\n\\x00\\u202e"
SVG = """<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="216pt" height="144pt" viewBox="0 0 216 144" xmlns="http://www.w3.org/2000/svg">
<metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></metadata>
<defs><style type="text/css">*{stroke-linejoin: round}</style><clipPath id="p1"><rect width="9" height="9"/></clipPath></defs>
<!-- a > label --><g id="unused"><path id="mark" d="M 0.123456 7
L 9 9" clip-path="url(#p1)" style="stroke: #1F2328; fill: #57606a"/>
<use xlink:href="#mark" style="stroke: #d8dee4; fill: #ffffff"/></g></svg>"""


def cell(label: str, mean: float | None = 8.125, **more: object) -> CellFinding:
    """Return a cell of three completed runs, or of none if `mean` is None."""
    n = 0 if mean is None else 3
    levels = dict(part.partition("=")[::2] for part in label.split())
    values = {
        "levels": levels,
        "planned": 3,
        "value": Estimate(n=n, mean=mean, std=mean and 0.1 + 1 / 3, low=mean and mean - 1, high=mean and mean + 1),
        "train_value": Estimate(n=n, mean=mean and mean / 3, std=mean and 0.2),
        "problems": {},
        "reasons": (),
        "parameters": 269_434.0,
        "flops": 40_813_184.0,
        "images_per_second": 2000 / 3,
        "peak_memory_mb": 812.4,
        "seconds": 12.34,
        "gpu_hours": 0.0034,
    }
    return CellFinding(label=label, **values | more)  # type: ignore[arg-type]


def findings(*cells: CellFinding, **more: object) -> Findings:
    """Return findings in which the first cell is the baseline of the others.

    Differences are multiples of 1/3 point. Every second one is significant, beginning with the first.
    """
    cells = cells or (cell("shortcut=A depth=20", 7.5), cell("shortcut=none depth=20", 8.9), cell("shortcut=B depth=20", 7.7))
    comparisons = []
    for i, other in enumerate(cells[1:], 1):
        mean = (i % 7 - 3) / 3
        p = 0.0001 if i % 2 else 0.4321
        difference = Estimate(
            n=3, mean=mean, std=0.5, low=mean - 0.5, high=mean + 0.5, p=p, p_adjusted=min(1, 2 * p), effect_size=mean * 2
        )
        comparisons.append(Comparison(cell=other.label, baseline=cells[0].label, difference=difference, planned=3))
    values = {"comparisons": tuple(comparisons), "effects": (), "interactions": (), "anova": None, "no_anova": "one factor"}
    values |= {"answers": (), "flags": ()}
    return Findings(metric=synthetic_study.TEST_ERROR, cells=cells, **values | more)  # type: ignore[arg-type]


def estimate(mean: float, corrected: float = 0.5) -> Estimate:
    return Estimate(
        n=3, mean=mean, std=0.4, low=mean - 1 / 3, high=mean + 1 / 3, p=corrected / 3, p_adjusted=corrected, effect_size=mean
    )


def found_in(evidence: Evidence) -> Findings:
    """Return findings of every kind about the cells of the evidence."""
    cells = [cell(one.label, 8 + i / 7, levels=one.levels) for i, one in enumerate(evidence.design.cells)]
    effects = (Effect(factor="shortcut", level="none", reference="A", difference=estimate(4.6, 0.01), combinations=2),)
    interaction = Interaction(
        factors=("shortcut", "depth"), levels=("none", "56"), references=("A", "20"), difference=estimate(9.8)
    )
    anova = Anova(
        terms=(AnovaTerm(term="shortcut", df=2, f=212.5, partial_eta_squared=0.98),),
        residual_df=10,
        note="complete: 18 runs",
    )
    verdicts = ("matters", "may matter", "no effect within margin", "no difference shown", "cannot be said")
    answers = tuple(Answer(factor=f"f{i}", verdict=verdict, text=f"It {verdict}.") for i, verdict in enumerate(verdicts))
    parts = {"effects": effects, "interactions": (interaction,), "anova": anova, "no_anova": "", "answers": answers}
    return findings(*cells, **parts, flags=("device differs",))


def page(evidence: Evidence | None = None, found: Findings | None = None, **more: Any) -> str:
    """Return the HTML of a report. Evidence, findings and figures that are not given are synthetic."""
    evidence = evidence or synthetic_study.evidence()
    pictures = [ReportFigure(name, f"The {name}", "Lines are means.", f"alt <of> {name}", SVG) for name in ("curves", "cost")]
    arguments = {"figures": pictures, "published": (), "written_at": "2026-01-02 03:04 UTC"} | more
    return render(evidence, found or found_in(evidence), **arguments)


def many() -> tuple[Evidence, Findings]:
    """Return evidence and findings of 400 cells with 5 seeds each."""
    factors = {"depth": tuple(str(6 * n + 2) for n in range(1, 21)), "width": tuple(str(8 * n) for n in range(1, 21))}
    evidence = synthetic_study.evidence(
        synthetic_study.design(factors, {"depth": "8"}, seeds=5), truth=lambda _, seed: 8 + seed / 7, epochs=1
    )
    return evidence, found_in(evidence)
