"""A study from plan to table: what is missing runs, everything lands in MLflow, and the table is read back from there."""

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from rich.console import Console
from rich.text import Text

from ablations.engine import ledger, paths, terminal
from ablations.engine.analysis import CellSummary, cell_metrics, summarise
from ablations.engine.ledger import Entry
from ablations.engine.options import Options
from ablations.engine.study import Plan, Run
from ablations.engine.tracking import Tracker, connect, is_new
from ablations.engine.trial import Job

if TYPE_CHECKING:
    from ablations.engine.scheduler import Needs

MENTIONED_WAIT = 0.1
"""Share of an epoch above which waiting for images is mentioned."""


def execute(plan: Plan, options: Options) -> int:
    """Brings a study to its end and prints its table. Returns the exit code: 0 if every run has a result, else 1."""
    console = terminal.make_console()
    client = _connect(options)
    known = ledger.find(client, plan)
    done = {} if options.fresh else {f: entry for f, entry in known.items() if entry.done}
    todo = [run for run in plan.runs if run.fingerprint not in done]
    if options.plan:
        console.print(terminal.plan_view(plan, done))
        return 0
    needs = _needs(plan, options) if todo else None  # refuses before anything is written
    tracker = Tracker(client, plan, known, again=options.fresh)
    if needs:
        console.print(f"{plan.study.name} on {plan.dataset.name}: {len(todo)} runs to train, {len(done)} done already.")
        _train(console, plan, options, needs, tracker, todo)
    else:
        console.print(f"{plan.study.name} on {plan.dataset.name}: all {len(done)} runs are in MLflow already.")
    lost = tracker.flush()
    entries = ledger.find(client, plan)
    summaries = summarise(plan, entries)
    complete = not lost and not any(summary.without_result for summary in summaries)
    tracker.close("FINISHED" if complete else "FAILED", cell_metrics(summaries, plan.base.data.scored_on))
    _print_results(console, plan, entries, summaries, lost, options)
    up_to_date = tracker.was_finished and not todo
    if up_to_date or _log_figures(console, client, plan, entries, tracker):
        console.print(f"Figures: artifacts of its run “{plan.title}”.")
    if options.log_models:
        from ablations.engine.models import log_models  # its packages are wanted here only

        folders = {fingerprint: checkpoint_folder(fingerprint, entry.generation) for fingerprint, entry in entries.items()}
        log_models(client, plan, entries, folders, options.storage)
    return 0 if complete else 1


def _connect(options: Options) -> MlflowClient:
    """MLflow, and Ray at the same time where it is sure to be needed: making a database and starting Ray take seconds each."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        connecting = pool.submit(connect, options.tracking_uri)
        if is_new(options.tracking_uri) and not options.plan:
            from ablations.engine import scheduler

            scheduler.connect()
        return connecting.result()


def _needs(plan: Plan, options: Options) -> "Needs":
    """What a run takes from the cluster; raises ConfigError where that, or an address, does not suit the cluster."""
    from ablations.engine import scheduler  # Ray: only where something runs

    needs = scheduler.Needs(
        workers=plan.base.world_size, cpus_per_worker=options.cpus_per_worker, gpus_per_worker=options.gpus_per_worker
    )
    scheduler.connect()
    needs.check()
    scheduler.check_reachable("--storage", options.storage)
    scheduler.check_reachable("--tracking-uri", options.tracking_uri.removeprefix("sqlite:///"))
    return needs


def _train(console: Console, plan: Plan, options: Options, needs: "Needs", tracker: Tracker, todo: Sequence[Run]) -> None:
    """Trains runs on Ray and tracks them."""
    from ablations.engine import scheduler

    jobs = [_job(run, plan.dataset.version, tracker.generation(run), options) for run in todo]
    with terminal.Progress(console, plan, todo) as progress:
        relay = _Relay(todo, tracker, progress)
        scheduler.execute(jobs, needs, max_concurrent=options.max_concurrent, listener=relay, scratch=paths.home() / "tune")
        relay.stop_rest()


def _log_figures(console: Console, client: MlflowClient, plan: Plan, entries: Mapping[str, Entry], tracker: Tracker) -> bool:
    """Draws the study as far as it is done; returns whether its figures are in MLflow.

    Results do not depend on it: what goes wrong here is told, and that is all.
    """
    try:
        from ablations.engine import figures  # matplotlib: not for plans and lookups

        curves, seen = ledger.curves(client, plan, entries), ledger.probes(client, plan, entries)
        drawn = {"curves": figures.curves_figure(curves)} if len(curves) else {}
        for probe, draw in (("responses", figures.responses_figure), ("gradients", figures.gradients_figure)):
            if (seen["probe"] == probe).any():
                drawn[probe] = draw(seen[seen["probe"] == probe])
        with tempfile.TemporaryDirectory() as folder:
            for name, figure in drawn.items():
                for suffix in (".png", ".svg"):
                    figures.save(figure, Path(folder, name).with_suffix(suffix))
            tracker.log_folder(folder, "figures")
    except Exception as error:  # a store's own library may raise anything
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        console.print(Text(f"The figures could not be drawn or stored: {message}"), soft_wrap=True)
        return False
    return True


def _job(run: Run, data_version: str, generation: int, options: Options) -> Job:
    return Job(
        fingerprint=run.fingerprint,
        spec=run.spec.flat(),
        data_version=data_version,
        folder=checkpoint_folder(run.fingerprint, generation),
        storage=options.storage,
        cache=str(paths.data_cache()),
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
        download=options.request.download,
    )


def checkpoint_folder(fingerprint: str, generation: int) -> str:
    """Name of the folder of a run's checkpoints; `--fresh` starts another one."""
    return fingerprint if generation == 1 else f"{fingerprint}-{generation}"


