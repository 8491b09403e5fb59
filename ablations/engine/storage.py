"""Where checkpoints go: a folder of this machine, a shared one, or an object store, each through pyarrow."""

import tempfile
from pathlib import Path

from pyarrow import ArrowException, fs

from resnet_core.fields import reject


def open_storage(storage: str) -> tuple[fs.FileSystem, str, str]:
    """The file system of a folder or URI, the path there, and what to call it: without keys that its address may hold.

    Raises:
        ArrowException, OSError: nothing can be reached by this address.
    """
    if "://" not in storage:
        return fs.LocalFileSystem(), storage.rstrip("/"), storage
    files, path = fs.FileSystem.from_uri(storage)
    return files, path.rstrip("/"), f"{storage.partition('://')[0]}://{path}"


def check_there(storage: str) -> None:
    """Raises OSError where the folder that `check_storage` made is gone. Whoever made it anew would fill another disk."""
    files, path, name = open_storage(storage)
    if isinstance(files, fs.LocalFileSystem) and not Path(path).is_dir():
        raise FileNotFoundError(f"storage {name} is gone")


def check_storage(storage: str) -> None:
    """Makes the folder; raises ConfigError where this process cannot keep anything."""
    name = storage.partition("?")[0].rpartition("@")[2]
    try:
        files, path, name = open_storage(storage)
        if isinstance(files, fs.LocalFileSystem):
            Path(path).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"can be written")
                file.flush()
        elif files.get_file_info(path.partition("/")[0]).type is fs.FileType.NotFound:
            raise FileNotFoundError("there is no such bucket")
    except (ArrowException, OSError) as error:
        # The text of an error may repeat the address.
        reason = str(error).partition("\n")[0].replace(storage, name)
        raise reject("--storage", name, f"cannot be used ({reason})") from error
