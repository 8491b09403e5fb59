"""The command `ablations clean`: remove checkpoints and temporary folders that nothing needs, after saying which.

A checkpoint serves to continue a run, to read its network and to log it as a model. A run with a result is continued by nothing.
What a running study holds is never removed: runs that a process of this home has claimed or whose records wait for MLflow, by the
locks of `tracking.journal`, and runs of studies that a living process holds, by the lease in MLflow.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.studies import catalog, disk_usage
from ablations.engine.cli.studies.disk_usage import FINISHED, ORPHANED, UNFINISHED, CheckpointUsage, Usage, format_size
from ablations.engine.cli.studies.documents import print_document
from ablations.engine.cli.studies.du_command import add_storage_option, chosen_storage
from ablations.engine.cli.studies.reader import Reader, add_reading_options, read, read_duration, tracking_uri
from ablations.engine.environment import paths, private_files, scratch_folders
from ablations.engine.tracking.connection import is_new_database
from ablations.engine.tracking.journal import frozen_claims
from resnet_core.fields import ConfigError, counted

HELP = "remove checkpoints of finished runs, orphaned folders and temporary files; asks first"
SCHEMA = "ablations-clean/1"
MIN_ORPHAN_AGE_SECONDS = 24 * 3600.0
"""Time without a change after which a folder that MLflow does not know is removed: its run may not have reached MLflow yet."""
REASONS = {
    FINISHED: "runs with a result, whose networks can then no longer be loaded",
    UNFINISHED: "runs without a result, unchanged for {older}",
    ORPHANED: "folders unknown to MLflow, unchanged for a day",
}


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """Checkpoints and folders that can be removed, and those that stay because a study holds them."""

    checkpoints: Sequence[CheckpointUsage]
    state: Sequence[Usage]
    held: Sequence[CheckpointUsage]

    @property
    def bytes(self) -> int:
        """Size of everything that can be removed, in bytes."""
        return sum(each.bytes for each in self.checkpoints) + sum(each.bytes for each in self.state)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = options.fill(
        "Remove the checkpoints of runs that have a result, folders of checkpoints that MLflow does not know, and temporary "
        "folders of processes that have ended. Results in MLflow stay, and so does what a running study holds. Without its "
        "checkpoint, the network of a run cannot be read or logged any more."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="studies whose checkpoints to remove (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed; remove nothing")
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument(
        "--older-than",
        metavar="DURATION",
        help="also remove checkpoints of unfinished runs that have not changed for this time, as in 12h or 30d; they start again. "
        "In a storage that is not the home's own, also folders that this MLflow does not know",
    )
    add_storage_option(parser)
    add_reading_options(parser)


def run(given: argparse.Namespace) -> int:
    """Say what can be removed, ask, and remove it; return the exit code."""
    if given.dry_run and given.yes:
        raise ConfigError("--dry-run, --yes: accepted: one of them")
    if given.json and not (given.dry_run or given.yes):
        raise ConfigError("--json: accepted with --dry-run or --yes, since a document cannot ask")
    older = None if given.older_than is None else read_duration("--older-than", given.older_than)
    uri, storage = tracking_uri(given), chosen_storage(given)

    def look() -> Cleaning:
        return read(uri, lambda reader: find_removable(reader, storage, given.names, older))

    found = look()
    if not given.json:
        _print(found, given)
    if given.dry_run or not (given.yes or (found.bytes and _confirmed())):
        _emit(given, found, removed=False)
        return 0
    if not given.yes:
        found = look()  # minutes may have passed before the answer
    kept, failed = remove(found, storage)
    _emit(given, found, removed=True, kept=kept, failed=failed)
    return 1 if failed else 0


def find_removable(reader: Reader, storage: str, names: Sequence[str], older: float | None) -> Cleaning:
    """Return what can be removed.

    Args:
        reader: MLflow.
        storage: folder or address of checkpoints.
        names: studies whose checkpoints to remove; empty for all studies and for everything that belongs to none.
        older: seconds without a change after which checkpoints of unfinished runs are removed; None to keep them.

    Raises:
        ConfigError: MLflow has no study of a name.
    """
    entries = catalog.list_studies(reader)
    wanted = {each.name for name in names for each in catalog.find_studies(entries, name)}
    found = [each for each in disk_usage.checkpoints(reader, storage) if not names or each.study in wanted]
    elsewhere = _fingerprints_elsewhere(reader.uri) if any(each.state == ORPHANED for each in found) else set()
    shared = disk_usage.local_path(storage) != str(paths.home() / "checkpoints")
    removable = [each for each in found if _is_removable(each, older, shared=shared) and each.fingerprint not in elsewhere]
    held = _held(reader, entries)
    with frozen_claims() as claims:
        kept = [each for each in removable if _is_held(each, held) or each.fingerprint in claims]
    names_kept = {each.name for each in kept}
    return Cleaning(
        checkpoints=[each for each in removable if each.name not in names_kept],
        state=[] if names else disk_usage.removable_state(),
        held=kept,
    )


def _is_removable(each: CheckpointUsage, older: float | None, *, shared: bool) -> bool:
    is_old = older is not None and each.age > older
    if each.state == ORPHANED:
        # In another storage than the home's own, it may be a run of another MLflow, which this command does not query.
        return each.age > MIN_ORPHAN_AGE_SECONDS and (is_old or not shared)
    return each.state == FINISHED or is_old


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Studies and runs that processes hold by their leases in MLflow."""

    parents: frozenset[str]
    """IDs of the studies' own runs."""
    bases: frozenset[str]
    """IDs of their base configurations, which mark the trials of searches."""
    fingerprints: frozenset[str]
    """Runs of their designs, which may belong to other studies, too."""


