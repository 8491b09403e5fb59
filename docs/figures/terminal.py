"""Record a terminal in which a study is submitted, killed and submitted again, and draw it as an animated SVG.

    python docs/figures/terminal.py record     # runs the study (minutes), writes terminal.json and terminal.svg
    python docs/figures/terminal.py            # draws terminal.svg again from terminal.json

The recording is that of a real run on a service of its own: each line of output with the second at which it came. The picture
shortens the time between two lines, and says so. Lines of Ray's own about a job are left out.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parents[2]
RECORDING, PICTURE = Path(__file__).with_suffix(".json"), Path(__file__).with_suffix(".svg")
STUDY = ["python", "ablations/shortcuts.py", "--levels", "shortcut=none,A", "--seeds", "3"]
SUBMIT = ["ray", "job", "submit", "--", *STUDY]
RUNS_BEFORE_KILL = 4
"""Number of ended runs after which the study's process is killed."""
OF_RAY = re.compile(
    r"^(Job submission server address|-{5,}|Job 'raysubmit|Next steps|  Query |  Request |    ray job |Tailing|\s*$)"
    r"|INFO cli|^20\d\d-|^Running entrypoint for job "
)
COLUMNS, ROWS, WIDTH, LINE_HEIGHT, MARGIN, BAR_HEIGHT = 121, 26, 924, 18, 20, 30
MAX_GAP_SECONDS, TYPING_SECONDS, LAST_SECONDS = 0.9, 1.4, 9.0
"""Longest time between two lines in the picture, time before a typed line, and time that the end is shown."""
EMPHASIZED = re.compile(r" done already\.$|^\w+ matters: ")
"""Lines of output that tell the story: what is left to train, and the answers."""
COLORS = {"prompt": "#7ee787", "typed": "#ffffff", "note": "#8b949e", "output": "#b1bac4", "emphasized": "#79c0ff"}

Line = dict[str, Any]
"""A line of the recording: `seconds` since its start, `kind` (`typed`, `note` or `output`) and `text`."""


# Recording


