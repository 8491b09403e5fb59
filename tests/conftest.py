"""Every test session has its own local state and one thread per process, as Ray gives its workers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import local_ray

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; subprocesses inherit it
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"  # Ray's default here: a command line under test must not change it for all
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else a server is nine processes
os.environ |= {"AWS_ACCESS_KEY_ID": "anything", "AWS_SECRET_ACCESS_KEY": "anything"}  # of the tests' object store

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and so would programs under test

RAY_LANES = dict.fromkeys(("cli", "scheduling", "tracking", "trial"), "ray 1")
"""Groups of tests that start Ray, by folder, so that both take equally long; the others form the group `ray 2`. The tests of a
group run one after another in one worker of pytest-xdist, since more than two Rays at a time are slow on two cores."""


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs of this machine, except from `make test-gpu`: Ray would count them, and studies would train on them."""
    from ablations.engine.scheduling.capacity import GPU_DRIVER_FILES

    config.addinivalue_line("markers", "xdist_group(name): of pytest-xdist, which the environments of other versions lack")
    if config.option.markexpr != "gpu" and any(map(os.path.exists, GPU_DRIVER_FILES)):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def uses_shared_ray(item: pytest.Item) -> bool:
    return "cluster" in getattr(item, "fixturenames", ())


def starts_own_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None and not uses_shared_ray(item)


@pytest.hookimpl(tryfirst=True)  # before tests are selected by markers, and before pytest-xdist reads groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use the shared Ray, and put all that start Ray into groups."""
    items.sort(key=starts_own_ray)  # stable: each start of the shared Ray takes seconds
    for item in items:
        if uses_shared_ray(item):
            item.add_marker("ray")
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group(RAY_LANES.get(item.path.parent.name, "ray 2")))


def pytest_collection_finish(session: pytest.Session) -> None:
    """End a session whose pytest-xdist ignores the groups, as 3.8 does under pytest 9.2: it would start three Rays at a time."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and any("@ray" not in item.nodeid for item in grouped):
        pytest.exit("pytest-xdist ignores the groups of this version of pytest; accepted: pytest<9.2", returncode=4)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stop the shared Ray before a test that has not asked for it, which might expect none."""
    if not uses_shared_ray(item):
        local_ray.stop_unless_used()


def pytest_sessionfinish() -> None:
    local_ray.stop_unless_used()


def pytest_runtest_call() -> None:
    """Ray does not wait for processes that it has killed, and then the objects that stand for them complain. Its own alone may."""
    if services := sys.modules.get("ray._private.services"):
        silent: Any = lambda *_, **__: None  # noqa: E731
        services.ConsolePopen.__del__ = lambda process: subprocess.Popen.__del__(process, _warn=silent)  # type: ignore[call-arg]


@pytest.fixture(scope="session", autouse=True)
def local_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that stands for the user's data folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        home = tmp_path_factory.mktemp("home")
        monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home))
        yield home


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Commands that a test runs in this process handle signals, and would go on to do so."""
    before, hook = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def same_services() -> Iterator[None]:
    """A command line under test decides which Ray and MLflow its process uses: not for the tests after it."""
    names = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")  # MLflow sets its own, too
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Return the address of a Ray with two CPUs on this machine. The modules of a test session share it."""
    with local_ray.in_use() as address:
        yield address


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: making one takes seconds, copying it none."""
    from ablations.engine.tracking.connection import connect

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def stored_uri(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking URI of a database with the finished study `stored_study.STUDY`, which tests only read."""
    from tests.helpers.stored_study import stored_study  # imports MLflow

    folder = tmp_path_factory.mktemp("stored")
    shutil.copy(empty, folder / "mlflow.db")
    return stored_study(folder)


@pytest.fixture
def home(tmp_path: Path, empty: Path) -> Path:
    """A folder with an empty database."""
    shutil.copy(empty, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def few_figures() -> Iterator[None]:
    """Reports with one figure."""
    from tests.helpers.one_figure import one_figure  # imports matplotlib

    with one_figure():
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real MLflow server on a new database."""
    from ablations.engine.tracking.connection import connect
    from resnet_core import ConfigError
    from tests.helpers.local_service import free_port

    folder, port = tmp_path_factory.mktemp("server"), free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        deadline = time.monotonic() + 300
        while True:
            try:
                connect(f"http://127.0.0.1:{port}")
                break
            except ConfigError:
                assert time.monotonic() < deadline
                assert process.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.2)
        yield port
        os.killpg(process.pid, signal.SIGTERM)
