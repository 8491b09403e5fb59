"""Check of the checkpoint storage: every node can write to it, and all nodes see the same place.

Each node writes a file in the way a checkpoint is written. When all have written, each node lists the folder and reads a file of
another node. Listing it earlier might make a network file system cache that the folder is empty.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyarrow import ArrowException, fs

from ablations.engine.cluster.doctor.check import Check, failed, join_names, passed
from ablations.engine.cluster.doctor.nodes import Node, run_on_nodes
from ablations.engine.environment.storage import apply_group_permissions, make_folder, open_storage, without_credentials

MEGABYTE = 1_000_000
"""Bytes per MB."""
CLEANUP_TIMEOUT_SECONDS = 5.0
"""Time limit for all nodes to remove the test files."""


@dataclass(frozen=True)
class WriteResult:
    """The outcome of one node's writing."""

    seconds: float
    """Time to write 1 MB, rename the file (file systems only) and read it back."""
    error: str = ""


@dataclass(frozen=True)
class ReadResult:
    """The files that one node sees in the folder."""

    names: frozenset[str]
    error: str = ""


@dataclass(frozen=True)
class StorageMeasurements:
    """Results by node name. Nodes that did not answer are in neither mapping."""

    written: Mapping[str, WriteResult]
    read: Mapping[str, ReadResult]


def write_test_file(storage: str, folder: str, name: str) -> WriteResult:
    """Write 1 MB from the node of this process and read it back."""
    began = time.monotonic()
    content = _content(name)
    try:
        files, root, _ = open_storage(storage)
        path = f"{root}/{folder}/{name}"
        if isinstance(files, fs.LocalFileSystem):
            # The process that asks has made the root. Making it here would hide that a share is not mounted.
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
                raise OSError("the content read back differs from the content written")
    except (ArrowException, OSError) as error:
        return WriteResult(time.monotonic() - began, _reason(error, storage))
    return WriteResult(time.monotonic() - began)


def list_and_read(storage: str, folder: str, other: str) -> ReadResult:
    """List the folder from the node of this process, and read the file of another node if it is there."""
    names: frozenset[str] = frozenset()
    try:
        files, root, _ = open_storage(storage)
        found = files.get_file_info(fs.FileSelector(f"{root}/{folder}", allow_not_found=True))
        names = frozenset(info.base_name for info in found)
        if other in names:
            with files.open_input_file(f"{root}/{folder}/{other}") as file:
                if file.read() != _content(other):
                    raise OSError("a file of another node has different content here")
    except (ArrowException, OSError) as error:
        return ReadResult(names, _reason(error, storage))
    return ReadResult(names)


def remove_folder(storage: str, folder: str) -> None:
    """Remove the test files, as the node of this process sees them."""
    with suppress(ArrowException, OSError):
        files, root, _ = open_storage(storage)
        files.delete_dir(f"{root}/{folder}")


@contextmanager
def temporary_folder(storage: str, nodes: Sequence[Node]) -> Iterator[str]:
    """Yield the name of a new folder in the storage; afterwards every node removes it."""
    folder = f".doctor-{uuid.uuid4().hex[:12]}"
    try:
        yield folder
    finally:
        functions: dict[Node, Callable[[], None]] = {node: partial(remove_folder, storage, folder) for node in nodes}
        run_on_nodes(functions, CLEANUP_TIMEOUT_SECONDS)


def read_on_nodes(storage: str, folder: str, nodes: Sequence[Node], timeout_seconds: float) -> dict[str, ReadResult]:
    """Let every node list the folder and read the next node's file. Call it when all have written. Return results by node name."""
    ring = dict(zip(nodes, [*nodes[1:], *nodes[:1]], strict=True))
    functions = {node: partial(list_and_read, storage, folder, following.id) for node, following in ring.items()}
    results, _ = run_on_nodes(functions, timeout_seconds)
    return {node.name: result for node, result in results.items()}


def evaluate(storage: str, ids: Mapping[str, str], measured: StorageMeasurements) -> Check:
    """Return the verdict: whether every node can write to the storage, and all see one place.

    Args:
        storage: address of the storage.
        ids: name of the file that each node wrote, by node name.
        measured: results of writing and reading.
    """
    place = without_credentials(storage)
    write_errors = {node: result.error for node, result in measured.written.items() if result.error}
    if write_errors:
        remedy = (
            "mount the share on that node, and give its user or role permission to write; keys and endpoint of an object store "
            "come from each node's environment"
        )
        return failed("storage", f"{join_names(write_errors)} cannot write {place} ({write_errors[min(write_errors)]})", remedy)
    read_errors = {node: result.error for node, result in measured.read.items() if result.error}
    if read_errors:
        remedy = "let all nodes read each other's files: one user ID on all, or a group that owns the folder"
        detail = f"{join_names(read_errors)} cannot read files of other nodes in {place} ({read_errors[min(read_errors)]})"
        return failed("storage", detail, remedy)
    written = {ids[node] for node in measured.written}
    views = {node: result.names & written for node, result in measured.read.items()}
    if any(view != written for view in views.values()):
        # The head comes first: if two halves are equally large, the half without the head is named.
        smallest = min(reversed(views.values()), key=len)
        alone = [node for node, view in views.items() if view == smallest]
        remedy = "mount one share at this path on all nodes, or use a bucket: s3://…, gs://…"
        return failed("storage", f"{place} is a different place on {join_names(alone)} than on the other nodes", remedy)
    slowest = max(measured.written.values(), key=lambda result: result.seconds, default=WriteResult(0))
    count = len(measured.written)
    shared = f", the same for {count} nodes" if count > 1 else ""
    return passed("storage", f"{place}{shared}; 1 MB written and read in {slowest.seconds:.2f} s or less")


def _content(name: str) -> bytes:
    return (name.encode() * (MEGABYTE // len(name) + 1))[:MEGABYTE]


def _reason(error: Exception, storage: str) -> str:
    """Return the first line of an error. The address in it is replaced, because it may contain keys."""
    return str(error).partition("\n")[0].replace(storage, without_credentials(storage))
