"""Whether every node can keep checkpoints, and all in one place.

Each node writes a file there as a checkpoint is written. When all have, each looks which files it sees, and reads one that another
node wrote: looking earlier might make a network's file system remember that there was nothing.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyarrow import ArrowException, fs

from ablations.engine.cluster.doctor.check import Check, listed, ok, wrong
from ablations.engine.cluster.doctor.nodes import Node, ask
from ablations.engine.environment.storage import apply_group_permissions, make_folder, open_storage, without_credentials

MEGABYTE = 1_000_000
CLEANING_SECONDS = 5.0


@dataclass(frozen=True)
class Written:
    """How a node's writing went."""

    seconds: float
    """For a megabyte: written, renamed where storage is a file system, read back."""
    error: str = ""


@dataclass(frozen=True)
class Seen:
    """What a node sees of the others."""

    names: frozenset[str]
    error: str = ""


@dataclass(frozen=True)
class Storage:
    """What was measured, by node. Nodes that did not answer are in neither."""

    written: Mapping[str, Written]
    seen: Mapping[str, Seen]


def write(storage: str, folder: str, name: str) -> Written:
    """Writes a megabyte from the node of this process, and reads it back."""
    began = time.monotonic()
    content = _content(name)
    try:
        files, root, _ = open_storage(storage)
        path = f"{root}/{folder}/{name}"
        if isinstance(files, fs.LocalFileSystem):
            # The root was made by whoever asks. Made here, it would hide that a share is not mounted.
            make_folder(Path(root, folder))
            partial_file = Path(f"{path}.partial")
            partial_file.write_bytes(content)
            apply_group_permissions(partial_file)
            partial_file.replace(path)
        else:
            with files.open_output_stream(path) as stream:
                stream.write(content)
        with files.open_input_file(path) as file:
            if file.read() != content:
                raise OSError("what was read back is not what was written")
    except (ArrowException, OSError) as error:
        return Written(time.monotonic() - began, _reason(error, storage))
    return Written(time.monotonic() - began)


def see(storage: str, folder: str, other: str) -> Seen:
    """Which files the node of this process sees; it reads that of another node."""
    names: frozenset[str] = frozenset()
    try:
        files, root, _ = open_storage(storage)
        found = files.get_file_info(fs.FileSelector(f"{root}/{folder}", allow_not_found=True))
        names = frozenset(info.base_name for info in found)
        if other in names:
            with files.open_input_file(f"{root}/{folder}/{other}") as file:
                if file.read() != _content(other):
                    raise OSError("what another node wrote reads differently")
    except (ArrowException, OSError) as error:
        return Seen(names, _reason(error, storage))
    return Seen(names)


def clean(storage: str, folder: str) -> None:
    """Removes what was written, as the node of this process sees it."""
    with suppress(ArrowException, OSError):
        files, root, _ = open_storage(storage)
        files.delete_dir(f"{root}/{folder}")


@contextmanager
def folder_in(storage: str, nodes: Sequence[Node]) -> Iterator[str]:
    """A name for a folder in the storage, which every node removes in the end."""
    folder = f".doctor-{uuid.uuid4().hex[:12]}"
    try:
        yield folder
    finally:
        functions: dict[Node, Callable[[], None]] = {node: partial(clean, storage, folder) for node in nodes}
        ask(functions, CLEANING_SECONDS)


def look(storage: str, folder: str, nodes: Sequence[Node], seconds: float) -> dict[str, Seen]:
    """Lets every node look, when all have written; by their names."""
    ring = dict(zip(nodes, [*nodes[1:], *nodes[:1]], strict=True))
    seen, _ = ask({node: partial(see, storage, folder, following.id) for node, following in ring.items()}, seconds)
    return {node.name: view for node, view in seen.items()}


def judge(storage: str, ids: Mapping[str, str], measured: Storage) -> Check:
    """Whether it is one place, where every node can write.

    Args:
        storage: its address.
        ids: under which name each node wrote, by node.
        measured: what came of it.
    """
    place = without_credentials(storage)
    failed = {node: written.error for node, written in measured.written.items() if written.error}
    if failed:
        one = min(failed)
        remedy = "mount the share there, or let the node's role or user write; keys and endpoint come from each node's environment"
        return wrong("storage", f"{listed(failed)} cannot write {place} ({failed[one]})", remedy)
    unread = {node: seen.error for node, seen in measured.seen.items() if seen.error}
    if unread:
        remedy = "let every node's user read what the others write: one user id on all, or a group that shares the folder"
        return wrong("storage", f"{listed(unread)} cannot read {place} as others wrote it ({unread[min(unread)]})", remedy)
    written = {ids[node] for node in measured.written}
    views = {node: seen.names & written for node, seen in measured.seen.items()}
    if any(view != written for view in views.values()):
        # The head comes first: of two halves as large as each other, the other one is named.
        smallest = min(reversed(views.values()), key=len)
        alone = [node for node, view in views.items() if view == smallest]
        remedy = "mount one share on all nodes, or use one bucket of one account: s3://…, gs://…"
        return wrong("storage", f"{place} is another place on {listed(alone)} than on the other nodes", remedy)
    slowest = max(measured.written.values(), key=lambda written: written.seconds, default=Written(0))
    count = len(measured.written)
    one_place = f", one place for {count} nodes" if count > 1 else ""
    return ok("storage", f"{place}{one_place}; 1 MB written and read in {slowest.seconds:.2f} s or less")


def _content(name: str) -> bytes:
    return (name.encode() * (MEGABYTE // len(name) + 1))[:MEGABYTE]


def _reason(error: Exception, storage: str) -> str:
    """The first line, without the address, which may hold keys."""
    return str(error).partition("\n")[0].replace(storage, without_credentials(storage))
