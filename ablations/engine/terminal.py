"""What a person sees in a terminal, or reads in a log: progress while a study runs, and its table."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablations.engine.analysis import CellSummary, mean_and_std
from ablations.engine.ledger import Entry
from ablations.engine.study import Plan, Run
from resnet_core.fields import printable

LOG_WIDTH = 120
HEARTBEAT_SECONDS = 60.0


def make_console() -> Console:
    """A console of the terminal's width, or of a fixed one where output goes to a file or a job's log."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def say(console: Console, text: str) -> None:
    """One line, which may hold anything: names of files, errors of libraries."""
    console.print(Text(printable(text)), soft_wrap=True)


class Progress:
    """Live table of what is running, above a line of totals. Not in a terminal: one line per finished run."""

    def __init__(self, console: Console, plan: Plan, todo: Sequence[Run]) -> None:
        self.console, self.todo = console, todo
        self.images = len(plan.dataset.train.labels)
        self.scored_on = plan.base.data.scored_on
        self.reused = len(plan.runs) - len(todo)
        self.epochs = {run.fingerprint: 0 for run in todo}
        self.running: dict[str, tuple[Run, Mapping[str, float]]] = {}
        self.outcomes: dict[str, str] = {}
        self.began: float | None = None
        self.heard = time.monotonic()
        self._lock = threading.Lock()
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, run: Run) -> None:
        with self._lock:
            self.running[run.fingerprint] = (run, {})
            self.began = self.began or time.monotonic()  # processes are up: what it took to get there does not repeat

    def epoch(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
        with self._lock:
            self.running[run.fingerprint] = (run, metrics)
            self.epochs[run.fingerprint] = epoch
        if self._live is None and time.monotonic() > self.heard + HEARTBEAT_SECONDS:
            self.console.print(self._totals())
            self.heard = time.monotonic()

    def ended(self, run: Run, outcome: str, message: str = "") -> None:
        with self._lock:
            _, metrics = self.running.pop(run.fingerprint, (run, {}))
            self.outcomes[run.fingerprint] = outcome
        error = metrics.get(f"{self.scored_on}/error")
        result = message if outcome != "completed" or error is None else f"{self.scored_on} error {error:.2f} %"
        done = f"[{len(self.outcomes):>{len(str(len(self.todo)))}}/{len(self.todo)}]"
        say(self.console, f"{done} {run}: {outcome}, {result} · {self._eta()}")
        self.heard = time.monotonic()

    def interrupted(self, run: Run, message: str) -> None:
        """Its process died; it waits for another."""
        with self._lock:
            self.running.pop(run.fingerprint, None)
        self.note(run, message)

    def note(self, run: Run, message: str) -> None:
        say(self.console, f"{run}: {message}")

    def _share(self) -> float:
        """Share of the work that is done, weighing epochs by depth."""
        done = total = 0.0
        for run in self.todo:
            epochs = run.spec.optim.total_epochs(self.images)
            ended = run.fingerprint in self.outcomes
            total += run.spec.model.depth * epochs
            done += run.spec.model.depth * (epochs if ended else self.epochs[run.fingerprint])
        return done / total

    def _eta(self) -> str:
        share = self._share()
        elapsed = time.monotonic() - (self.began or time.monotonic())
        if len(self.outcomes) == len(self.todo):
            return f"took {duration(elapsed)}"
        return f"{duration(elapsed * (1 - share) / share)} left" if share > 0.02 else "no estimate yet"

    def _totals(self) -> Text:
        failed = sum(outcome not in ("completed", "diverged") for outcome in self.outcomes.values())
        parts = [f"{len(self.outcomes) - failed} of {len(self.todo)} done", f"{len(self.running)} running", f"{failed} failed"]
        if self.reused:
            parts.append(f"{self.reused} reused")
        return Text(" · ".join([*parts, self._eta()]))

    def _render(self) -> RenderableType:
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column("running")
        for name in ("epoch", "train error", f"{self.scored_on} error"):
            table.add_column(name, justify="right")
        with self._lock:
            for run, metrics in self.running.values():
                epoch = f"{self.epochs[run.fingerprint]}/{run.spec.optim.total_epochs(self.images)}"
                errors = [f"{metrics[name]:.2f} %" if metrics else "–" for name in ("train/error", f"{self.scored_on}/error")]
                table.add_row(str(run), epoch, *errors)
            return Group(table, self._totals())


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def result_view(plan: Plan, summaries: Sequence[CellSummary]) -> RenderableType:
    """Mean ± std of the final errors over seeds, with n, parameters and seconds per run."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in plan.factors:
        table.add_column(name)
    columns = [f"{plan.base.data.scored_on} error %", "train error %", "n", "parameters", "s / run"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    notes = any(s.problems for s in summaries)
    if notes:
        table.add_column("note")
    for s in summaries:
        n = str(s.n) if s.n == s.planned else f"{s.n} of {s.planned}"
        row = [str(level) for _, level in s.cell.levels]
        row += [_mean_std(s.test_error), _mean_std(s.train_error), n]
        row += ["–" if s.parameters is None else f"{s.parameters:,}", "–" if s.seconds is None else f"{s.seconds:.1f}"]
        if notes:
            row.append(", ".join(f"{count} {word}" for word, count in s.problems.items()))
        table.add_row(*row)
    return Group(_title(plan), table)


def _title(plan: Plan) -> Text:
    return Text(f"{plan.study.name} on {plan.dataset.name}: {plan.study.question}", "bold")


def plan_view(plan: Plan, done: Mapping[str, Entry]) -> RenderableType:
    """What a study would do: cells with their cost, how many of their runs exist already, and what is skipped and why.

    Memory is that of the activations which a training step keeps.
    """

    from resnet_core import measure_cost  # imports torch

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in plan.factors:
        table.add_column(name)
    for name in ("seeds", "done", "epochs", "parameters", "multiply-adds", "MB / image"):
        table.add_column(name, justify="right")
    images = len(plan.dataset.train.labels)
    missing_flops = 0
    for cell in plan.cells:
        runs = [run for run in plan.runs if run.cell == cell]
        spec = runs[0].spec
        cost = measure_cost(spec.model, plan.dataset.image_size)
        reused = sum(run.fingerprint in done for run in runs)
        steps = spec.optim.total_steps(images)
        # Backward costs twice a forward pass.
        missing_flops += 3 * cost.flops * steps * spec.optim.global_batch_size * (len(runs) - reused)
        row = [*map(str, dict(cell.levels).values()), str(len(runs)), str(reused), str(spec.optim.total_epochs(images))]
        table.add_row(*row, f"{cost.parameters:,}", f"{cost.flops:,}", f"{cost.activation_bytes / 1e6:.2f}")
    skipped = [Text(f"skipped {cell}: {reason}") for cell, reason in plan.skipped]
    rest = len(plan.runs) - sum(run.fingerprint in done for run in plan.runs)
    total = f"{len(plan.runs)} runs, {rest} to train: {missing_flops:.2e} multiply-adds{_expected(plan, done)}"
    return Group(_title(plan), table, *skipped, Text(total))


def _expected(plan: Plan, done: Mapping[str, Entry]) -> str:
    """How long the missing runs would take one after another, judged by finished ones of the same cell."""
    seconds = 0.0
    for run in plan.runs:
        if run.fingerprint not in done:
            same = [done[r.fingerprint].metrics for r in plan.runs if r.cell == run.cell and r.fingerprint in done]
            known = [metrics["train_seconds"] for metrics in same if "train_seconds" in metrics]
            if not known:
                return ""
            seconds += sum(known) / len(known)
    return f", about {duration(seconds)} one after another" if seconds else ""


def _mean_std(values: Sequence[float]) -> str:
    mean, std = mean_and_std(values)
    if mean is None:
        return "–"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
