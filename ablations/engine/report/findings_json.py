"""`findings.json`: everything that a report says, as JSON for programs.

`docs/findings.schema.json` is its schema. `SCHEMA` changes if a key disappears or changes its meaning; new keys do not change it.
A number that does not exist is null: too few seeds for an interval, for instance.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from ablations.engine.analysis.cost import study_cost
from ablations.engine.analysis.evidence import FAILED_OUTCOMES, Evidence
from ablations.engine.analysis.findings import Answer, CellFinding, Comparison, Effect, Findings, Ladder, Screening, SeedPath
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.looks import looks_at
from ablations.engine.analysis.verdicts.expectations import Assessment
from ablations.engine.report import examples
from ablations.engine.report.data_frames import VALUE, typed_level
from ablations.engine.report.tables import comparisons_by_cell
from ablations.engine.study.design import Design, DesignCell

SCHEMA = "ablations-findings/1"
"""Name and version of the format."""
FILE_NAME = "findings.json"
MAX_SUMMARY_CHARACTERS = 4000
"""Maximum length of a summary with whole sentences: MLflow limits the values of tags to 8,000 bytes."""


def findings_document(evidence: Evidence, findings: Findings, expectations: Iterable[Assessment] = ()) -> dict[str, Any]:
    """Return the findings about a study as JSON values.

    Args:
        evidence: runs of the study.
        findings: their analysis.
        expectations: assessed expectations of `--expect`.
    """
    design = evidence.design
    looks = looks_at(design, evidence.looks)
    failures = evidence.runs[evidence.runs["outcome"].isin(FAILED_OUTCOMES)]
    comparisons, tested = comparisons_by_cell(findings), examples.documents(evidence, findings)
    document = {
        "schema": SCHEMA,
        "study": {"name": design.study, "question": design.question},
        "complete": findings.complete,
        "looks": list(looks.seen),
        "planned_seeds": looks.planned,
        "design": {"kind": design.kind, "seed_looks": list(design.seed_looks)},
        "answers": [_answer(each, design, findings, failures) for each in findings.answers],
        "expectations": [asdict(each) for each in expectations],
        "cells": [
            _cell(cell, found, comparisons.get(cell.label), evidence, tested.get(cell.label, {}))
            for cell, found in zip(design.cells, findings.cells, strict=True)
        ],
        "screening": _screening(findings.screening),
        "ladder": _ladder(findings.ladder),
        "path": _path(findings.path),
        "failures": failures[["cell", "seed", "outcome", "message", "fingerprint"]].to_dict("records"),
        "flags": list(findings.flags),
        "search": _search(findings),
        "cost": _cost(evidence),
        "protocol": _protocol(design),
        "provenance": _provenance(evidence),
    }
    plain: dict[str, Any] = _plain(document)
    return plain


def summary(evidence: Evidence, findings: Findings, design_digest: str) -> str:
    """Return what listings say about a study, as the value of the tag `SUMMARY_TAG`.

    Args:
        evidence: runs of the study.
        findings: their analysis.
        design_digest: value of `DESIGN_TAG`, by which a reader sees that the summary is about the latest submission.
    """
    outcomes = {str(name): int(count) for name, count in evidence.runs["outcome"].value_counts().items()}
    answers = [{"factor": each.factor, "verdict": each.verdict, "text": each.text} for each in findings.answers]
    document = {"design": design_digest, "dataset": evidence.design.dataset, "planned": len(evidence.runs), "outcomes": outcomes}
    text = json.dumps({**document, "answers": answers}, ensure_ascii=False)
    if len(text) <= MAX_SUMMARY_CHARACTERS:
        return text
    return json.dumps({**document, "answers": [{**each, "text": ""} for each in answers]}, ensure_ascii=False)


def to_json(document: Mapping[str, Any]) -> str:
    """Return a document as JSON, indented for people. NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _answer(answer: Answer, design: Design, findings: Findings, failures: pd.DataFrame) -> dict[str, Any]:
    failed = {
        level: sum(failures["cell"].isin([cell.label for cell in design.cells if cell.levels[answer.factor] == level]))
        for level in design.factors[answer.factor]
    }
    effects = [_effect(each, failed) for each in findings.effects if each.factor == answer.factor]
    return {"factor": answer.factor, "verdict": answer.verdict, "text": answer.text, "effects": effects}


def _effect(effect: Effect, failed: Mapping[str, int]) -> dict[str, Any]:
    return {
        "level": effect.level,
        "reference": effect.reference,
        **_difference(effect.difference),
        "failures": failed[effect.level],
        "reference_failures": failed[effect.reference],
        "failures_p": effect.failures.p if effect.failures else None,
        "failures_p_adjusted": effect.failures.p_adjusted if effect.failures else None,
        "p_within_margin": effect.p_within_margin,
    }


def _difference(difference: Estimate) -> dict[str, Any]:
    return {
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "p_adjusted": difference.p_adjusted,
        "n": difference.n,
    }


