"""Records of benchmarks and their tables: raw values, with the machine and the versions they were measured on."""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy")
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->"


@dataclass(frozen=True)
class Series:
    """Repeated values of one quantity, in the order of the rounds."""

    name: str
    unit: str
    values: list[float]
    wanted: str = ""
    """The aim, such as `≤ 1.2`, if there is one."""

    def row(self) -> list[str]:
        """Name, median, spread, n, aim."""
        median, low, high = (f"{f(self.values):.{self._digits()}f}" for f in (statistics.median, min, max))
        return [self.name, f"{median} {self.unit}".rstrip(), f"{low} – {high}", str(len(self.values)), self.wanted]

    def _digits(self) -> int:
        digits = 4 if self.unit == "×" else 3  # 0.976 is not 0.98
        return max(0, digits - len(str(int(max(map(abs, self.values))))))


@dataclass(frozen=True)
class Breakdown:
    """A table that explains the numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Result:
    """Everything that is known of one measurement."""

    benchmark: str
    settings: Mapping[str, Any]
    series: list[Series]
    breakdowns: list[Breakdown] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """Options that the command lines of all benchmarks have in common."""

    folder: Path
    """The benchmark's own folder: README.md and the committed result.json."""
    rounds: int
    out: Path
    extra: argparse.Namespace


def options(main_file: str, description: str | None, *, rounds: int, extra: Callable[[argparse.ArgumentParser], object]) -> Options:
    """Parses the command line; `--readme` does its work here and exits."""
    folder = Path(main_file).resolve().parent
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{folder.name}", description=description)
    parser.add_argument(
        "--rounds", type=int, default=rounds, metavar="N", help="repetitions of every variant (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=folder / "result.json", metavar="FILE", help="JSON (default: the committed one)"
    )
    parser.add_argument("--readme", action="store_true", help="measure nothing: rewrite README.md's tables from result.json")
    extra(parser)
    given = parser.parse_args()
    if given.readme:
        update_readme(folder)
        sys.exit(0)
    return Options(folder, given.rounds, given.out, given)


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int, unit: str) -> dict[str, Series]:
    """Measures all variants in turn, `rounds` times, every other round backwards: a drift of the machine hits all alike."""
    series = {name: Series(name, unit, []) for name in variants}
    console = Console(stderr=True)
    for i in range(rounds):
        for name in list(variants)[:: -1 if i % 2 else 1]:
            series[name].values.append(variants[name]())
            console.print(f"round {i + 1}/{rounds}  {name}: {series[name].values[-1]:.1f} {unit}", highlight=False)
    return series


def ratio(of: Series, to: Series, wanted: str = "") -> Series:
    """`of` divided by `to`, round by round."""
    return Series(f"{of.name} ÷ {to.name}", "×", [a / b for a, b in zip(of.values, to.values, strict=False)], wanted)


def publish(result: Result, given: Options) -> None:
    """Prints tables and writes the JSON; README.md follows if it is the committed one that was written."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", "resnet_core", "ablations")
    record = {
        "benchmark": result.benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.{result.benchmark}", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit + (" with changes" if changes else ""),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "settings": dict(result.settings),
        "series": [{**asdict(s), "median": statistics.median(s.values), "n": len(s.values)} for s in result.series],
        "breakdowns": [asdict(b) for b in result.breakdowns],
    }
    given.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console = Console()
    for table in tables(record):
        shown = Table(title=table.title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if i else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    if given.out.resolve() == given.folder / "result.json":
        update_readme(given.folder)


def tables(record: Mapping[str, Any]) -> list[Breakdown]:
    """A record's tables: the measured series first."""
    rows = [Series(s["name"], s["unit"], s["values"], s["wanted"]).row() for s in record["series"]]
    measured = Breakdown("", ["", "median", "min – max", "n", "wanted"], rows)
    return [measured, *(Breakdown(b["title"], b["columns"], b["rows"]) for b in record["breakdowns"])]


def update_readme(folder: Path) -> None:
    """Rewrites the marked section of a benchmark's README.md from its result.json."""
    record, readme = json.loads((folder / "result.json").read_text(encoding="utf-8")), folder / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(before + BEGIN + markdown(record) + END + rest.partition(END)[2], encoding="utf-8")


def markdown(record: Mapping[str, Any]) -> str:
    """A record as Markdown: tables, then what they were measured on."""
    parts = []
    for table in tables(record):
        lines = ["| " + " | ".join(table.columns) + " |", "| --- " + "| ---: " * (len(table.columns) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        parts.append((f"**{table.title}**\n\n" if table.title else "") + "\n".join(lines))
    on, versions = record["machine"], ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    gpu = f"{on['gpu']}, " if on.get("gpu") else ""
    parts.append(
        f"`{record['command']}`, {record['date']}, commit {record['commit'][:12]}{record['commit'][40:]}. "
        f"{gpu}{on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['system']}; load before: {on['load']}. {versions}. "
        f"Settings: {', '.join(f'{name} {value}' for name, value in record['settings'].items())}."
    )
    return "\n\n".join(parts) + "\n\n"


def machine() -> dict[str, Any]:
    """The hardware, and how busy it was."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(),
        "load": _LOAD,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str:
    """The model of a GPU, if the benchmark used one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_initialized() else ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


_LOAD = round(os.getloadavg()[0], 1)
"""Processes that wanted to run in the minute before the benchmark started."""
