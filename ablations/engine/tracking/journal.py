"""Journal of a submission: a local lock on the study and its runs, and the records that MLflow has not accepted yet.

A journal is three files in `<home>/journals`. `<name>.hold` stays locked as long as its process lives, `<name>.runs` names that
process and the runs it trains, and `<name>.jsonl` stores the records. The operating system releases the lock when the process ends,
however it ends, so that no holder has to be presumed alive or dead. The next submission to the same MLflow delivers the records of
processes that have ended.

The lock works between submissions that share `<home>`: all of one machine, and all jobs of one cluster, which run on its head node.
"""

import errno
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ablations.engine.environment import paths
from ablations.engine.environment.provenance import submission_id
from resnet_core.fields import ConfigError, reject

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Record:
    """An event of a run that MLflow must log: plain values, which outlive the process that wrote them."""

    kind: str
    """Event: start, epoch, probes, predictions, conditions or end."""
    fingerprint: str
    generation: int
    """Number of the training: 1, or a higher number after `--rerun`. A restart after a crash does not change it."""
    experiment_id: str
    """Experiment of the run, or the one in which to create it."""
    run: str
    """Cell and seed of the run, for messages."""
    time_ms: int
    """Time of the event, in milliseconds since 1970."""
    values: Mapping[str, Any] = field(default_factory=dict)
    study_run: str = ""
    """ID of the study's own run in MLflow."""
    token: str = ""
    """Lease token of the process that wrote the record: see `lease`."""

    @property
    def key(self) -> tuple[str, int]:
        """Fingerprint and generation, which identify one MLflow run."""
        return self.fingerprint, self.generation


