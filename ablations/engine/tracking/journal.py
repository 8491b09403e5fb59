"""The journal of a submission: the study and the runs that it holds, and the records that MLflow has not taken yet.

A journal is three files in `<home>/journals`: `<name>.hold` is locked for as long as its process lives, `<name>.runs` says who that
is and what it holds, `<name>.jsonl` keeps the records. The lock is the kernel's and ends with the process, however that ended, so
nobody has to guess whether a holder is alive. What a dead one left behind, the next submission to the same MLflow takes over.

It keeps submissions apart that share `<home>`: all of one machine, and all jobs of one cluster, which run on its head.
"""

import errno
import fcntl
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

from ablations.engine.environment import paths
from ablations.engine.environment.provenance import submission_id
from resnet_core.fields import ConfigError, reject

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that MLflow is to know of a run: plain values, which outlive the process that wrote them."""

    kind: str
    """start, epoch, probes or end."""
    fingerprint: str
    generation: int
    experiment_id: str
    """Where the run is, or is to be made."""
    run: str
    """Its cell and seed, for people."""
    time_ms: int
    values: Mapping[str, Any] = field(default_factory=dict)
    study_run: str = ""
    """The study's run in MLflow."""
    token: str = ""
    """Token of the process that held the study: see `heartbeat`."""

    @property
    def key(self) -> tuple[str, int]:
        """What one MLflow run stands for."""
        return self.fingerprint, self.generation


