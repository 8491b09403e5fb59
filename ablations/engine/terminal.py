"""What a person sees in a terminal, or reads in a log: progress while a study runs, and its table."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ablations.engine import tables
from ablations.engine.evidence import Design, Evidence
from ablations.engine.findings import Estimate, Findings
from ablations.engine.search_trials import configuration
from ablations.engine.study import Plan, Run
from resnet_core.fields import counted, printable

LOG_WIDTH = 120
COLUMN_GAP = 2
HEARTBEAT_SECONDS = 60.0


def make_console() -> Console:
    """A console of the terminal's width, or of a fixed one where output goes to a file or a job's log."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)


def say(console: Console, text: str) -> None:
    """One line, which may hold anything: names of files, errors of libraries."""
    console.print(Text(printable(text)), soft_wrap=True)


class NamedRows:
    """A table whose first columns name its rows. Where it is too wide, others are left out, and a line says which.

    Args:
        naming: names of the columns that name a row; these stay, on several lines if need be.
        columns: names of the others.
        optional: those of them that may be left out, the first ones first.
        elsewhere: where to find what is left out. Empty: nothing is said.
    """

    def __init__(self, naming: Sequence[str], columns: Sequence[str], *, optional: Sequence[str], elsewhere: str = "") -> None:
        self._naming, self._columns, self._optional, self._elsewhere = naming, columns, optional, elsewhere
        self._rows: list[Sequence[str]] = []

    def add_row(self, cells: Sequence[str]) -> None:
        self._rows.append([printable(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names, named = [*self._naming, *self._columns], len(self._naming)
        widths = [max(map(cell_len, column)) + COLUMN_GAP for column in zip(names, *self._rows, strict=True)]
        shown = list(range(len(names)))
        for name in self._optional:
            if sum(widths[i] for i in shown) - COLUMN_GAP <= options.max_width:
                break
            shown = [i for i in shown if i < named or names[i] != name]  # a factor may have the name of a column
        table = Table(box=None, header_style="dim", padding=(0, COLUMN_GAP, 0, 0), pad_edge=False)
        for i in shown:
            if i < named:
                table.add_column(names[i], overflow="fold")
            else:
                table.add_column(names[i], justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*(Text(row[i]) for i in shown))
        yield table
        left_out = [name for i, name in enumerate(names) if i not in shown]
        if left_out and self._elsewhere:
            yield Text(f"Not shown in {options.max_width} columns: {', '.join(left_out)} ({self._elsewhere})", "dim")


class Progress:
    """Live table of what is running, above a line of totals. Not in a terminal: a line for each finished run, or after a minute
    without any a line of totals."""

    def __init__(self, console: Console, plan: Plan, todo: Sequence[Run]) -> None:
        self.console, self.plan, self.todo = console, plan, todo
        self.scored_on = plan.base.data.scored_on
        self.total: int | None = len(todo)
        self.reused = len(plan.runs) - len(todo)
        self.epochs = {run.fingerprint: 0 for run in todo}
        self.running: dict[str, tuple[Run, Mapping[str, float]]] = {}
        self.outcomes: dict[str, str] = {}
        self.began: float | None = None
        self.heard = time.monotonic()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)
            if console.is_terminal
            else None
        )

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
            self.began = self.began or time.monotonic()  # processes are up: what it took to get there does not repeat

    def epoch(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
        with self._lock:
            self.running[run.fingerprint] = (run, metrics)
            self.epochs[run.fingerprint] = epoch

    def ended(self, run: Run, outcome: str, message: str = "") -> None:
        with self._lock:
            _, metrics = self.running.pop(run.fingerprint, (run, {}))
            self.outcomes[run.fingerprint] = outcome
        error = metrics.get(f"{self.scored_on}/error")
        result = message if outcome != "completed" or error is None else f"{self.scored_on} error {error:.2f} %"
        say(self.console, f"[{self.counted(len(self.outcomes), '/')}] {run}: {outcome}, {result} · {self._eta()}")
        self.heard = time.monotonic()

    def interrupted(self, run: Run, message: str) -> None:
        """Its process died; it waits for another."""
        self.paused(run)
        self.note(run, message)

    def paused(self, run: Run) -> None:
        """It waits for others."""
        with self._lock:
            self.running.pop(run.fingerprint, None)

    def note(self, run: Run, message: str) -> None:
        say(self.console, f"{run}: {message}")

    def counted(self, ended: int, of: str = " of ") -> str:
        """`12 of 24`, or how many where it is not known of how many."""
        return f"{ended:>{len(str(self.total))}}{of}{self.total}" if self.total else str(ended)

    def _beat(self) -> None:
        # Also where nothing is heard, for nodes may take long to come, or never do.
        while not self._over.wait(max(0.0, self.heard + HEARTBEAT_SECONDS - time.monotonic())):
            if time.monotonic() >= self.heard + HEARTBEAT_SECONDS:
                with self._lock:
                    self.console.print(self._totals())
                self.heard = time.monotonic()

    def _share(self) -> float:
        """Share of the work that is done, weighing epochs by depth."""
        done = total = 0.0
        for run in self.todo:
            epochs = self._total_epochs(run)
            ended = run.fingerprint in self.outcomes
            total += run.spec.model.depth * epochs
            done += run.spec.model.depth * (epochs if ended else self.epochs[run.fingerprint])
        return done / total

    def _total_epochs(self, run: Run) -> int:
        return run.spec.optim.total_epochs(self.plan.training_images(run))

    def _eta(self) -> str:
        share = self._share()
        elapsed = time.monotonic() - (self.began or time.monotonic())
        if share == 1:
            return f"took {duration(elapsed)}"
        return f"{duration(elapsed * (1 - share) / share)} left" if share > 0.02 else "no estimate yet"

    def _totals(self) -> Text:
        failed = sum(outcome not in ("completed", "diverged", "pruned") for outcome in self.outcomes.values())
        running = f"{len(self.running)} running"
        if not self.running and len(self.outcomes) != self.total:
            running += " (processes start, or wait for room: ray status)"
        parts = [f"{self.counted(len(self.outcomes) - failed).lstrip()} done", running, f"{failed} failed"]
        if self.reused:
            parts.append(f"{self.reused} reused")
        return Text(" · ".join([*parts, self._eta()]))

    def _render(self) -> RenderableType:
        errors = ("train/error", f"{self.scored_on}/error")
        columns = ("epoch", *(name.replace("/", " ") for name in errors))
        table = NamedRows(("running",), columns, optional=columns[1:])
        with self._lock:
            for run, metrics in self.running.values():
                epoch = f"{self.epochs[run.fingerprint]}/{self._total_epochs(run)}"
                table.add_row([str(run), epoch, *(f"{metrics[name]:.2f} %" if metrics else tables.NONE for name in errors)])
            return Group(table, self._totals())


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def show_results(console: Console, evidence: Evidence, findings: Findings, again: str) -> None:
    """Table, answers, what went wrong with which run, and the command that trains what is missing."""
    console.print()
    console.print(result_view(evidence.design, findings))
    for line in search_lines(findings):
        say(console, line)
    bad = evidence.runs[evidence.runs["outcome"].isin(["diverged", "oom", "failed"])]
    for cell, seed, outcome, message in zip(bad["cell"], bad["seed"], bad["outcome"], bad["message"], strict=True):
        say(console, f"{cell} seed={seed}: {outcome}, {message}")
    without = sum(cell.without_result for cell in findings.cells)
    if without:
        have, those = ("has", "that one") if without == 1 else ("have", "those")
        say(console, f"{without} of {counted(len(evidence.runs), 'run')} {have} no result. To train just {those}: {again}")


def search_lines(findings: Findings) -> list[str]:
    """What a search chose in each cell, and whether the ranking survives it; none of a study without a search."""
    if findings.search is None:
        return []
    lines = []
    for cell in findings.search.cells:
        for each in cell.chosen:
            where = f" for {cell.label}" if cell.label else ""
            level = f" as {each.level}" if len(cell.chosen) > 1 else ""
            score = f"trial {each.number} of {cell.trials}; validation {each.score:.2f} %, the search's own score"
            lines.append(f"chosen{where}{level}: {configuration(each)} ({score})")
    return [*lines, findings.search.ranking.text] if findings.search.ranking else lines


def result_view(design: Design, findings: Findings) -> RenderableType:
    """Mean ± std of the final errors over seeds, differences to the baseline, and what that answers."""
    notes = any(cell.problems for cell in findings.cells)
    compared = tables.compared(findings)
    columns = [f"{design.scored_on} error %", "train error %", "n", *(["difference [95 %]", "p (Holm)"] if compared else [])]
    columns += ["parameters", "s / run", *(["note"] if notes else [])]
    optional = ("s / run", "parameters", "train error %", "note", "p (Holm)", "difference [95 %]", "n")
    table = NamedRows(list(design.factors), columns, optional=optional, elsewhere="see the report, or a wider terminal")
    for cell in findings.cells:
        row = [*cell.levels.values(), tables.mean_std(cell.error), tables.mean_std(cell.train_error), tables.of_planned(cell)]
        if compared:
            difference = compared[cell.label].difference if cell.label in compared else Estimate(n=0)
            row += [tables.with_interval(difference), tables.probability(difference.corrected)]
        row += [tables.number(cell.parameters, 0), tables.number(cell.seconds, 1)]
        if notes:
            row.append(", ".join(f"{count} {word}" for word, count in cell.problems.items()))
        table.add_row(row)
    answers = [Text(printable(answer.text)) for answer in findings.answers]
    flags = [Text(f"Mind: {printable(flag)}") for flag in findings.flags]
    return Group(Text(printable(f"{design.title}: {design.question}"), "bold"), table, Text(), *answers, *flags)
