"""Analyze a study: turn its evidence into findings about cells, comparisons and effects, with their caveats."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from ablations.engine.analysis.cost import cost_sentence, study_cost
from ablations.engine.analysis.designs.ladder import find_ladder
from ablations.engine.analysis.designs.screening import aliases_of, find_contrasts
from ablations.engine.analysis.evidence import COST_METRICS, Evidence, with_device_memory
from ablations.engine.analysis.findings import Anova, Answer, CellFinding, Comparison, FailedRun, Findings
from ablations.engine.analysis.number_format import ValueFormat, decimals_for
from ablations.engine.analysis.run_table import RunTable, make_run_table
from ablations.engine.analysis.statistics import contrasts
from ablations.engine.analysis.statistics.anova import fit_anova, spreads_differ
from ablations.engine.analysis.statistics.contrasts import reference_levels
from ablations.engine.analysis.statistics.estimate import MIN_SEEDS_FOR_P_VALUE, Estimate
from ablations.engine.analysis.statistics.failures import FailureTable, find_failures
from ablations.engine.analysis.statistics.family import Family
from ablations.engine.analysis.statistics.inference import Array, Scale, estimate_means, zero_tolerance
from ablations.engine.analysis.statistics.looks import declared_shares, looks_at, undeclared_sentence
from ablations.engine.analysis.statistics.pairing import seed_correlation
from ablations.engine.analysis.tuning.search_analysis import analyze_search
from ablations.engine.analysis.verdicts.conclusions import FactorEvidence, conclude_factor
from ablations.engine.study.design import Design
from ablations.engine.study.designs import FACTORIAL
from ablations.engine.study.pareto import pareto_front
from resnet_core.fields import counted

SHARED_CONDITIONS = ("code_version", "data_version", "world_size", "precision", "device", "torch", "python")
"""Conditions that should be the same in all runs. Commits may differ: only the code version covers the training code."""
MAX_NAMED = 3
"""Maximum number of cells, seeds or files that a text names. It gives only their number if there are more."""


def analyze_study(evidence: Evidence) -> Findings:
    """Return all findings about a study."""
    design = evidence.design
    table = make_run_table(evidence)
    failures = find_failures(table.values, table.outcomes, design.metric, design.chance)
    cells = _cell_findings(evidence, table, failures)
    formats = ValueFormat(design.metric, decimals_for(design.metric, table.values.ravel()))
    share, declared = looks_at(design, evidence.looks).share, declared_shares(design, evidence.looks)
    scale = Scale(tolerance=zero_tolerance(table.values), step=design.step, share=share)
    family = Family(design=design, values=table.values, failures=failures, scale=scale, looks=declared)
    variance = _anova(design, table.values, cells, formats)
    comparisons, screening = _comparisons(design, table, family), find_contrasts(design, family)
    return Findings(
        metric=design.metric,
        decimals=formats.decimals,
        cells=cells,
        comparisons=comparisons,
        effects=family.effects,
        interactions=family.interactions,
        anova=variance if isinstance(variance, Anova) else None,
        no_anova=variance if isinstance(variance, str) else "",
        answers=tuple(
            _answer(factor, design, family, cells, formats, aliases_of(screening, factor)) for factor in reference_levels(design)
        ),
        flags=tuple(filter(None, [*_design_flags(evidence), *_missing_result_flags(cells), *_condition_flags(evidence)])),
        tests=family.tests,
        effect_bonferroni=family.effect_bonferroni,
        screening=screening,
        ladder=find_ladder(design, cells, comparisons, family, formats),
        path=evidence.path,
        search=analyze_search(evidence, table.values, formats) if design.search else None,
        cost=cost_sentence(study_cost(evidence)),
    )


def _answer(
    factor: str,
    design: Design,
    family: Family,
    cells: Sequence[CellFinding],
    formats: ValueFormat,
    aliases: Sequence[str],
) -> Answer:
    found = FactorEvidence(
        effects=[each for each in family.effects if each.factor == factor],
        interactions=[each for each in family.interactions if factor in each.factors],
        simple=family.simple_effects(factor),
        others=[name for name in reference_levels(design) if name != factor],
        cells=cells,
        tests=family.tests,
        margin=design.margin,
        kind=design.kind,
        aliases=aliases,
    )
    return conclude_factor(factor, found, formats)


def _cell_findings(evidence: Evidence, table: RunTable, failures: FailureTable) -> tuple[CellFinding, ...]:
    runs, design = evidence.runs, evidence.design
    completed, others = runs[runs["outcome"] == "completed"], runs[runs["outcome"] != "completed"]
    labels = [cell.label for cell in design.cells]
    reported = with_device_memory(completed)[["cell", *COST_METRICS]].astype(dict.fromkeys(COST_METRICS, float))
    costs = reported.groupby("cell").mean().reindex(labels)
    reasons = others[others["message"] != ""].groupby("cell")["message"].unique()
    mixed = _mixed_conditions_by_cell(evidence)
    values, train_values = estimate_means(table.values), estimate_means(table.train_values)
    limits, train_limits = design.metric.limits(table.values.flat), design.metric.training.limits(table.train_values.flat)
    means = [math.nan if value.mean is None else design.metric.minimized(value.mean) for value in values]
    front = set(pareto_front(list(zip(costs["flops"].tolist(), means, strict=True))))
    return tuple(
        CellFinding(
            label=cell.label,
            levels=cell.levels,
            planned=len(cell.fingerprints),
            value=values[row].within(*limits),
            train_value=train_values[row].within(*train_limits),
            problems=dict(Counter(each for each in table.outcomes[row][: len(cell.fingerprints)] if each != "completed")),
            reasons=tuple(reasons.get(cell.label, ())),
            median=float(np.nanmedian(table.values[row])) if values[row].n else None,
            failed_to_train=_named_runs(table.values[row], failures.failed[row] & ~failures.diverged[row]),
            outlying=_named_runs(table.values[row], failures.outlying[row]),
            on_pareto_front=row in front,
            flags=mixed.get(cell.label, ()),
            **{name: None if math.isnan(value) else value for name, value in zip(COST_METRICS, cost, strict=True)},
        )
        for row, (cell, cost) in enumerate(zip(design.cells, costs.to_numpy().tolist(), strict=True))
    )


def _named_runs(values: Array, flags: npt.NDArray[np.bool_]) -> tuple[FailedRun, ...]:
    return tuple(FailedRun(seed=seed, value=float(values[seed])) for seed in np.flatnonzero(flags).tolist())


def _comparisons(design: Design, table: RunTable, family: Family) -> tuple[Comparison, ...]:
    found = []
    for each in contrasts.comparisons(design):
        ((row, reference),) = each.pairs
        difference, seeds = family.difference(each.terms), family.seeds_shown(each.terms)
        found.append(
            Comparison(
                cell=design.cells[row].label,
                baseline=design.cells[reference].label,
                difference=difference,
                planned=seeds,
                failures=family.failure_test(each.terms),
                correlation=seed_correlation(table.values[row, :seeds], table.values[reference, :seeds]),
                note=_comparison_note(difference, table.outcomes[row][:seeds], table.outcomes[reference][:seeds]),
            )
        )
    return tuple(found)


def _comparison_note(difference: Estimate, outcomes: Sequence[str], of_baseline: Sequence[str]) -> str:
    """Return which runs a comparison lacks, and why it has no p-value; empty if nothing is missing."""
    missing: dict[str, list[str]] = defaultdict(list)
    for seed, (outcome, other) in enumerate(zip(outcomes, of_baseline, strict=True)):
        if outcome != "completed":
            missing[outcome].append(str(seed))
        elif other != "completed":
            missing[f"{other} in the baseline"].append(str(seed))
    notes = []
    if missing:
        why = ", ".join(f"{_seeds_text(seeds)} {outcome}" for outcome, seeds in missing.items())
        notes.append(f"{difference.n} of {counted(len(outcomes), 'pair')} complete: {why}")
    if 0 < difference.n < MIN_SEEDS_FOR_P_VALUE:
        notes.append(f"no p-value: {counted(difference.n, 'seed')}, and a test needs {MIN_SEEDS_FOR_P_VALUE}")
    if difference.std == 0 and difference.mean is not None:
        notes.append("the same difference in every seed" if difference.mean else "no difference in any seed")
    return "; ".join(notes)


def _anova(design: Design, values: Array, cells: Sequence[CellFinding], formats: ValueFormat) -> Anova | str:
    """Return the analysis of variance of the completed runs, or the reason why there is none."""
    varied = list(reference_levels(design))
    if not varied:
        return "no factor has two levels"
    if design.kind != FACTORIAL:
        return f"the design is {design.kind}, and only a factorial one separates all interactions"
    combinations = math.prod(len(design.factors[name]) for name in varied)
    if len(cells) < combinations:
        return f"the design lacks {combinations - len(cells)} of {combinations} combinations"
    if empty := [cell.label for cell in cells if not cell.value.n]:
        return f"no run completed in {_names_or_count(empty, 'cell')}"
    rows, seeds = (indices.tolist() for indices in np.nonzero(np.isfinite(values)))
    levels = {name: [design.factors[name].index(cells[row].levels[name]) for row in rows] for name in varied}
    planned = [cell.planned for cell in cells]
    note = f"All {counted(len(rows), 'planned run')} completed."
    if len(rows) < sum(planned):
        note = (
            f"The design is unbalanced: {len(rows)} of {counted(sum(planned), 'run')} completed, and type II sums of "
            "squares use only these."
        )
    elif min(planned) < max(planned):
        note = f"The design is unbalanced: cells have {min(planned)} to {max(planned)} seeds, and type II sums of squares use all."
    if spreads_differ(values, design.step):
        stds = [cell.value.std for cell in cells if cell.value.std is not None]
        spread = formats.in_points(f"{formats.magnitude(min(stds))} to {formats.magnitude(max(stds))}")
        note += (
            f" The analysis assumes equal variances, but the standard deviations of cells differ ({spread}): "
            "rely on the confidence intervals of the differences instead."
        )
    return fit_anova(values[rows, seeds].tolist(), seeds, levels, note)


def _design_flags(evidence: Evidence) -> list[str]:
    """Return flags for generated images, and for looks that were not planned."""
    generated = "The images are generated: this study checks that everything works, and shows nothing else"
    flags = [generated] if evidence.design.dataset == "synthetic" else []
    return [*flags, undeclared_sentence(evidence.design, evidence.looks)]


def _missing_result_flags(cells: Sequence[CellFinding]) -> list[str]:
    """Return flags for missing results, diverged runs, and too few seeds for tests."""
    planned = sum(cell.planned for cell in cells)
    flags = []
    if absent := sum(cell.without_result for cell in cells):
        where = _names_or_count([cell.label for cell in cells if cell.without_result], "cell")
        flags.append(
            f"The study is incomplete: {absent} of {counted(planned, 'run')} {'has' if absent == 1 else 'have'} no result ({where})"
        )
    if diverged := sum(cell.problems.get("diverged", 0) for cell in cells):
        where = _names_or_count([cell.label for cell in cells if cell.problems.get("diverged")], "cell")
        flags.append(f"{diverged} of {counted(planned, 'run')} diverged ({where})")
    if (seeds := max(cell.planned for cell in cells)) < MIN_SEEDS_FOR_P_VALUE:
        flags.append(f"There are no p-values: they need {MIN_SEEDS_FOR_P_VALUE} seeds, and the study has {seeds}")
    return flags


def _differing_conditions(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Return, for each condition that differs between runs, the completed and diverged runs with a known value."""
    results = evidence.runs[evidence.runs["outcome"].isin(["completed", "diverged"])]
    shown = {name: results[name].str.replace(r"(\w{8})\w+", r"\1", regex=True) for name in ("code_version", "data_version")}
    shown["python"] = results["python"].str.split(".").str[:2].str.join(".")
    results = results.assign(**shown)
    varied = {*evidence.design.factors, *(("data_version",) if evidence.design.training_examples else ())}
    fixed = [name for name in SHARED_CONDITIONS if name not in varied]
    known = {name: results[results[name] != ""] for name in fixed}
    return {name: runs for name, runs in known.items() if runs[name].nunique() > 1}


