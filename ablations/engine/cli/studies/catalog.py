"""The studies that MLflow has: one entry per study and base configuration, found by name, preset, setting or run ID."""

import ast
import difflib
import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ablations.engine.cli.studies.documents import studies
from ablations.engine.cli.studies.reader import Reader
from ablations.engine.study.design import Design
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.holder import holder_of, may_be_alive
from ablations.engine.tracking.run_queries import DESIGN_ARTIFACT, DESIGN_TAG, STOPPED_TAG, SUMMARY_TAG
from resnet_core.fields import ConfigError, convert_value, enumerated, reject

MARK = "@"
"""Separator between the name of a study and a preset, a data set or a setting that tells it from others of this name."""
RUN_ID = re.compile(r"[0-9a-f]{6,32}")
MAX_NAMED = 5
"""Maximum number of studies that a message names."""


@dataclass(frozen=True, kw_only=True)
class StudyEntry:
    """A study as MLflow lists it: its own run, without the runs that it trained."""

    run: Any
    """The run, as the client returned it."""
    name: str
    run_id: str
    preset: str
    status: str
    """MLflow's status of the study's run."""
    started: float
    """First submission, in seconds since 1970."""
    ended: float | None
    """End of the latest submission, in seconds since 1970; None while it runs."""
    tags: Mapping[str, str]
    settings: Mapping[str, str]
    """Fields that all its runs share, as text."""

    @property
    def holder(self) -> dict[str, Any]:
        """The process that holds or held the study, as the lease has it."""
        return holder_of(self.tags)

    @property
    def is_running(self) -> bool:
        """True if a process holds the study and may live; see `holder.may_be_alive`."""
        return may_be_alive(self.tags)

    @property
    def state(self) -> str:
        """One of `running`, `complete`, `incomplete`, `interrupted` and `stopped`."""
        if self.is_running:
            return "running"
        if self.status == "FINISHED":
            return "complete"
        if self.status == "FAILED":
            return "incomplete"
        return "stopped" if STOPPED_TAG in self.tags else "interrupted"

    @property
    def summary(self) -> Mapping[str, Any]:
        """Summary of the latest design's report; empty if there is no such report, or if runs have ended since."""
        try:
            found: dict[str, Any] = json.loads(self.tags.get(SUMMARY_TAG, "{}"))
        except ValueError:
            return {}
        current = found.get("design") == self.tags.get(DESIGN_TAG) and self.status in ("FINISHED", "FAILED")
        return found if current else {}


def list_studies(reader: Reader) -> list[StudyEntry]:
    """Return all studies, the one with the latest submission first."""
    found = [_entry(run) for run in run_queries.search_runs(reader.client, "tags.preset LIKE '%'")]
    return sorted(found, key=lambda entry: -max(entry.started, entry.ended or 0.0))


def _entry(run: Any) -> StudyEntry:
    tags, end = run.data.tags, run.info.end_time
    return StudyEntry(
        run=run,
        name=tags.get("study", ""),
        run_id=run.info.run_id,
        preset=tags["preset"],
        status=run.info.status,
        started=(run.info.start_time or 0) / 1000,
        ended=end / 1000 if end and run.info.status != "RUNNING" else None,
        tags=tags,
        settings=run_queries.current_params(run),
    )


def selectors(entries: Sequence[StudyEntry]) -> dict[str, str]:
    """Return, by run ID, a short text by which `find_study` finds exactly this study.

    It is the name, followed by the preset if studies of this name differ in it, and by as few settings as tell it from the others.
    """
    found = {}
    for entry in entries:
        rivals = [each for each in entries if each.name == entry.name and each is not entry]
        parts = [entry.name]
        if any(each.preset != entry.preset for each in rivals):
            parts.append(entry.preset)
            rivals = [each for each in rivals if each.preset == entry.preset]
        for field, value in entry.settings.items():
            others = [each for each in rivals if each.settings.get(field) == value]
            if len(others) < len(rivals):
                parts.append(f"{_short_name(field, entry.settings)}={value}")
                rivals = others
        found[entry.run_id] = MARK.join(parts) if not rivals else entry.run_id[:8]
    return found


