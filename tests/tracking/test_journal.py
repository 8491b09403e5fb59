"""The journal excludes concurrent submissions of a study, and its records survive the process that wrote them."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ablations.engine.environment import paths
from ablations.engine.tracking.journal import Journal, Record
from resnet_core import ConfigError

URI = "http://user:secret@tracking"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path))
    return tmp_path


def record(epoch: int) -> Record:
    values = {"epoch": epoch, "metrics": {"test/error": float("inf")}}
    return Record(
        kind="epoch", fingerprint="f", generation=1, experiment_id="0", run="depth=8 seed=0", time_ms=epoch, values=values
    )


def open_journal(study: str = "small", *, uri: str = URI) -> Journal:
    return Journal(uri, study, "base")


def files(home: Path) -> set[str]:
    return {path.suffix for path in (home / "journals").iterdir()} - {""}


def test_records_of_a_home_that_was_moved_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old := tmp_path / "o%ld").mkdir()
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(old))
    with open_journal(uri=paths.default_tracking_uri()) as journal:
        journal.append(record(1))
    old.rename(new := tmp_path / "new")
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(new))
    with open_journal("another", uri=paths.default_tracking_uri()) as journal:
        assert [found.time_ms for found in journal.recovered] == [1]


class Holder:
    """A process that holds a study and some runs, with two and a half undelivered records."""

    def __init__(self, study: str = "small", runs: str = "ab") -> None:
        code = f"""
import sys, time
from tests.tracking.test_journal import open_journal, record
with open_journal({study!r}) as journal:
    journal.claim({runs!r})
    journal.append(record(1))
    journal.append(record(2))
    journal._records.write(b'\\n{{"kind": "epo')
    print("holding", flush=True)
    time.sleep(100)
"""
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "holding\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_a_study_is_held_by_one_living_process_and_a_dead_one_is_succeeded(home: Path) -> None:
    holder = Holder()
    try:
        with pytest.raises(ConfigError, match=rf"study=small: is running already: process {holder.process.pid} on \S+ holds it"):
            open_journal()
    finally:
        holder.kill()
    with open_journal() as journal:
        assert [r.time_ms for r in journal.recovered] == [1, 2]
        journal.append(record(3))  # behind the half line that the dead one left
    with open_journal() as journal:
        assert journal.recovered == (record(1), record(2), record(3))
        journal.clear()
    assert files(home) == set()


def test_the_next_submission_of_any_study_inherits_what_a_dead_one_left(home: Path) -> None:
    Holder("first").kill()
    with open_journal("elsewhere", uri="sqlite:///another") as journal:
        assert not journal.recovered
    with open_journal("second") as journal:
        assert journal.recovered == (record(1), record(2))
        with open_journal("third") as other:
            assert not other.recovered, "the second holds them now, and lives"


def test_a_run_is_held_by_one_living_study() -> None:
    holder = Holder("first", "ab")
    try:
        with open_journal("second") as journal:
            assert set(journal.claim("bc")) == {"b"}
            assert f"first, process {holder.process.pid}" in journal.claim("bc")["b"]
            with open_journal("third") as third:
                assert set(third.claim("abcd")) == {"a", "b", "c"}
                assert set(journal.claim("d")) == {"d"}, "the third has it, and the second gives c back"
                assert set(third.claim("abcd")) == {"a", "b"}
            holder.kill()
            assert not journal.claim("abcd"), "dead and ended processes hold nothing"
    finally:
        holder.kill()


def test_what_cannot_be_written_is_told_and_does_not_end_a_study(caplog: pytest.LogCaptureFixture, home: Path) -> None:
    with open_journal() as journal:
        path = Path(journal._records.name)
        path.unlink()
        path.symlink_to("/dev/full")
        journal._records.close()
        journal._records = path.open("ab", buffering=0)
        journal.append(record(1))
        assert "No space left on device" in caplog.text
        path.unlink()
        journal._records.close()
        journal._records = path.open("ab", buffering=0)
        journal.append(record(2))
    with open_journal() as journal:
        assert not journal.recovered, "without its first record, a run's later ones would tell half of it"


@contextmanager
def full_disk() -> Iterator[None]:
    """Let files be created but not grow, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_study_holds_on_a_full_disk_it_still_holds() -> None:
    with open_journal("first") as first, open_journal("second") as second:
        first.claim("ab")
        with full_disk(), pytest.raises(ConfigError, match=r"RESNET_ABLATIONS_HOME=\S+: cannot be written"):
            first.claim("abc")
        assert set(second.claim("abc")) == {"a", "b"}
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on "):
            open_journal("first")
        first.claim("bc")
        assert set(second.claim("ab")) == {"b"}


def test_the_records_of_a_study_that_was_killed_while_it_wrote_what_it_holds_are_inherited(home: Path) -> None:
    Holder("first").kill()
    for path in (home / "journals").iterdir():
        if path.suffix != ".jsonl":
            path.write_text("")
    with open_journal("second") as journal:
        assert journal.recovered == (record(1), record(2))
        journal.clear()
    assert files(home) == set()


def test_a_home_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", "/proc/nowhere")
    with pytest.raises(ConfigError, match="RESNET_ABLATIONS_HOME=/proc/nowhere: cannot be written"):
        open_journal()


def test_a_password_in_the_tracking_address_is_written_nowhere(home: Path) -> None:
    with open_journal() as journal:
        journal.append(record(1))
        assert not any("secret" in path.read_text() + path.name for path in (home / "journals").iterdir())


def test_a_job_is_named_by_the_name_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    with open_journal(), pytest.raises(ConfigError, match=f"job raysubmit_1, process {os.getpid()}"):
        open_journal()


@pytest.mark.slow
def test_many_processes_at_once_agree_on_one_holder() -> None:
    code = """
import sys, time
from tests.tracking.test_journal import open_journal
while time.time() < float(sys.argv[1]):
    pass
try:
    with open_journal():
        print("held", flush=True)
        sys.stdin.read()
except ValueError:
    print("refused", flush=True)
"""
    command = [sys.executable, "-c", code, str(time.time() + 1)]
    crowd = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.stdout.readline().strip() for process in crowd if process.stdout]
    for process in crowd:
        process.communicate()
    assert sorted(said) == ["held"] + ["refused"] * 5