def _print_results(
    console: Console, plan: Plan, entries: Mapping[str, Entry], summaries: Sequence[CellSummary], lost: int, options: Options
) -> None:
    console.print()
    console.print(terminal.result_view(plan, summaries))
    for run in plan.runs:
        entry = entries.get(run.fingerprint)
        if entry and entry.outcome in ("diverged", "oom", "failed"):
            console.print(Text(f"{run}: {entry.outcome}, {entry.tags.get('message', '')}"), soft_wrap=True)
    experiment = next((entry.experiment_id for entry in entries.values()), "")
    address = f"{options.tracking_uri}/#/experiments/{experiment}" if "http" in options.tracking_uri else options.tracking_uri
    console.print(Text(f"MLflow: {address}"), soft_wrap=True)
    if lost:
        console.print(f"{lost} records did not reach MLflow in time.")
    without = sum(summary.without_result for summary in summaries)
    if without:
        console.print(f"{without} of {len(plan.runs)} runs have no result. The same command again trains just those.")


class _Relay:
    """Passes what the scheduler hears on to the tracker and to the terminal."""

    def __init__(self, runs: Sequence[Run], tracker: Tracker, progress: terminal.Progress) -> None:
        self.runs = {run.fingerprint: run for run in runs}
        self.tracker, self.progress = tracker, progress
        self.open: dict[str, Run] = {}
        self.waited: set[str] = set()

    def started(self, fingerprint: str) -> None:
        run = self.open[fingerprint] = self.runs[fingerprint]
        self.tracker.started(run)
        self.progress.started(run)

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        run = self.runs[fingerprint]
        if "outcome" in report:
            self._end(run, report["outcome"], report.get("message", ""), report.get("traceback", ""))
        elif "restart" in report:
            self.tracker.started(run)
            self.progress.note(run, f"a worker died, going on from the last checkpoint ({report['restart']})")
        else:
            self.tracker.epoch(run, report["epoch"], report["metrics"], report["device"], report["probes"])
            self.progress.epoch(run, report["epoch"], report["metrics"])
            self._mention_waiting(run, report["metrics"])

    def _mention_waiting(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Says once where decoding, not training, sets the pace."""
        share = metrics.get("data_wait_seconds", 0) / metrics["epoch_seconds"]
        if share > MENTIONED_WAIT and run.fingerprint not in self.waited:
            self.waited.add(run.fingerprint)
            self.progress.note(run, f"waited for images {share:.0%} of an epoch: more --cpus-per-worker would decode faster")

    def died(self, fingerprint: str, message: str, *, final: bool) -> None:
        run = self.runs[fingerprint]
        if final:
            self._end(run, "failed", message)
        else:
            self.progress.interrupted(run, f"its process died, going on from the last checkpoint ({message})")

    def stop_rest(self) -> None:
        """Ends what was interrupted."""
        for run in list(self.open.values()):
            self._end(run, "stopped", "the study was interrupted")

    def _end(self, run: Run, outcome: str, message: str, traceback: str = "") -> None:
        self.open.pop(run.fingerprint, None)
        self.tracker.ended(run, outcome, message, traceback)
        self.progress.ended(run, outcome, message)