def _short_name(field: str, settings: Mapping[str, str]) -> str:
    """Return the last part of the name of a field if no other field ends with it."""
    last = field.rpartition(".")[2]
    return last if sum(name == last or name.endswith(f".{last}") for name in settings) == 1 else field


def find_studies(entries: Sequence[StudyEntry], text: str) -> list[StudyEntry]:
    """Return the studies that a text means, the latest first: `NAME`, `NAME@PRESET`, `NAME@FIELD=VALUE` or a run ID.

    Raises:
        ConfigError: it means none. The message has the nearest names.
    """
    name, *conditions = text.split(MARK)
    found = [each for each in entries if each.name == name and all(_matches(each, condition) for condition in conditions)]
    if not found and RUN_ID.fullmatch(text):
        found = [each for each in entries if each.run_id.startswith(text)]
    if found:
        return found
    known = list(dict.fromkeys([*(each.name for each in entries), *selectors(entries).values()]))
    if not known:
        raise reject("NAME", text, "MLflow has no study at this address")
    near = difflib.get_close_matches(text, known, n=3, cutoff=0.4)
    near = near or [each for each in known if name and name in each][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else f"accepted: {enumerated(known, MAX_NAMED, elsewhere='ablations list')}"
    raise reject("NAME", text, f"MLflow has no such study; {hint}")


def find_study(entries: Sequence[StudyEntry], text: str) -> tuple[StudyEntry, list[str]]:
    """Return the latest study that a text means, and the selectors of the others that it may mean."""
    first, *others = find_studies(entries, text)
    texts = selectors(entries)
    return first, [texts[each.run_id] for each in others]


def find_exactly_one(entries: Sequence[StudyEntry], text: str) -> StudyEntry:
    """Return the study that a text means; raise ConfigError if it means several."""
    found = find_studies(entries, text)
    if found[1:]:
        texts = [selectors(entries)[each.run_id] for each in found]
        named = enumerated(texts, MAX_NAMED, elsewhere="ablations list")
        raise reject("NAME", text, f"means {studies(len(found))}; accepted: {named}")
    return found[0]


def _matches(entry: StudyEntry, condition: str) -> bool:
    name, mark, value = condition.partition("=")
    if not mark:
        return condition in (entry.preset, entry.summary.get("dataset")) or entry.run_id.startswith(condition)
    return any((field == name or field.endswith(f".{name}")) and is_value(text, value) for field, text in entry.settings.items())


def is_value(stored: str, given: str) -> bool:
    """Return True if a value as a user writes it is the stored one: `1e12` is `1000000000000.0`, `true` is `True`.

    The notation of the stored value, that of Python, tells the type of its field.
    """
    if stored == given:
        return True
    try:
        value = ast.literal_eval(stored)
    except (ValueError, SyntaxError):
        return False  # text
    if value is None:
        return given.lower() == "none"
    kind: Any = type(value)
    if isinstance(value, tuple):
        kind = types.GenericAlias(tuple, (type(value[0]) if value else str, ...))
    try:
        return bool(convert_value("", given, kind) == value)
    except (ConfigError, KeyError):  # another type
        return False


def read_design(reader: Reader, entry: StudyEntry) -> Design | None:
    """Return the design that was last submitted for a study; None if MLflow has none, or none that this version can read."""
    text = reader.artifact(entry.run, DESIGN_ARTIFACT)
    try:
        return Design.from_json(text) if text else None
    except (ValueError, KeyError, TypeError, ConfigError):
        return None


def format_time(seconds: float | None) -> str:
    """Return a time in the user's time zone to the minute: `2026-11-28 17:05`; empty for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def iso_time(seconds: float | None) -> str | None:
    """Return a time for JSON, in UTC; None for None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
