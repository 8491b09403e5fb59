"""Temporary folders whose names identify the process that owns them, so that folders of killed processes can be removed."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import psutil

from ablations.engine.environment.provenance import machine_id

OWNER = re.compile(r"-on-([0-9a-f]{12})-(\d+)$")
"""End of a folder's name: hash of the machine's ID, and process ID of the owner."""


def owned_folder_name(prefix: str) -> str:
    """Return a folder name that ends with a hash of this machine's ID and with the ID of this process."""
    return f"{prefix}-on-{_machine_hash()}-{os.getpid()}"


def remove_abandoned_folders(parent: Path) -> None:
    """Remove the folders whose process ran on this machine and has ended. Folders of other machines that share `parent` stay."""
    for folder in abandoned_folders(parent):
        shutil.rmtree(folder, ignore_errors=True)


def abandoned_folders(parent: Path) -> list[Path]:
    """Return the folders whose process ran on this machine and has ended."""
    if " " not in machine_id():  # a host name alone, which two machines may share
        return []
    owners = ((folder, OWNER.search(folder.name)) for folder in sorted(parent.glob("*-on-*")))
    return [folder for folder, owner in owners if owner and owner[1] == _machine_hash() and not psutil.pid_exists(int(owner[2]))]


def _machine_hash() -> str:
    return hashlib.sha256(machine_id().encode()).hexdigest()[:12]
