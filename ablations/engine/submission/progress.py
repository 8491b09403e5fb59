"""Live progress of a study in the terminal."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ablations.engine.analysis import number_format
from ablations.engine.environment.console import format_duration, print_line
from ablations.engine.report.fitted_table import FittedTable
from ablations.engine.study.plan import Plan, Run
from ablations.engine.task.metric import Metric

TOTALS_INTERVAL_SECONDS = 60.0
"""Time without output after which a log gets a line of totals, in seconds."""


class Progress:
    """Progress of runs: in a terminal, a live table of running ones above a line of totals; in a log, one line per ended run.

    After a minute without a line, a log gets the line of totals.
    """

    def __init__(self, console: Console, plan: Plan, todo: Sequence[Run]) -> None:
        self.console, self.plan = console, plan
        self.metric = plan.metric
        self.total: int | None = len(todo)
        self.reused = len(plan.runs) - len(todo)
        self.epochs = {run.fingerprint: 0 for run in todo}
        # Looked up once: every run that ends counts the work of all others.
        self._work = {run.fingerprint: self._work_of(run) for run in todo}
        self.running: dict[str, tuple[Run, Mapping[str, float]]] = {}
        self.outcomes: dict[str, str] = {}
        self.began: float | None = None
        self.last_line = time.monotonic()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)
            if console.is_terminal
            else None
        )

    def _work_of(self, run: Run) -> tuple[float, int | None]:
        """Return the relative cost of an epoch of a run, and its number of epochs; None if that is not known."""
        return self.plan.workload.relative_cost(run.spec), self.plan.total_epochs(run)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        else:
            self._over.set()
            self._beating.join()

    def started(self, run: Run) -> None:
        with self._lock:
            self.running[run.fingerprint] = (run, {})
            self.began = self.began or time.monotonic()  # not earlier: the estimate excludes the start of processes

    def epoch(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
        with self._lock:
            self.running[run.fingerprint] = (run, metrics)
            self.epochs[run.fingerprint] = epoch

    def ended(self, run: Run, outcome: str, message: str = "") -> None:
        with self._lock:
            _, metrics = self.running.pop(run.fingerprint, (run, {}))
            self.outcomes[run.fingerprint] = outcome
        value = metrics.get(self.metric.name)
        result = (
            message
            if outcome != "completed" or value is None
            else f"{self.metric.label} {number_format.format_value(self.metric, value)}"
        )
        after = "" if outcome == "stopped" else f" · {self._eta()}"  # most often because the study stops
        print_line(self.console, f"[{self.counted(len(self.outcomes), '/')}] {run}: {outcome}, {result}{after}")
        self.last_line = time.monotonic()

    def interrupted(self, run: Run, message: str) -> None:
        """Show that a run's process ended and the run waits for another one."""
        self.paused(run)
        self.note(run, message)

    def paused(self, run: Run) -> None:
        """Show that a run waits and no longer trains."""
        with self._lock:
            self.running.pop(run.fingerprint, None)

    def note(self, run: Run, message: str) -> None:
        """Print a message about a run."""
        print_line(self.console, f"{run}: {message}")

    def counted(self, ended: int, of: str = " of ") -> str:
        """Return `12 of 24`, or the number alone if the total is not known."""
        return f"{ended:>{len(str(self.total))}}{of}{self.total}" if self.total else str(ended)

    def _beat(self) -> None:
        # Print totals even before the first event: nodes may take long to start, or may never start.
        while not self._over.wait(max(0.0, self.last_line + TOTALS_INTERVAL_SECONDS - time.monotonic())):
            if time.monotonic() >= self.last_line + TOTALS_INTERVAL_SECONDS:
                with self._lock:
                    self.console.print(self._totals())
                self.last_line = time.monotonic()

    def _fraction_done(self) -> float:
        """Return the fraction of the work that is done, from 0 to 1. Epochs count in proportion to their relative cost."""
        done = total = 0.0
        for fingerprint, (weight, known) in self._work.items():
            trained = self.epochs[fingerprint]
            epochs = known or trained + 1  # of unknown length: always one more to come
            total += weight * epochs
            done += weight * (epochs if fingerprint in self.outcomes else min(trained, epochs))
        return done / total

    def _eta(self) -> str:
        fraction = self._fraction_done()
        elapsed = time.monotonic() - (self.began or time.monotonic())
        if fraction == 1:
            return f"took {format_duration(elapsed)}"
        return f"{format_duration(elapsed * (1 - fraction) / fraction)} left" if fraction > 0.02 else "no estimate yet"

    def _totals(self) -> Text:
        failed = sum(outcome not in ("completed", "diverged", "pruned") for outcome in self.outcomes.values())
        running = f"{len(self.running)} running"
        if not self.running and len(self.outcomes) != self.total:
            running += " (processes are starting, or wait for free resources: see ray status)"
        parts = [f"{self.counted(len(self.outcomes) - failed).lstrip()} done", running, f"{failed} failed"]
        if self.reused:
            parts.append(f"{self.reused} reused")
        return Text(" · ".join([*parts, self._eta()]))

    def _render(self) -> RenderableType:
        with self._lock:
            reported = [metrics for _, metrics in self.running.values() if metrics]
            trained = all(self.metric.training_name in metrics for metrics in reported)
            shown = [*([self.metric.training] if trained else []), self.metric]
            columns = ("epoch", *(each.label for each in shown))
            table = FittedTable(("running",), columns, optional=columns[1:])
            for run, metrics in self.running.values():
                epoch = "/".join(map(str, filter(None, (self.epochs[run.fingerprint], self.plan.total_epochs(run)))))
                table.add_row([str(run), epoch, *(_value_text(each, metrics) for each in shown)])
            return Group(table, self._totals())


def _value_text(metric: Metric, metrics: Mapping[str, float]) -> str:
    return number_format.format_value(metric, metrics[metric.name]) if metric.name in metrics else number_format.MISSING