class Journal:
    """Holds a study for this process from `with` to its end.

    Args:
        tracking_uri: the MLflow that the study is tracked in.
        study: its name.
        base_id: its base configuration: a study with another one is another study.

    Raises:
        ConfigError: another living process holds the study, or there can be no journal.
    """

    def __init__(self, tracking_uri: str, study: str, base_id: str) -> None:
        self.study, self.folder = study, paths.home() / "journals"
        address = tracking_uri.rstrip("/").replace("//localhost", "//127.0.0.1")
        address = address.removeprefix(f"{paths.database_uri(paths.home())}/")  # the records of a home that is moved stay known
        self._tracking = hashlib.sha256(address.encode()).hexdigest()[:8]  # the address itself may hold a password
        name = f"{study}-{base_id}-{self._tracking}"
        self._hold, self._runs, self._file = (self.folder / f"{name}{suffix}" for suffix in (".hold", ".runs", ".jsonl"))
        self._broken: set[tuple[str, int]] = set()
        """Runs of which a record could not be kept."""
        self._synced = True
        with self._mutex():
            self._lock = self._take()
            self._adopt()
            self._records = self._file.open("ab", buffering=0)
            others = self._others_hold()
            self.recovered: Sequence[Record] = tuple(r for r in _records(self._file) if r.fingerprint not in others)
            """What dead processes left to be delivered, oldest first. A living one that trains a run anew reports all of it."""
            self._kept = {record.fingerprint for record in self.recovered}
            self._write_runs(self._kept)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._mutex():
            if not os.fstat(self._records.fileno()).st_size:
                _remove(self._hold)
            self._records.close()
            os.close(self._lock)

    def claim(self, fingerprints: Iterable[str]) -> Mapping[str, str]:
        """Holds these runs, but for those that another living process holds: returned, with who that is.

        Of others that it held, it keeps those of which records wait.
        """
        wanted = set(fingerprints)
        with self._mutex():
            others = self._others_hold()
            self._write_runs(wanted - others.keys() | self._kept)
        return {fingerprint: others[fingerprint] for fingerprint in wanted & others.keys()}

    def claimed_elsewhere(self) -> Mapping[str, str]:
        """Fingerprints of runs that other living processes hold, and which process that is."""
        with self._mutex():
            return self._others_hold()

    def append(self, record: Record) -> None:
        """Keeps a record until `clear`. A process that is killed does not lose it; after `sync`, nor does a machine."""
        self._kept.add(record.fingerprint)
        if record.key in self._broken:
            return  # its end must not outlive what came before
        line = _line(record)
        try:
            if self._records.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # a full disk must not end a study: the record is still delivered from memory
            self._broken.add(record.key)
            logger.warning("%s cannot be written (%s): records of %s wait in memory only", self._file, error, record.run)
        self._synced = False

    def sync(self) -> None:
        """Brings what was appended to the disk itself."""
        if not self._synced:
            self._synced = True
            with suppress(OSError, ValueError):  # ValueError: closed, by the end of a study that no longer waits
                os.fsync(self._records.fileno())

    def quarantine(self, records: Iterable[Record]) -> Path:
        """Keeps records that MLflow will never take where nothing tries to deliver them; returns where."""
        path = self._file.with_suffix(".refused")
        with suppress(OSError), path.open("ab") as file:
            file.writelines(map(_line, records))
        return path

    def clear(self) -> None:
        """Forgets all records: they are delivered."""
        self._kept.clear()
        self._broken.clear()
        with suppress(OSError, ValueError):
            self._records.truncate(0)

    def _take(self) -> int:
        lock = _lock(self._hold)
        if lock is None:
            raise study_is_locked_error(self.study, _read(self._runs).get("holder", "another process"))
        return lock

    @contextmanager
    def _mutex(self) -> Iterator[None]:
        """For the moments in which a process looks at the journals of others."""
        file = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self.folder / "mutex", os.O_RDWR | os.O_CREAT)
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise reject("RESNET_ABLATIONS_HOME", str(paths.home()), f"cannot be written ({error})") from error
        finally:
            if file is not None:
                os.close(file)

    def _others(self) -> list[Path]:
        """The holds of all that submit to the same MLflow."""
        return sorted(path for path in self.folder.glob(f"*-{self._tracking}.hold") if path != self._hold)

    def _adopt(self) -> None:
        """Makes the records of dead processes our own."""
        for path in self._others():
            lock = _lock(path)
            if lock is not None:
                with self._file.open("ab") as ours:
                    ours.writelines(map(_line, _records(path.with_suffix(".jsonl"))))
                    ours.flush()
                    os.fsync(ours.fileno())
                _remove(path)
                os.close(lock)

    def _others_hold(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in self._others():
            lock = _lock(path)
            if lock is None:
                if content := _read(path.with_suffix(".runs")):
                    found |= dict.fromkeys(content["runs"], f"{content['study']}, {content['holder']}")
            else:
                os.close(lock)
        return found

    def _write_runs(self, runs: Iterable[str]) -> None:
        # Beside the old one first: if the disk is full, that stays, and the study still holds what it trains.
        new = self._runs.with_suffix(".new")
        new.write_text(json.dumps({"study": self.study, "holder": describe_process(), "runs": sorted(runs)}))
        new.replace(self._runs)


def study_is_locked_error(study: str, holder: str) -> ConfigError:
    """What a second submission of a running study is told."""
    return reject("study", study, f"is running already: {holder} holds it; wait for its end or stop it")


def describe_process() -> str:
    """Who this is: job, process, machine."""
    job = submission_id()
    return f"{f'job {job}, ' if job else ''}process {os.getpid()} on {socket.gethostname()}"


def _lock(path: Path) -> int | None:
    """An open file that holds the lock of `path`; None if another process has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):  # of a process that dies before it has written it
        return {}
    return content


def _remove(hold: Path) -> None:
    """A journal's files, the hold last: whoever is killed before that leaves it to the next one."""
    for suffix in (".jsonl", ".new", ".runs", ".hold"):
        hold.with_suffix(suffix).unlink(missing_ok=True)


def _line(record: Record) -> bytes:
    # A line begins with its separator: what follows half a line, of a full disk or a killed process, is whole.
    return f"\n{json.dumps(asdict(record))}".encode()


def _records(path: Path) -> list[Record]:
    found = []
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        with suppress(ValueError, TypeError):  # half a line: nothing relied on it yet
            found.append(Record(**json.loads(line)))
    return found
