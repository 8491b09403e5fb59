"""AWS keys of this process's environment, moved into a file in memory.

Ray Tune copies the keys into the environment of each trial, which Ray writes to logs and command lines that all users can read.
"""

import configparser
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_VARIABLE = "AWS_SHARED_CREDENTIALS_FILE"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")


@contextmanager
def keys_in_memory() -> Iterator[None]:
    """Move this process's AWS keys from its environment to a credentials file in memory, until the end of the block.

    pyarrow and boto3 read the file where the environment has no keys. It has no name on a disk, ends with this process however that
    ends, and only this user's processes can open it.
    """
    keys = {name: os.environ[name] for name in KEYS if name in os.environ}
    if not keys:
        yield
        return
    before = os.environ.get(FILE_VARIABLE)
    file = os.memfd_create("aws-credentials")
    try:
        os.write(file, _credentials(keys).encode())
        os.environ[FILE_VARIABLE] = f"/proc/{os.getpid()}/fd/{file}"  # before the keys go: other threads may need them
        for name in keys:
            del os.environ[name]
        yield
    finally:
        os.environ.update(keys)
        if before is None:
            os.environ.pop(FILE_VARIABLE, None)
        else:
            os.environ[FILE_VARIABLE] = before
        os.close(file)


def _credentials(keys: dict[str, str]) -> str:
    """Return the user's credentials file with these keys for the profile in use; without an ID among them, the file as it is."""
    parser = configparser.RawConfigParser()
    parser.read(Path(os.environ.get(FILE_VARIABLE) or "~/.aws/credentials").expanduser())
    if KEYS[0] in keys:
        parser[os.environ.get("AWS_PROFILE") or "default"] = {name.lower(): value for name, value in keys.items()}
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
