"""Another user of the same machine can do nothing to a service, to its jobs and to a study's own Ray."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from ablations.engine.cluster.local_service import select_ray_cluster
from ablations.engine.environment import paths, private_files, ray_processes
from ablations.engine.environment.ray_processes import RayNode
from resnet_core import ConfigError
from tests.helpers.local_service import Service, listening
from tests.helpers.project import PROJECT

OTHER = 31_002
"""The ID of a user and of a group that nobody has."""
OPEN_TO_ALL = 0o755

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def try_as_other(*command: str) -> bool:
    """Return whether a command succeeds for another user."""
    done = subprocess.run(command, user=OTHER, group=OTHER, extra_groups=[], cwd="/", capture_output=True, check=False, timeout=30)
    return done.returncode == 0


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can look into, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="place-", dir="/tmp"))
    folder.chmod(OPEN_TO_ALL)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# The home folder


def test_the_home_is_its_owners_alone_and_one_that_was_open_is_closed_with_a_word(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home := place / "new"))
    paths.protect_home()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    home.chmod(0o755)
    paths.protect_home()
    paths.protect_home()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert capsys.readouterr().err.count(f"{home} was open to other users (mode 0755) and is private now (0700)") == 1


@pytest.mark.parametrize("mode", [0o1777, OPEN_TO_ALL])
def test_a_folder_that_is_more_than_the_home_keeps_its_mode(place: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """One like /tmp, and one that holds the user's own home folder."""
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(place))
    if mode == OPEN_TO_ALL:
        monkeypatch.setenv("HOME", str(place / "person"))
    place.chmod(mode)
    paths.protect_home()
    assert stat.S_IMODE(place.stat().st_mode) == mode


# Ray's token


@pytest.fixture
def person(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's home folder without a token, and a umask that opens files to everybody."""
    monkeypatch.setenv("HOME", str(place))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0)
    yield place
    os.umask(before)


def test_a_token_is_private_from_its_first_moment_and_stays_the_same(person: Path) -> None:
    private_files.protect_token(create=False)
    assert not (person / ".ray").exists()
    private_files.protect_token(create=True)
    token = person / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(first := token.read_text()) == 64
    private_files.protect_token(create=True)
    assert token.read_text() == first == private_files.ray_token()


