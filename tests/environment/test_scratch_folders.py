"""Scratch folders of killed processes are removed; those of running processes and other machines stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.engine.environment import scratch_folders


def test_only_folders_of_processes_known_to_have_ended_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = scratch_folders.owned_folder_name("train-01000000")
    gone = own.replace(f"-{os.getpid()}", f"-{ended.pid}")
    monkeypatch.setattr(scratch_folders, "machine_id", lambda: "another boot pid:[1]")
    elsewhere = scratch_folders.owned_folder_name("train-01000000").replace(f"-{os.getpid()}", f"-{ended.pid}")
    monkeypatch.undo()
    stay = [own, elsewhere, f"train-01000000-{ended.pid}", f"x-on-y-{ended.pid}"]
    for name in (gone, *stay):
        (tmp_path / name / "trial").mkdir(parents=True)
    scratch_folders.remove_abandoned_folders(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


def test_no_folder_is_removed_if_machines_cannot_be_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(scratch_folders, "machine_id", lambda: "MacBook")
    (tmp_path / scratch_folders.owned_folder_name("train").replace(f"-{os.getpid()}", f"-{ended.pid}")).mkdir()
    scratch_folders.remove_abandoned_folders(tmp_path)
    assert list(tmp_path.iterdir())


def test_a_missing_parent_folder_is_no_error(tmp_path: Path) -> None:
    scratch_folders.remove_abandoned_folders(tmp_path / "tune")