def record() -> None:
    """Run the study on a service of its own, and write the recording."""
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment |= {"RESNET_ABLATIONS_HOME": home, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        service = [sys.executable, "-m", "ablations"]
        ports = ["--mlflow-port", "5731", "--dashboard-port", "8731", "--ray-port", "6731"]
        subprocess.run([*service, "up", *ports], env=environment, check=True)  # noqa: S603
        try:
            environment["RAY_API_SERVER_ADDRESS"] = "http://127.0.0.1:8731"
            RECORDING.write_text(
                json.dumps(list(_session(environment, home)), indent=0, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        finally:
            subprocess.run([*service, "down"], env=environment, check=True)  # noqa: S603


def _session(environment: dict[str, str], home: str) -> Iterator[Line]:
    began = time.monotonic()

    def line(kind: str, text: str) -> Line:
        shown = text.rstrip("\n").replace(home, "~/.local/share/resnet-ablations").replace(":5731", ":5000")
        return {"seconds": round(time.monotonic() - began, 2), "kind": kind, "text": shown}

    for attempt in (1, 2):
        yield line("typed", " ".join(SUBMIT))
        ended = 0
        with subprocess.Popen(  # noqa: S603
            SUBMIT, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as job:
            assert job.stdout
            for text in job.stdout:
                if OF_RAY.search(text):
                    continue
                yield line("output", text)
                ended += bool(re.search(r"\bcompleted\b|: done\b", text))
                if attempt == 1 and ended == RUNS_BEFORE_KILL:
                    driver = _driver(environment)
                    yield line("note", "# in another terminal: the process of the study is killed")
                    yield line("typed", f"kill -9 {driver.pid}")
                    driver.send_signal(signal.SIGKILL)
                    break
            if attempt == 1:
                job.kill()
    yield line("end", "")


def _driver(environment: dict[str, str]) -> psutil.Process:
    """Return the process of the study's job."""
    home = environment["RESNET_ABLATIONS_HOME"]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:2] == [STUDY[1]] and process.environ().get("RESNET_ABLATIONS_HOME") == home:
            return process
    raise RuntimeError("the study does not run")


# Drawing


def picture(lines: Sequence[Line]) -> str:
    """Return the recording as an SVG, which ends with the answer and begins again."""
    shown = [(kind, part) for kind, text in ((each["kind"], each["text"]) for each in lines[:-1]) for part in _wrapped(kind, text)]
    starts = _starts(lines)
    total = starts[-1] + LAST_SECONDS
    height = BAR_HEIGHT + ROWS * LINE_HEIGHT + MARGIN
    rules, texts = [], []
    for number, ((kind, text), start) in enumerate(zip(shown, starts, strict=True)):
        appears = f"0%{{opacity:0}}{_percent(start, total)}{{opacity:1}}"
        rules.append(f"#l{number}{{animation:k{number} {total:.1f}s step-end infinite}}@keyframes k{number}{{{appears}}}")
        texts.append(_text(number, kind, text))
    scrolled = [(start, max(0, number + 1 - ROWS)) for number, start in enumerate(starts)]
    moves = "".join(
        f"{_percent(start, total)}{{transform:translateY({-rows * LINE_HEIGHT}px)}}" for start, rows in scrolled if rows
    )
    last = -max(0, len(shown) - ROWS) * LINE_HEIGHT
    rules.append(f"#s{{transform:translateY({last}px);animation:s {total:.1f}s step-end infinite}}")
    rules.append(f"@keyframes s{{0%{{transform:none}}{moves}}}")
    title = "A study is submitted to Ray, its process is killed, and the same command continues it to the answer"
    minutes, seconds = divmod(round(lines[-1]["seconds"]), 60)
    note = f"recorded in {minutes} min {seconds} s on 2 cores; pauses are shortened"
    dots = "".join(f'<circle cx="{20 + 18 * i}" cy="{BAR_HEIGHT / 2:g}" r="5.5" fill="#30363d"/>' for i in range(3))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">
<title>{title}</title>
<style>text{{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}}
{chr(10).join(rules)}
@media (prefers-reduced-motion:reduce){{#s,text{{animation:none!important}}}}</style>
<rect width="{WIDTH}" height="{height}" rx="8" fill="#0d1117"/>
{dots}<text x="{WIDTH - 20}" y="{BAR_HEIGHT / 2 + 4:g}" text-anchor="end" fill="{COLORS["note"]}">{note}</text>
<clipPath id="c"><rect y="{BAR_HEIGHT}" width="{WIDTH}" height="{ROWS * LINE_HEIGHT + 4}"/></clipPath>
<g clip-path="url(#c)"><g id="s">
{chr(10).join(texts)}
</g></g>
</svg>
"""


def _wrapped(kind: str, text: str) -> list[str]:
    """Return the lines that a terminal of `COLUMNS` columns shows."""
    width = COLUMNS - 2 * (kind == "typed")
    return [text[start : start + width] for start in range(0, max(len(text), 1), width)]


def _starts(lines: Sequence[Line]) -> list[float]:
    """Return when each shown line appears, in seconds. Long times between lines are shortened."""
    found, now = [], 0.5
    gaps = [0.0, *(after["seconds"] - before["seconds"] for before, after in pairwise(lines))]
    for each, gap in zip(lines[:-1], gaps, strict=False):
        now += TYPING_SECONDS if each["kind"] == "typed" else min(gap, MAX_GAP_SECONDS)
        found += [now] * len(_wrapped(each["kind"], each["text"]))
    return found


def _percent(seconds: float, total: float) -> str:
    return f"{100 * seconds / total:.2f}%"


def _text(number: int, kind: str, text: str) -> str:
    y = BAR_HEIGHT + LINE_HEIGHT * number + 13
    prompt = f'<tspan fill="{COLORS["prompt"]}">$ </tspan>' if kind == "typed" else ""
    color = COLORS["emphasized" if kind == "output" and EMPHASIZED.search(text) else kind]
    return f'<text id="l{number}" x="{MARGIN}" y="{y}" fill="{color}">{prompt}{escape(text)}</text>'


def main() -> None:
    """Draw the picture, after recording anew if asked."""
    if sys.argv[1:] == ["record"]:
        record()
    PICTURE.write_text(picture(json.loads(RECORDING.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
