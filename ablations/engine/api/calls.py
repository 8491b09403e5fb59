"""`run` and `load`, the functions of the Python API."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ablations.engine.api.datasets_result import DatasetsResult
from ablations.engine.api.keywords import parse_keywords
from ablations.engine.api.result import Result
from ablations.engine.cli import datasets, dispatch
from ablations.engine.cluster import local_service
from ablations.engine.environment import provenance, signals
from ablations.engine.environment.console import make_console
from ablations.engine.study.dataset_studies import StudyOnDataset, split_by_dataset
from ablations.engine.study.definition import Study
from ablations.engine.study.expectations import Expectation
from ablations.engine.study.plan import Draft, Plan
from ablations.engine.study.request import Options
from resnet_core.fields import reject


def run(study: Study, **options: Any) -> Result:
    """Train what a study lacks, and return its results.

    The call does what `python STUDY.py` does with the same options: finished runs are read from MLflow, the others are trained on
    the Ray that `RAY_ADDRESS` names, on the local service, or on a Ray of this process, which later calls use again. After an
    interrupt (Ctrl-C, or the stop button of a notebook), the same call continues.

    Args:
        study: the study.
        **options: options of the command line as keywords, with `_` for `-`: `seeds`, `preset`, `levels`, `settings` (`--set`),
            `workers`, `expect`, `max_concurrent`, `tracking_uri`, …

    Returns:
        The results. `complete` is False if some run has none. With several data sets, a `DatasetsResult`.

    Raises:
        ConfigError: the request is wrong; nothing was started. Or MLflow cannot be read at the end.
        KeyboardInterrupt: the call was interrupted; the runs keep their latest checkpoints.

    Example:
        >>> result = run(STUDY, preset="smoke", seeds=3, levels={"depth": (8, 14)})  # doctest: +SKIP
        >>> result.cells[["depth", "mean", "difference", "p_adjusted"]]  # doctest: +SKIP
    """
    chosen = _options(study, options, training=True)
    with _ray_cluster(), provenance.called_as(_call("run", study, options)), signals.interruptible() as interrupts:
        if parts := split_by_dataset(study, chosen.request):
            plans, expected = datasets.make_plans(parts, chosen)
        else:
            plan = dispatch.make_plan_of(study, chosen)
            expected = dispatch.expectations(plan, chosen)
        try:
            if parts:
                datasets.train(parts, plans, chosen)
            else:
                dispatch.train(plan, chosen)
        except Exception as error:
            if interrupts.received:  # a library may turn the interrupt into an error of its own
                raise KeyboardInterrupt from error
            raise
        if interrupts.received:  # the study has been closed, and the same call continues
            raise KeyboardInterrupt
        if parts:
            return _datasets_result(parts, plans, chosen, expected, publish=True)
        return _result(study, plan, chosen, expected)


def load(study: Study, **options: Any) -> Result:
    """Return the results of a study that was submitted before, from MLflow alone. Ray is not used.

    Args:
        study: the study.
        **options: keywords as for `run`, of which those apply that say which study, levels and seeds: `preset`, `design`, `seeds`,
            `levels`, `settings`, `workers`, `expect`, `tracking_uri`, `storage`, and those of a search.

    Returns:
        The results of the latest submission, or of the requested levels and seeds of it.

    Raises:
        ConfigError: the request is wrong, MLflow does not answer, or it has no such study.

    Example:
        >>> load(STUDY, preset="smoke").findings["answers"][0]["verdict"]  # doctest: +SKIP
        'matters'
    """
    chosen = _options(study, options, training=False)
    with _ray_cluster():
        if parts := split_by_dataset(study, chosen.request):
            drafts, expected = datasets.drafts(parts, chosen)
            return _datasets_result(parts, drafts, chosen, expected, publish=False)
        drafted = dispatch.draft(study, chosen)
        expected = dispatch.expectations(drafted, chosen)
        return _result(study, drafted, chosen, expected)


def _result(study: Study, planned: Draft | Plan, chosen: Options, expected: Sequence[Expectation]) -> Result:
    """Return what MLflow has of a study, and record that it was read."""
    from ablations.engine.submission.reporting import read_study, record_look_at

    stored = read_study(planned, chosen)
    record_look_at(stored, make_console())
    return Result(study, stored, chosen, expected)


def _datasets_result(
    parts: Sequence[StudyOnDataset],
    studies: Sequence[Draft | Plan],
    chosen: Options,
    expected: Sequence[Expectation],
    *,
    publish: bool,
) -> DatasetsResult:
    """Return what MLflow has of a study on several data sets, and record that it was read."""
    from ablations.engine.submission.dataset_summary import show_and_publish
    from ablations.engine.submission.reporting import record_look_at

    given = datasets.read(parts, studies, chosen)
    results = {}
    for part, stored in zip(parts, given.stored, strict=True):
        record_look_at(stored, make_console())
        results[part.dataset] = Result(part.study, stored, replace(chosen, request=part.request), expected)
    if publish:
        show_and_publish(make_console(), given)
    return DatasetsResult(given, results, expected)


def _options(study: Study, given: Mapping[str, Any], *, training: bool) -> Options:
    if not isinstance(study, Study):
        raise reject("study", study, "accepted: a Study")
    with _ray_cluster():  # the service, if it runs, provides the default of the tracking URI
        return parse_keywords(study, given, training=training)


@contextmanager
def _ray_cluster() -> Iterator[None]:
    """Choose the Ray cluster as a command does; afterwards, `RAY_ADDRESS` is what it was before."""
    before = os.environ.get("RAY_ADDRESS")
    try:
        local_service.select_ray_cluster()
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before


def _call(function: str, study: Study, options: Mapping[str, Any]) -> str:
    """Return the call as text, which takes the place of the command in reports and messages."""
    return f"{function}({', '.join([study.name, *(f'{name}={value!r}' for name, value in options.items())])})"
