"""Folders that a process removes at its end, named so that those of killed processes can be told apart and removed too."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import psutil

from ablations.engine.environment.provenance import machine_id

OWNER = re.compile(r"-on-([0-9a-f]{12})-(\d+)$")


def owned_folder_name(beginning: str) -> str:
    """Return a folder name that says where, and under which number, this process runs."""
    return f"{beginning}-on-{_machine()}-{os.getpid()}"


def remove_abandoned_folders(parent: Path) -> None:
    """Remove the folders whose process ran on this machine and is gone. Other machines may share `parent`; theirs stay."""
    if " " not in machine_id():  # a name alone, which may be that of two
        return
    for folder in parent.glob("*-on-*"):
        owner = OWNER.search(folder.name)
        if owner and owner[1] == _machine() and not psutil.pid_exists(int(owner[2])):
            shutil.rmtree(folder, ignore_errors=True)


def _machine() -> str:
    return hashlib.sha256(machine_id().encode()).hexdigest()[:12]
