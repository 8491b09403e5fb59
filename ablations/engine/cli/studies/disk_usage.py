"""Disk usage of this project: checkpoints by study, data, artifacts, logs, and temporary folders of Ray."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ablations.engine.cli.studies.reader import Reader
from ablations.engine.environment import paths, private_files, scratch_folders
from ablations.engine.tracking import run_queries
from resnet_core.fields import reject

FOLDER_NAME = re.compile(r"([0-9a-f]{20})(?:-(\d+))?")
"""Name of a run's checkpoint folder: its fingerprint, and its generation after `--rerun`."""
REPLAY_NAME = re.compile(r"replay-[0-9a-f]{32}")
"""Name of the checkpoint folder of a replay, which it removes at its end."""
FINISHED, UNFINISHED, ORPHANED = "finished", "unfinished", "orphaned"
"""States of a checkpoint folder: its run has a result, has none yet, or is unknown to MLflow."""


@dataclass(frozen=True, kw_only=True)
class CheckpointUsage:
    """A checkpoint folder and its run."""

    name: str
    bytes: int
    modified: float
    """Time of the latest change of a file in it, in seconds since 1970; 0 for an empty folder."""
    state: str
    study: str
    """Study that trained the run; empty if the run is unknown."""
    run_id: str
    fingerprint: str
    parent: str
    """ID of the study's own run; empty if the run is unknown."""
    searches: Sequence[str]
    """IDs of the base configurations of the searches that the run is a trial of."""

    @property
    def age(self) -> float:
        """Seconds since the latest change."""
        return time.time() - self.modified


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A part of the local state and its size."""

    kind: str
    name: str
    path: str
    bytes: int


def checkpoints(reader: Reader, storage: str) -> list[CheckpointUsage]:
    """Return the checkpoint folders of a storage, each with its run; folders of other names are left out."""
    folders = {name: size for name, size in _folders(storage).items() if FOLDER_NAME.fullmatch(name) or REPLAY_NAME.fullmatch(name)}
    runs = _runs_by_folder(reader) if folders else {}
    return [_usage(name, size, modified, runs.get(name)) for name, (size, modified) in sorted(folders.items())]


def _usage(name: str, size: int, modified: float, run: Any) -> CheckpointUsage:
    tags: Mapping[str, str] = run.data.tags if run else {}
    state = ORPHANED if run is None else FINISHED if run.info.status == "FINISHED" else UNFINISHED
    return CheckpointUsage(
        name=name,
        bytes=size,
        modified=modified,
        state=state,
        study=tags.get("study", ""),
        run_id=run.info.run_id if run else "",
        fingerprint=name[:20],
        parent=tags.get("mlflow.parentRunId", ""),
        searches=tuple(tag.split(".")[1] for tag in tags if tag.startswith("trial.")),
    )


def _runs_by_folder(reader: Reader) -> dict[str, Any]:
    """Return all runs that MLflow has by the name of their checkpoint folder."""
    found = {}
    for run in run_queries.search_runs(reader.client, "tags.fingerprint LIKE '%'"):
        generation = run.data.tags.get("generation", "1")
        found[run.data.tags["fingerprint"] + (f"-{generation}" if generation != "1" else "")] = run
    return found


def fingerprints(reader: Reader) -> set[str]:
    """Return the fingerprints of all runs that MLflow has."""
    return {run.data.tags["fingerprint"] for run in run_queries.search_runs(reader.client, "tags.fingerprint LIKE '%'")}


def _folders(storage: str) -> dict[str, tuple[int, float]]:
    """Return the size in bytes and the time of the latest change of each folder in a storage, by name."""
    from ablations.engine.environment.storage import check_storage, is_local, open_storage, without_credentials  # imports pyarrow

    if is_local(storage):
        root = Path(local_path(storage))
        return {entry.name: measure(Path(entry.path)) for entry in os.scandir(root) if entry.is_dir()} if root.is_dir() else {}
    check_storage(storage)  # pyarrow itself retries for minutes, and finds nothing in a bucket that does not exist
    from pyarrow import ArrowException, fs

    found: dict[str, tuple[int, float]] = {}
    try:
        files, root_path, _ = open_storage(storage)
        for info in files.get_file_info(fs.FileSelector(root_path, recursive=True, allow_not_found=True)):
            name = info.path.removeprefix(f"{root_path}/").partition("/")[0]
            size, modified = found.get(name, (0, 0.0))
            if info.type is fs.FileType.File:
                found[name] = size + info.size, max(modified, info.mtime.timestamp() if info.mtime else 0.0)
    except (ArrowException, OSError) as error:
        raise reject("--storage", without_credentials(storage), f"cannot be read ({str(error).partition(chr(10))[0]})") from error
    return found


def local_path(storage: str) -> str:
    """Return the path of a storage on this machine."""
    return unquote(storage.removeprefix("file://")) if storage.startswith("file://") else storage


def measure(path: Path) -> tuple[int, float]:
    """Return the bytes on disk of a file or folder, and the time of the latest change in it. Links are not followed."""
    total, latest = 0, 0.0
    for info in _stats(path):
        total += info.st_blocks * 512
        latest = max(latest, info.st_mtime)
    return total, latest


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of each file under a path; files may vanish meanwhile."""
    try:
        if not path.is_dir() or path.is_symlink():
            yield path.lstat()
            return
        entries = list(os.scandir(path))
    except OSError:
        return
    for entry in entries:
        yield from _stats(Path(entry.path))


def local_state() -> list[Usage]:
    """Return the parts of the local state besides checkpoints: data, artifacts, database, logs, journals and scratch folders."""
    home = paths.home()
    parts = [
        *(_part("data", child.name, child) for child in _children(paths.data_cache())),
        *(_part("artifacts", child.name, child) for child in _children(home / "artifacts")),
        *(_part("database", file.name, file) for file in sorted(home.glob("*.db*"))),
        *(_part(name, name, home / name) for name in ("logs", "journals", "mlflow") if (home / name).exists()),
        *(_part("scratch", child.name, child) for child in _children(home / "tune")),
        *(_part("ray", child.name, child) for child in private_files.ray_folders()),
    ]
    return [part for part in parts if part.bytes]


def removable_state() -> list[Usage]:
    """Return the temporary folders of processes that have ended."""
    unused = [_part("ray", folder.name, folder) for folder in private_files.unused_ray_folders()]
    abandoned = [_part("scratch", folder.name, folder) for folder in scratch_folders.abandoned_folders(paths.home() / "tune")]
    return [*unused, *abandoned]


def _part(kind: str, name: str, path: Path) -> Usage:
    return Usage(kind=kind, name=name, path=str(path), bytes=measure(path)[0])


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError:
        return []


def format_size(size: float) -> str:
    """Return a size with a decimal prefix: `1.4 GB`, `512 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
