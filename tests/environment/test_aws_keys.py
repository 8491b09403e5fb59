"""AWS keys of a driver's environment serve it all the same while they are not there, so that Tune cannot pass them on."""

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from pyarrow import fs
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

from ablations.engine.environment.aws_keys import FILE_VARIABLE, KEYS, keys_in_memory

SECRET = "s%c(r)/e=t"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Keys in the environment, and the other settings that a machine may have."""
    for name in (*KEYS, FILE_VARIABLE, "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    keys = {"AWS_ACCESS_KEY_ID": "AKIAPLANTED", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "token"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    return keys


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An object store that notes who asks."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization", "nobody"))
            self.send_response(404)
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield heard
    server.shutdown()
    server.server_close()


def test_tune_finds_no_keys_and_both_libraries_find_them(keys: dict[str, str], store: list[str]) -> None:
    with keys_in_memory():
        assert not {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")} & set(os.environ)
        fs.FileSystem.from_uri("s3://bucket/file")[0].get_file_info("bucket/file")
        credentials = boto3.Session().get_credentials().get_frozen_credentials()
    assert store
    assert all("Credential=AKIAPLANTED/" in request for request in store)
    assert tuple(credentials[:3]) == ("AKIAPLANTED", SECRET, "token")
    assert {name: os.environ[name] for name in keys} == keys
    assert FILE_VARIABLE not in os.environ


def test_the_keys_are_on_no_disk_and_child_processes_can_use_them(keys: dict[str, str]) -> None:
    with keys_in_memory():
        path = os.environ[FILE_VARIABLE]
        assert "memfd:" in os.readlink(path)
        assert SECRET in subprocess.run(["cat", path], capture_output=True, check=True, text=True).stdout
    assert not os.path.exists(path)


def test_other_profiles_stay_and_that_in_use_has_the_keys(
    keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "credentials").write_text("[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = x\n")
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    with keys_in_memory():
        assert boto3.Session().get_credentials().access_key == "AKIAPLANTED"
        assert boto3.Session(profile_name="other").get_credentials().access_key == "AKIAOTHER"
    assert os.environ[FILE_VARIABLE] == str(file)


def test_a_secret_without_an_id_hides_no_credentials(keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = x\n")
    with keys_in_memory():
        assert "AWS_SECRET_ACCESS_KEY" not in os.environ
        assert boto3.Session().get_credentials().access_key == "AKIAFILE"


def test_an_error_gives_the_keys_back(keys: dict[str, str]) -> None:
    with pytest.raises(KeyboardInterrupt), keys_in_memory():
        raise KeyboardInterrupt
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