def test_a_token_that_others_could_read_is_closed_with_a_word_and_one_of_another_user_is_refused(
    person: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = person / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    private_files.protect_token(create=False)
    private_files.protect_token(create=False)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    said = capsys.readouterr().err
    assert said.count("could be read by other users (mode 0644)") == 1
    assert "secret" not in said
    if os.geteuid() == 0:
        os.chown(token, OTHER, OTHER)
        with pytest.raises(ConfigError, match=rf"auth_token: cannot be kept private \(it belongs to user {OTHER}"):
            private_files.protect_token(create=False)


# Ray's folder


@pytest.fixture
def base(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    return place


def test_rays_folder_goes_once_nothing_uses_it(base: Path) -> None:
    code = (
        "from ablations.engine.environment.private_files import make_ray_folder; "
        "folder, _ = make_ray_folder(); print(folder, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        other = Path(process.stdout.readline().strip()).parent
        ours, lock = private_files.make_ray_folder()
        assert stat.S_IMODE(ours.parent.stat().st_mode) == 0o700
        assert {other, ours.parent} == set(base.iterdir())
        process.kill()
        process.wait()
    private_files.remove_unused_ray_folders()
    assert {ours.parent} == set(base.iterdir())
    os.close(lock)
    private_files.remove_unused_ray_folders()
    assert not list(base.iterdir())


@as_root
def test_the_folder_of_another_user_is_neither_used_nor_removed(base: Path) -> None:
    base.chmod(0o1777)
    theirs = base / f"{private_files.PREFIX}12345678"
    theirs.mkdir()
    (theirs / "lock").touch()
    os.chown(theirs, OTHER, OTHER)
    (base / f"{private_files.PREFIX}abcdefgh").symlink_to(theirs)
    folder, lock = private_files.make_ray_folder()
    os.close(lock)
    assert folder.parent != theirs
    assert (theirs / "lock").exists()


def test_a_folder_for_temporary_files_that_does_not_suit_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", long := str(place / ("x" * 40)))
    with pytest.raises(ConfigError, match=rf"RAY_TMPDIR={long}: accepted: an absolute path of at most \d+ bytes"):
        private_files.make_ray_folder()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", long)
    folder, lock = private_files.make_ray_folder()
    assert folder.parent.parent == Path("/tmp")
    os.close(lock)
    private_files.remove_unused_ray_folders()
    place.chmod(0o777)  # without the sticky bit
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    with pytest.raises(ConfigError, match="whose entries other users cannot rename"):
        private_files.make_ray_folder()


# Clusters on this machine


def test_the_ray_of_a_process_is_decided_before_ray_is_imported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined is one that answers and that this user or root started; else one starts for the process alone, on loopback."""
    loopback, owner = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", os.geteuid()
    for name in ("RESNET_ABLATIONS_HOME", "HOME", loopback, "RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, str(place))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        here, gone = RayNode(address, owner, 2, private=False), RayNode("127.0.0.1:9", owner, 1, private=False)
        cases: list[tuple[str | None, list[RayNode], str]] = [
            (None, [], "local"),
            (None, [here, gone], address),
            (None, [gone], "local"),
            (None, [replace(here, user=0)], address),
            (None, [replace(here, user=OTHER)], "local"),
            (None, [replace(here, user=OTHER), here], address),
            (None, [replace(here, private=True)], "local"),
            ("", [here], address),
            ("local", [here], "local"),
            ("10.0.0.1:6379", [here], "10.0.0.1:6379"),
        ]
        for given, nodes, expected in cases:
            for name in (loopback, "RAY_ADDRESS", "RAY_AUTH_MODE"):
                monkeypatch.delenv(name, raising=False)
            if given is not None:
                monkeypatch.setenv("RAY_ADDRESS", given)
            monkeypatch.setattr(ray_processes, "nodes_here", lambda nodes=nodes: nodes)
            select_ray_cluster()
            assert os.environ["RAY_ADDRESS"] == expected, (given, nodes)
            assert os.environ.get(loopback) == ("0" if expected == "local" else None), (given, nodes)


@pytest.mark.parametrize(
    ("parent", "folder", "private"),
    [
        (None, "/tmp/ray", False),
        (["/sbin/init"], "/tmp/ray", False),
        (["/lib/systemd/systemd", "--user"], "/tmp/ray", False),
        (["/venv/bin/python", "/venv/bin/ray", "start", "--head", "--block"], "/tmp/ray", False),
        (["python3.12", "ablations/shortcuts.py"], "/tmp/ray", True),
        (["/venv/bin/python", "-m", "ipykernel_launcher"], "/tmp/ray", True),
        (["/venv/bin/python", "-P", "-c", "…", "start", "--head", "--block"], "/tmp/abl-12345678/r", True),  # a service
    ],
)
def test_the_ray_of_a_program_or_service_is_told_from_one_of_ray_start(
    parent: list[str] | None, folder: str, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raylet, other = Mock(), Mock()
    raylet.info, other.info = {"name": "raylet"}, {"name": "python"}
    raylet.cmdline.return_value = ["/ray/raylet", "--head", f"--temp_dir={folder}", "--gcs-address=10.0.0.1:6379"]
    raylet.uids.return_value.effective, raylet.create_time.return_value = 1000, 5.0
    raylet.parent.return_value = None if parent is None else Mock(cmdline=lambda: parent)
    monkeypatch.setattr(psutil, "process_iter", lambda names: [other, raylet])
    assert ray_processes.nodes_here() == [RayNode("10.0.0.1:6379", 1000, 5.0, private)]


def test_a_cluster_of_another_user_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ray_processes, "nodes_here", lambda: [RayNode("10.0.0.1:6379", OTHER, 0, private=False)])
    assert ray_processes.own_cluster_address() is None
    assert capsys.readouterr().err == (
        "Ray: the cluster at 10.0.0.1:6379 belongs to another user and is ignored; RAY_ADDRESS=HOST:PORT joins a cluster.\n"
    )


def test_a_ray_that_would_not_stay_on_loopback_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listener(ip: str) -> Mock:
        return Mock(status=psutil.CONN_LISTEN, laddr=Mock(ip=ip, port=4711))

    def program(name: str, ip: str) -> Mock:
        child = Mock(net_connections=lambda kind: [listener(ip)])
        child.name.return_value = name
        return Mock(children=lambda recursive: [child])

    for name, ip in (("raylet", "127.0.0.1"), ("gcs_server", "::ffff:127.0.0.1"), ("python", "::")):
        ray_processes.warn_if_reachable(program(name, ip))
    assert not capsys.readouterr().err
    ray_processes.warn_if_reachable(program("raylet", "::"))
    assert "has no effect; other machines may reach the ports 4711." in capsys.readouterr().err


# A service and a job


def start_as_other(home: Path) -> Sequence[str] | None:
    """Return what runs this environment's Python as another user; None if nothing does."""
    plain = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
    # Where the interpreter is in root's home folder, a user who may read everything stands for one of a usual machine.
    reading = [*plain, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for prefix in (plain, reading):
        command = [*prefix, "env", f"HOME={home}", sys.executable, "-c", "import psutil"]
        if shutil.which("setpriv") and subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0:
            return [*prefix, "env", f"HOME={home}"]
    return None


class OtherService(Service):
    """A service of another user."""

    prefix: Sequence[str] = ()

    def run(self, *command: str, folder: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        return super().run(*self.prefix, *command, folder=folder, **settings)


@as_root
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.ray
def test_two_users_have_their_services_side_by_side_and_neither_reaches_the_others_job(place: Path) -> None:
    """With a token, as is right on such a machine, and everything where every user can look for it."""
    person, job = place / "person", place / "job"
    for folder in (person, job):
        folder.mkdir()
    (job / "main.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(120)\n")
    service = Service(place / "home", {"HOME": str(person), "RAY_AUTH_MODE": "token"})
    other_home = place / "other"
    other_home.mkdir()
    os.chown(other_home, OTHER, OTHER)
    other = OtherService(other_home / "state", {"RAY_AUTH_MODE": "token"})
    (other_home / "state").mkdir(mode=0o700)
    os.chown(other_home / "state", OTHER, OTHER)
    other.prefix = start_as_other(other_home) or pytest.skip("no other user can run this Python")
    try:
        done = service.run(sys.executable, "-m", "ablations.engine", "up", *ports(service), folder=place)
        assert done.returncode == 0, done.stderr
        done = other.run(sys.executable, "-m", "ablations.engine", "up", *ports(other), folder=other_home)
        assert done.returncode == 0, done.stderr
        processes = other.processes()
        assert {process.uids().real for process in processes if process.is_running()} == {OTHER}
        assert 10_001 not in set().union(*listening(service).values(), *listening(other).values())

        sent = service.job("submit", "--no-wait", "--working-dir", str(job), "--", "python", "main.py", folder=place)
        assert sent.returncode == 0, sent.stderr
        code = wait_for_copy(service)
        session = service.session()
        assert not session.is_relative_to("/tmp/ray")
        for command in (
            ("ls", str(code.parent)),
            ("cat", str(code)),
            ("ls", str(session / "logs")),
            ("mv", str(code.parent), f"{code.parent}-away"),
            ("cp", "/etc/hostname", str(code)),
            ("mv", str(session.parents[1]), f"{session.parents[1]}-away"),
            ("cat", str(person / ".ray" / "auth_token")),
            ("ls", str(service.home)),
            ("cat", str(service.home / "mlflow.db")),
        ):
            assert not try_as_other(*command), command
            assert subprocess.run(["test", "-e", command[-1].removesuffix("-away")], check=False).returncode == 0, command
        assert try_as_other("ls", str(other_home / "state"))
        assert code.read_text() == (job / "main.py").read_text()

        folders = [session.parents[1], other.session().parents[1]]
        assert other.run(sys.executable, "-m", "ablations.engine", "down", folder=other_home).stdout == "the service has ended\n"
        psutil.wait_procs(processes, timeout=10)
        assert [folder.exists() for folder in folders] == [True, False]
        assert service.processes()
    finally:
        other.run(sys.executable, "-m", "ablations.engine", "down", folder=other_home)
        service.run(sys.executable, "-m", "ablations.engine", "down", folder=place)
    assert not folders[0].exists()


def ports(service: Service) -> list[str]:
    return [word for name, port in service.ports.items() for word in (f"--{name}-port", port)]


def wait_for_copy(service: Service) -> Path:
    """Return the program of the job, as Ray has unpacked it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := list(service.session().rglob("working_dir_files/*/main.py")):
            return found[0]
        time.sleep(0.2)
    raise AssertionError("the job did not start")


@pytest.mark.slow
@pytest.mark.cluster
def test_a_studys_own_ray_leaves_nothing_to_other_users(place: Path) -> None:
    (place / "person").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= {"HOME": str(place / "person"), "RESNET_ABLATIONS_HOME": str(place / "home"), "RAY_TMPDIR": str(place)}
    study = ["ablations/shortcuts.py", "--preset", "smoke", "--seeds", "1", "--levels", "shortcut=A", "depth=8"]
    done = subprocess.run(
        [sys.executable, *study],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        umask=0o022,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    token = place / "person" / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert {path.name for path in place.iterdir() if path.stat().st_mode & 0o077} == {"person"}
    (session,) = place.glob(f"{private_files.PREFIX}*/r/session_2*")
    assert not (place / "ray").exists()
    assert len(os.fsencode(max(session.glob("sockets/*"), key=lambda path: len(path.name)))) <= private_files.MAX_SOCKET_PATH_BYTES