def _cell(
    cell: DesignCell, found: CellFinding, comparison: Comparison | None, evidence: Evidence, tested: Mapping[str, Any]
) -> dict[str, Any]:
    runs = evidence.runs[evidence.runs["cell"] == cell.label]
    columns = ["seed", "outcome", VALUE, "fingerprint", "run_id"]
    return {
        "cell": cell.label,
        "levels": {name: typed_level(cell, name) for name in cell.levels},
        "planned": found.planned,
        "n": found.value.n,
        **{name: getattr(found.value, name) for name in ("mean", "std", "low", "high")},
        "median": found.median,
        "failed_to_train": [asdict(each) for each in found.failed_to_train],
        "images": tested.get("cell"),
        "comparison": _comparison(comparison, tested.get("comparison")) if comparison else None,
        "outcomes": {"completed": found.value.n, **found.problems},
        **{name: getattr(found, name) for name in ("parameters", "flops", "seconds", "gpu_hours")},
        "flags": list(found.flags),
        "runs": runs[columns].rename(columns={VALUE: "value"}).to_dict("records"),
    }


def _comparison(comparison: Comparison, tested: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"baseline": comparison.baseline, **_difference(comparison.difference), "images": tested}


def _screening(found: Screening | None) -> dict[str, Any] | None:
    """Return the contrasts of a screening, each with the effects of which it estimates the sum; None for another design."""
    if found is None:
        return None
    contrasts = [{"terms": list(each.terms), **_difference(each.difference)} for each in found.contrasts]
    return {"resolution": found.resolution, "full_cells": found.full_cells, "contrasts": contrasts}


def _ladder(found: Ladder | None) -> dict[str, Any] | None:
    """Return the rungs of a ladder, each with its step from the rung before it; None for another design."""
    if found is None:
        return None
    rungs = [
        {
            "cell": each.cell,
            "change": each.change,
            **{name: getattr(each.value, name) for name in ("n", "mean", "std", "low", "high")},
            "step": _difference(each.step) if each.step else None,
        }
        for each in found.rungs
    ]
    return {"rungs": rungs, "total": _difference(found.total)}


def _path(found: SeedPath | None) -> dict[str, Any] | None:
    """Return what the looks of an adaptive study decided; None for a fixed number of seeds."""
    if found is None:
        return None
    looks = [
        {
            "seeds": look.seeds,
            "cells": look.cells,
            "decided": [{"comparison": comparison, "decision": decision} for comparison, decision in look.decided],
            "open": list(look.open),
        }
        for look in found.looks
    ]
    return {"looks": looks, "runs": found.runs, "fixed_runs": found.fixed_runs, "finished": found.finished}


def _search(findings: Findings) -> dict[str, Any] | None:
    """Return the choices of a search, and whether the ranking survives tuning; None for a study without one."""
    search = findings.search
    if search is None:
        return None
    cells = [
        {
            "cell": cell.label,
            "trials": cell.trials,
            "outcomes": dict(cell.outcomes),
            "chosen": [
                {"level": each.level, "trial": each.number, "values": dict(each.values), "score": each.score}
                for each in cell.chosen
            ],
        }
        for cell in search.cells
    ]
    ranking = {"verdict": search.ranking.verdict, "text": search.ranking.text} if search.ranking else None
    return {"cells": cells, "ranking": ranking}


def _cost(evidence: Evidence) -> dict[str, Any] | None:
    """Return what the completed runs and the trials of a study cost; None if no run reports its training time."""
    cost = study_cost(evidence)
    if cost is None:
        return None
    return {
        "runs": cost.runs,
        "seconds": cost.seconds,
        "gpu_hours": cost.gpu_hours,
        "gpu_energy_kwh": cost.energy_kwh,
        "runs_with_energy": cost.runs_with_energy,
        "usd": cost.usd,
        "co2_grams": cost.co2_grams,
    }


def _protocol(design: Design) -> dict[str, Any]:
    metric = design.metric
    shared = {
        name: value for name, value in design.cells[0].spec.items() if all(cell.spec.get(name) == value for cell in design.cells)
    }
    return {
        "dataset": design.dataset,
        "metric": {**metric.to_dict(), "label": metric.label, "difference_unit": metric.difference_unit},
        "preset": design.preset,
        "seeds": design.seeds,
        "factors": {name: list(levels) for name, levels in design.factors.items()},
        "baseline": dict(design.baseline),
        "skipped": [{"cell": cell, "reason": reason} for cell, reason in design.skipped],
        "settings": shared,
    }


def _provenance(evidence: Evidence) -> dict[str, Any]:
    design, runs = evidence.design, evidence.runs
    return {
        "commit": _distinct(runs["git.commit"]),
        "uncommitted_changes": bool((runs["git.dirty"] == "true").any()),
        "versions": {name: _distinct(runs[name]) for name in ("torch", "python")},
        "devices": _distinct(runs["device"]),
        "world_sizes": _distinct(runs["world_size"]),
        "training_version": design.training_version,
        "code_versions": _distinct(runs["code_version"]),
        "data_versions": list(design.data_versions),
        "submission": {name: text for name, text in design.origin.items() if name != "git.diff"},
    }


def _distinct(values: Iterable[Any]) -> list[str]:
    return [text for text in dict.fromkeys(map(str, values)) if text not in ("", "nan")]


def _plain(value: Any) -> Any:
    """Return a value as JSON values: NumPy's numbers as Python's, NaN and infinity as None, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