class Journal:
    """Journal of one submission, which holds the study for this process until the `with` block ends.

    Args:
        tracking_uri: address of the MLflow that tracks the study.
        study: name of the study.
        base_id: hash of its base configuration. Studies that differ in it are different studies.

    Raises:
        ConfigError: another living process holds the study, or the home folder cannot be written.
    """

    def __init__(self, tracking_uri: str, study: str, base_id: str) -> None:
        self.study, self.folder = study, paths.home() / "journals"
        address = tracking_uri.rstrip("/").replace("//localhost", "//127.0.0.1")
        address = address.removeprefix(f"{paths.sqlite_uri(paths.home())}/")  # the home may move
        self._tracking = hashlib.sha256(address.encode()).hexdigest()[:8]  # the address itself may hold a password
        name = f"{study}-{base_id}-{self._tracking}"
        self._hold, self._runs, self._file = (self.folder / f"{name}{suffix}" for suffix in (".hold", ".runs", ".jsonl"))
        self._broken: set[tuple[str, int]] = set()
        """Runs with a record that could not be written to disk."""
        self._synced = True
        with self._mutex():
            self._lock = self._acquire_hold()
            self._recover_orphans()
            self._records = self._file.open("ab", buffering=0)
            others = self._claims_of_others()
            self.recovered: Sequence[Record] = tuple(r for r in _records(self._file) if r.fingerprint not in others)
            """Undelivered records of ended processes, oldest first, without runs that a living process trains and reports again."""
            self._recorded = {record.fingerprint for record in self.recovered}
            self._write_runs(self._recorded)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._mutex():
            if not os.fstat(self._records.fileno()).st_size:
                _remove(self._hold)
            self._records.close()
            self._lock.release()

    def claim(self, fingerprints: Iterable[str]) -> Mapping[str, str]:
        """Claim runs for this process and give up earlier claims, except on runs with undelivered records.

        Returns:
            The runs that other living processes have claimed, by fingerprint, with a description of the process.
        """
        wanted = set(fingerprints)
        with self._mutex():
            others = self._claims_of_others()
            self._write_runs(wanted - others.keys() | self._recorded)
        return {fingerprint: others[fingerprint] for fingerprint in wanted & others.keys()}

    def claimed_elsewhere(self) -> Mapping[str, str]:
        """Return the runs that other living processes have claimed, by fingerprint, with a description of the process."""
        with self._mutex():
            return self._claims_of_others()

    def append(self, record: Record) -> None:
        """Store a record until `clear`. It survives a crash of the process; after `sync`, also one of the machine."""
        self._recorded.add(record.fingerprint)
        if record.key in self._broken:
            return  # without the earlier record, later ones would describe only part of the run
        line = _line(record)
        try:
            if self._records.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # a full disk must not stop training; the record is delivered from memory
            self._broken.add(record.key)
            logger.warning("%s cannot be written (%s): records of %s are kept in memory only", self._file, error, record.run)
        self._synced = False

    def sync(self) -> None:
        """Flush appended records to the disk."""
        if not self._synced:
            self._synced = True
            with suppress(OSError, ValueError):  # ValueError: the study has ended and closed the file
                os.fsync(self._records.fileno())

    def quarantine(self, records: Iterable[Record]) -> Path:
        """Move records that MLflow will never accept to a file that nothing delivers; return its path."""
        path = self._file.with_suffix(".refused")
        with suppress(OSError), path.open("ab") as file:
            file.writelines(map(_line, records))
        return path

    def clear(self) -> None:
        """Delete all records, which are delivered."""
        self._recorded.clear()
        self._broken.clear()
        with suppress(OSError, ValueError):
            self._records.truncate(0)

    def _acquire_hold(self) -> FileLock:
        lock = _try_lock(self._hold)
        if lock is None:
            raise study_is_locked_error(self.study, _read(self._runs).get("holder", "another process"))
        return lock

    @contextmanager
    def _mutex(self) -> Iterator[None]:
        """Exclude other processes while this one examines and changes journals."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "mutex"):
                yield
        except OSError as error:
            raise reject("RESNET_ABLATIONS_HOME", str(paths.home()), f"cannot be written ({error})") from error

    def _other_holds(self) -> list[Path]:
        """Return the lock files of all other submissions to the same MLflow."""
        return sorted(path for path in self.folder.glob(f"*-{self._tracking}.hold") if path != self._hold)

    def _recover_orphans(self) -> None:
        """Move the records of ended processes into this journal."""
        for path in self._other_holds():
            lock = _try_lock(path)
            if lock is not None:
                with self._file.open("ab") as ours:
                    ours.writelines(map(_line, _records(path.with_suffix(".jsonl"))))
                    ours.flush()
                    os.fsync(ours.fileno())
                _remove(path)
                lock.release()

    def _claims_of_others(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self._other_holds():
            lock = _try_lock(path)
            if lock is None:
                if content := _read(path.with_suffix(".runs")):
                    found |= dict.fromkeys(content["runs"], f"{content['study']}, {content['holder']}")
            else:
                lock.release()
        return found

    def _write_runs(self, runs: Iterable[str]) -> None:
        # Replaces the file atomically: on a full disk the old one stays, and with it the claims on runs in training.
        new = self._runs.with_suffix(".new")
        new.write_text(json.dumps({"study": self.study, "holder": describe_process(), "runs": sorted(runs)}))
        new.replace(self._runs)


@contextmanager
def frozen_claims() -> Iterator[Mapping[str, str]]:
    """Keep submissions of this home from claiming runs inside the block; yield the runs that must stay as they are.

    These are the runs that living processes have claimed, for any MLflow, and those with records that MLflow has not accepted yet.

    Yields:
        A description of the process, by fingerprint.
    """
    folder = paths.home() / "journals"
    found: dict[str, str] = {}
    if not folder.is_dir():
        yield found
        return
    with FileLock(folder / "mutex"):
        for path in sorted(folder.glob("*.hold")):
            lock = _try_lock(path)
            if lock is not None:
                lock.release()
            if lock is None and (content := _read(path.with_suffix(".runs"))):
                found |= dict.fromkeys(content["runs"], f"{content['study']}, {content['holder']}")
            for record in _records(path.with_suffix(".jsonl")):
                found.setdefault(record.fingerprint, "records that MLflow has not accepted yet")
        yield found


class StudyIsRunning(ConfigError):  # noqa: N818 - a state of the study, not a mistake in the request
    """Another process is running the study. The same request is accepted once that process has ended."""

    exit_code = 5


def study_is_locked_error(study: str, holder: str) -> StudyIsRunning:
    """Return the error for a study that another process is running."""
    return StudyIsRunning(str(reject("study", study, f"is running already: {holder} holds it; wait until it ends, or stop it")))


def describe_process() -> str:
    """Describe this process by job, process ID and machine."""
    job = submission_id()
    return f"{f'job {job}, ' if job else ''}process {os.getpid()} on {socket.gethostname()}"


def _try_lock(path: Path) -> FileLock | None:
    """Lock a file until `release` or the end of this process; return None if another process has locked it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):  # the process crashed before it wrote the file
        return {}
    return content


def _remove(hold: Path) -> None:
    """Delete a journal's files, the lock last: if this process is killed halfway, the next one finds the rest."""
    for suffix in (".jsonl", ".new", ".runs", ".hold"):
        hold.with_suffix(suffix).unlink(missing_ok=True)


def _line(record: Record) -> bytes:
    # The separator comes first, so that a record after an incomplete line (full disk, killed process) is still readable.
    return f"\n{json.dumps(asdict(record))}".encode()


def _records(path: Path) -> list[Record]:
    found = []
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        with suppress(ValueError, TypeError):  # an incomplete line: the process crashed while writing it
            found.append(Record(**json.loads(line)))
    return found
