"""Folders of killed processes go, those of living ones and of other machines stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.engine.environment import scratch_folders


def test_only_folders_whose_process_is_known_to_be_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_where_machines_cannot_be_told_apart_all_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(scratch_folders, "machine_id", lambda: "MacBook")
    (tmp_path / scratch_folders.owned_folder_name("train").replace(f"-{os.getpid()}", f"-{ended.pid}")).mkdir()
    scratch_folders.remove_abandoned_folders(tmp_path)
    assert list(tmp_path.iterdir())


def test_where_there_is_no_folder_yet_nothing_happens(tmp_path: Path) -> None:
    scratch_folders.remove_abandoned_folders(tmp_path / "tune")