def _held(reader: Reader, entries: Sequence[catalog.StudyEntry]) -> _Held:
    running = [entry for entry in entries if entry.is_running]
    designs = [catalog.read_design(reader, entry) for entry in running]
    return _Held(
        parents=frozenset(entry.run_id for entry in running),
        bases=frozenset(entry.tags["base"] for entry in running if "base" in entry.tags),
        fingerprints=frozenset(name for design in designs if design for cell in design.cells for name in cell.fingerprints),
    )


def _is_held(each: CheckpointUsage, held: _Held) -> bool:
    return each.parent in held.parents or each.fingerprint in held.fingerprints or bool(held.bases.intersection(each.searches))


def _fingerprints_elsewhere(uri: str) -> set[str]:
    """Return the runs of the home's own database, which shares the storage with the MLflow that the command uses."""
    own = paths.sqlite_uri(paths.home() / "mlflow.db")
    if own == uri or is_new_database(own):
        return set()
    return read(own, disk_usage.fingerprints)


def remove(found: Cleaning, storage: str) -> tuple[list[CheckpointUsage], list[CheckpointUsage]]:
    """Remove what was found.

    Returns:
        The folders that stay since a study has claimed their runs meanwhile, and those that cannot be removed.
    """
    kept, failed = [], []
    for each in found.checkpoints:
        with frozen_claims() as claims:  # no study of this home can start in between
            if each.fingerprint in claims:
                kept.append(each)
            elif not _remove_folder(storage, each.name):
                failed.append(each)
    if found.state:
        private_files.remove_unused_ray_folders()
        scratch_folders.remove_abandoned_folders(paths.home() / "tune")
    return kept, failed


def _remove_folder(storage: str, name: str) -> bool:
    """Remove a checkpoint folder; print why and return False if this is not possible."""
    from ablations.engine.environment.storage import is_local, open_storage, without_credentials  # imports pyarrow

    try:
        if is_local(storage):
            shutil.rmtree(Path(disk_usage.local_path(storage), name))
        else:
            files, root, _ = open_storage(storage)
            files.delete_dir(f"{root}/{name}")
    except FileNotFoundError:
        pass  # the study that has removed it needs it no more either
    except OSError as error:
        where = without_credentials(storage)
        print(f"{where}/{name} cannot be removed: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return False
    return True


def _confirmed() -> bool:
    try:
        answer = input("Remove these? [y/N] ")
    except EOFError:
        print("\nNothing was removed: standard input gives no answer; --yes removes without asking.")
        return False
    return answer.strip().lower() in ("y", "yes")


def _sums(found: Sequence[CheckpointUsage]) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for each in found:
        count, size = sums.get(each.state, (0, 0))
        sums[each.state] = count + 1, size + each.bytes
    return sums


def _print(found: Cleaning, given: argparse.Namespace) -> None:
    from ablations.engine.environment.console import make_console, print_line

    console = make_console()
    for state, (count, size) in _sums(found.checkpoints).items():
        reason = REASONS[state].format(older=given.older_than)
        print_line(console, f"{format_size(size):>8}  {counted(count, 'checkpoint folder')}: {reason}{_of_studies(found, state)}")
    for each in found.state:
        what = "temporary folder of a Ray that has ended" if each.kind == "ray" else "scratch folder of a process that has ended"
        print_line(console, f"{format_size(each.bytes):>8}  {what}: {each.path}")
    if found.held:
        verb = "stays" if len(found.held) == 1 else "stay"
        print_line(console, f"{counted(len(found.held), 'checkpoint folder')} {verb}: running studies hold them.")
    print_line(console, f"{format_size(found.bytes)} in all." if found.bytes else "There is nothing to remove.")


def _of_studies(found: Cleaning, state: str) -> str:
    names = sorted({each.study for each in found.checkpoints if each.state == state and each.study})
    return f" ({', '.join(names)})" if names else ""


def _emit(
    given: argparse.Namespace,
    found: Cleaning,
    *,
    removed: bool,
    kept: Sequence[CheckpointUsage] = (),
    failed: Sequence[CheckpointUsage] = (),
) -> None:
    gone = found.bytes - sum(each.bytes for each in (*kept, *failed)) if removed else 0
    if given.json:
        print_document(_document(found, kept, failed, freed=gone))
    elif removed:
        print(f"{format_size(gone)} freed.")


def _document(
    found: Cleaning, kept: Sequence[CheckpointUsage], failed: Sequence[CheckpointUsage], *, freed: int
) -> Mapping[str, Any]:
    return {
        "schema": SCHEMA,
        "checkpoints": [_checkpoint(each) for each in found.checkpoints],
        "other": [{"kind": each.kind, "path": each.path, "bytes": each.bytes} for each in found.state],
        "held": [_checkpoint(each) for each in (*found.held, *kept)],
        "failed": [_checkpoint(each) for each in failed],
        "bytes": found.bytes,
        "freed": freed,
    }


def _checkpoint(each: CheckpointUsage) -> dict[str, Any]:
    return {
        "folder": each.name,
        "state": each.state,
        "study": each.study or None,
        "run_id": each.run_id or None,
        "bytes": each.bytes,
    }