def _mixed_conditions_by_cell(evidence: Evidence) -> dict[str, tuple[str, ...]]:
    """Return, by cell, the conditions that differ between runs of that cell."""
    found: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for name, runs in _differing_conditions(evidence).items():
        values = runs.groupby("cell")[name].unique()
        for cell, several in values[values.str.len() > 1].items():
            found[str(cell)] += (f"trained with {name.replace('_', ' ')} {' and '.join(several)}",)
    return found


def _condition_flags(evidence: Evidence) -> list[str]:
    """Return flags for conditions that differ between runs although the study does not vary them."""
    flags = []
    if counts := evidence.design.training_examples:
        of_cells, examples = ", ".join(f"{count:,} ({where})" for where, count in counts.items()), f"{evidence.design.example}s"
        flags.append(f"Cells train on different numbers of {examples}: {of_cells}. Evaluation {examples} and seeds are the same")
    for name, runs in _differing_conditions(evidence).items():
        if runs.groupby("cell")[name].nunique().max() == 1:
            cells = runs.groupby(name, sort=False)["cell"].unique()
            where = [f"{value} ({_names_or_count(list(of_value), 'cell')})" for value, of_value in cells.items()]
        else:
            where = [f"{value} ({counted(count, 'run')})" for value, count in runs[name].value_counts().items()]
        flags.append(f"Runs differ in {name.replace('_', ' ')}: {', '.join(where)}")
    dirty = evidence.runs[evidence.runs["git.dirty"] == "true"]
    if len(dirty):
        files = dict.fromkeys(name for names in dirty["git.changed"] if names for name in names.split(", "))
        changed = f" in {_names_or_count(list(files), 'file')}" if files else ""
        flags.append(f"{counted(len(dirty), 'run')} trained with uncommitted changes{changed}")
    return flags + _restart_flags(evidence)


def _restart_flags(evidence: Evidence) -> list[str]:
    """Return a flag for runs of a task that may have continued from a checkpoint, which may lack the state of random numbers.

    The checkpoints of image classification have all that their training depends on.
    """
    runs = evidence.runs
    count = int((runs["outcome"].isin(["completed", "diverged"]) & (runs["attempts"] > 1)).sum())
    if not (evidence.design.task and count):
        return []
    return [
        f"{counted(count, 'run')} {'was' if count == 1 else 'were'} started more than once. Continuing from a checkpoint is exact "
        "only if this training saves the state of its random numbers"
    ]


def _names_or_count(names: Sequence[str], noun: str) -> str:
    return ", ".join(names) if len(names) <= MAX_NAMED else counted(len(names), noun)


def _seeds_text(seeds: Sequence[str]) -> str:
    if len(seeds) > MAX_NAMED:
        return counted(len(seeds), "seed")
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
