"""A study on several data sets: its ordinary studies one after another, then the summary over them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ablations.engine.cli import dispatch
from ablations.engine.environment import signals
from ablations.engine.environment.provenance import redact_secrets
from ablations.engine.study.dataset_studies import StudyOnDataset, check_plans, split_by_dataset
from ablations.engine.study.definition import Study
from ablations.engine.study.expectations import Expectation
from ablations.engine.study.plan import Draft, Plan
from ablations.engine.study.request import ALL_DESIGNS, Options
from resnet_core.fields import ConfigError, reject

if TYPE_CHECKING:
    from ablations.engine.submission.dataset_summary import StoredDatasets


def carry_out(study: Study, options: Options, emit: Callable[[str], object]) -> int:
    """Do what the options ask for, on each data set of a study and over all of them; return the exit code.

    Args:
        study: the study, on one data set or on several.
        options: its parsed command line.
        emit: receives the JSON document, if `options.json`.
    """
    parts = split_by_dataset(study, options.request)
    if not parts:
        return dispatch.carry_out(study, options, emit)
    if options.request.design == ALL_DESIGNS:
        raise reject("--design", ALL_DESIGNS, f"accepted on one data set, such as --preset {parts[0].study.preset}")
    if options.report:
        return _report(parts, options, emit)
    plans, expected = make_plans(parts, options)
    if options.plan:
        return _show_plans(parts, plans, options, emit)
    code, interrupted = train(parts, plans, options)
    if interrupted:
        return signals.INTERRUPTED_EXIT_CODE
    try:
        given = read(parts, plans, options, details=False)
    except ConfigError as error:
        if not code:
            raise
        print(f"error: {redact_secrets(str(error))}", file=sys.stderr)
        return code
    return _conclude(given, expected, options, emit, code)


def make_plans(parts: Sequence[StudyOnDataset], options: Options) -> tuple[list[Plan], tuple[Expectation, ...]]:
    """Return the plan on each data set, and the expectations; raise ConfigError for a wrong request.

    All plans are made before the first run of any study starts.
    """
    plans = [dispatch.make_plan_of(each.study, _options(each, options)) for each in parts]
    check_plans([each.dataset for each in parts], plans)
    return plans, _expectations(plans, options)


def train(parts: Sequence[StudyOnDataset], plans: Sequence[Plan], options: Options) -> tuple[int, bool]:
    """Train what each study lacks, and report on it; return the largest exit code, and whether the user interrupted it.

    A failed run does not stop the other studies, an interrupt does.
    """
    code = 0
    with signals.noted_interrupts() as interrupts:
        for part, plan in zip(parts, plans, strict=True):
            code = max(code, dispatch.train(plan, _options(part, options)))
            if interrupts.received:
                return code, True
    return code, False


def read(
    parts: Sequence[StudyOnDataset], studies: Sequence[Plan | Draft], options: Options, *, details: bool = True
) -> "StoredDatasets":
    """Return what MLflow has of a study on several data sets; raise ConfigError if it has no study on one of them."""
    from ablations.engine.submission.dataset_summary import StoredDatasets
    from ablations.engine.submission.reporting import read_study

    found = [read_study(study, _options(part, options), details=details) for part, study in zip(parts, studies, strict=True)]
    return StoredDatasets(tuple(each.dataset for each in parts), tuple(found))


def drafts(parts: Sequence[StudyOnDataset], options: Options) -> tuple[list[Draft], tuple[Expectation, ...]]:
    """Return the cells on each data set without reading data, and the expectations; raise ConfigError for a wrong request."""
    drafted = [dispatch.draft(each.study, _options(each, options)) for each in parts]
    check_plans([each.dataset for each in parts], drafted)
    return drafted, _expectations(drafted, options)


def _report(parts: Sequence[StudyOnDataset], options: Options, emit: Callable[[str], object]) -> int:
    drafted, expected = drafts(parts, options)
    given = read(parts, drafted, options)
    from ablations.engine.submission.reporting import rebuild_report

    code = max(rebuild_report(each) for each in given.stored)
    return _conclude(given, expected, options, emit, code)


def _conclude(
    given: "StoredDatasets", expected: Sequence[Expectation], options: Options, emit: Callable[[str], object], code: int
) -> int:
    """Print and publish the summary, print the assessed expectations, emit the document, and return the exit code."""
    from ablations.engine.analysis.verdicts.expectations import assess
    from ablations.engine.environment.console import make_console, print_line
    from ablations.engine.report.findings_json import findings_document, to_json
    from ablations.engine.submission.dataset_summary import show_and_publish

    console = make_console()
    show_and_publish(console, given)
    assessed = [assess(expected, each.evidence, each.findings) for each in given.stored]
    for name, of_dataset in zip(given.names, assessed, strict=True):
        for each in of_dataset:
            print_line(console, f"{name}: {each.text}")
    if options.json:
        documents = [
            findings_document(each.evidence, each.findings, found) for each, found in zip(given.stored, assessed, strict=True)
        ]
        emit(to_json(given.document(documents)))
    return code or dispatch.expectations_exit_code([each for of_dataset in assessed for each in of_dataset])


def _show_plans(parts: Sequence[StudyOnDataset], plans: Sequence[Plan], options: Options, emit: Callable[[str], object]) -> int:
    from ablations.engine.submission.planning import dataset_plans
    from ablations.engine.submission.planning.preview import examine

    names = [each.dataset for each in parts]
    found = [examine(plan, _options(part, options)) for part, plan in zip(parts, plans, strict=True)]
    if not options.json:
        dataset_plans.show(names, found)
        return 0
    from ablations.engine.report.findings_json import to_json

    emit(to_json(dataset_plans.document(names, found)))
    return 0


def _expectations(studies: Sequence[Draft | Plan], options: Options) -> tuple[Expectation, ...]:
    """Return the parsed expectations, which every study must be able to decide."""
    first, *_ = [dispatch.expectations(each, options) for each in studies]
    return first


def _options(part: StudyOnDataset, options: Options) -> Options:
    return replace(options, request=part.request)
