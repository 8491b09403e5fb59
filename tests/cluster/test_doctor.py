"""The doctor finds what is wrong with a cluster, says what to do about it, and never waits for a node that does not answer."""

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from mlflow import MlflowClient
from mlflow.entities import ViewType
from PIL import Image
from ray.cluster_utils import Cluster

from ablations.engine.cli import commands as command
from ablations.engine.cli import options
from ablations.engine.cluster.doctor import (
    all_reduce,
    checklist,
    gpus,
    local_data,
    network_exposure,
    node_facts,
    nodes,
    preflight,
    tracking_server,
)
from ablations.engine.cluster.doctor import shared_storage as storage
from ablations.engine.cluster.doctor.check import Check, join_names
from ablations.engine.cluster.doctor.request import DoctorRequest
from ablations.engine.scheduling import connection
from ablations.engine.submission import jobs
from resnet_core import ConfigError, override, preset
from tests.helpers.object_store import Line, object_store
from tests.helpers.submission import STUDY, planned


def assert_failed(check: Check, *said: str, remedy: str) -> None:
    """It is wrong, says what and where, and what to do."""
    assert check.status == "failed", check
    for text in said:
        assert text in check.detail
    assert remedy in check.remedy


def test_of_many_nodes_a_line_names_a_few() -> None:
    assert join_names("dcbae") == "a, b, c and 2 more"


# Judgements


def facts(**changes: Any) -> node_facts.NodeFacts:
    versions = {"python": "3.11.7", "resnet_core": "c0de", **dict.fromkeys(node_facts.PACKAGES, "2.0")}
    disks = [node_facts.Disk("Ray's files", "/tmp/ray", 100, 50)]
    memory = node_facts.Disk("shared memory", "/dev/shm", 8, 7)
    return replace(node_facts.NodeFacts(versions=versions, disks=disks, shared_memory=memory), **changes)


def test_nodes_that_are_alike_are_right() -> None:
    both = {"a": facts(), "b": facts()}
    for check in (node_facts.evaluate_versions(both), node_facts.evaluate_disks(both), node_facts.evaluate_shared_memory(both)):
        assert check is not None
        assert check.status == "ok"


@pytest.mark.parametrize(("package", "remedy"), [("torch", "constraints.txt"), ("python", "constraints"), ("resnet_core", "copy")])
def test_another_version_is_wrong_where_it_is(package: str, remedy: str) -> None:
    other = facts(versions={**facts().versions, package: "other"})
    assert_failed(
        node_facts.evaluate_versions({"a": facts(), "b": facts(), "c": other}), package, "2 nodes, other on c", remedy=remedy
    )


def test_a_disk_without_room_is_wrong() -> None:
    full = facts(disks=[node_facts.Disk("Ray's files", "/tmp/ray", 100, node_facts.MIN_FREE_GB - 0.1)])
    assert_failed(
        node_facts.evaluate_disks({"a": facts(), "b": full}), "1.9 GB", "on b for Ray's files (/tmp/ray)", remedy="--temp-dir"
    )


def test_a_folder_is_on_the_disk_that_it_will_be_on(tmp_path: Path) -> None:
    there = node_facts.measure_disk("somewhere", tmp_path / "not" / "yet" / "made")
    assert there.total_gb == node_facts.measure_disk("here", tmp_path).total_gb
    assert 0 < there.free_gb <= there.total_gb


def test_the_shared_memory_that_containers_have_by_default_is_too_little() -> None:
    container = facts(shared_memory=node_facts.Disk("shared memory", "/dev/shm", 0.067, 0.067))
    check = node_facts.evaluate_shared_memory({"a": facts(), "b": container})
    assert check is not None
    assert_failed(check, "0.07 GB", "on b", remedy="--shm-size")
    assert node_facts.evaluate_shared_memory({"a": facts(shared_memory=None)}) is None


def test_a_clock_that_is_off_is_wrong_in_either_direction() -> None:
    assert node_facts.evaluate_clocks({"a": 0.0, "b": -1.9}).status == "ok"
    assert_failed(node_facts.evaluate_clocks({"a": 0.0, "b": -300.04}), "300.0 s behind on b", remedy="chrony")
    assert_failed(node_facts.evaluate_clocks({"a": 2.1}), "2.1 s ahead on a", remedy="chrony")


@pytest.mark.parametrize(
    ("rounds", "skew"),
    [
        ([(0.0, 3.0, 4.0), (2.0, 5.2, 2.5)], 2.7),  # the way takes four seconds, and hides three; then it takes half a second
        ([(2.0, 5.2, 2.5), (0.0, 3.0, 4.0)], 2.7),
        ([(10.0, 7.0, 12.0)], -3.0),
        ([(10.0, 11.0, 12.0)], 0.0),
    ],
)
def test_of_a_clock_only_what_the_way_cannot_hide_is_skew(
    rounds: list[tuple[float, float, float]], skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes.Node(id="1", name="a", address="a:1", head=True, cpus=1, gpus=0)
    there = iter([answered for _, answered, _ in rounds])
    here = iter([time for sent, _, received in rounds for time in (sent, received)])
    monkeypatch.setattr(nodes, "run_on_nodes", lambda *_: ({node: next(there)}, {}))
    monkeypatch.setattr("time.time", lambda: next(here))
    assert nodes.clock_skews([node], rounds=len(rounds), timeout_seconds=1) == {node: pytest.approx(skew)}


def stored(views: dict[str, set[str]], **errors: str) -> storage.StorageMeasurements:
    written = {node: storage.WriteResult(0.1, errors.get(node, "")) for node in views}
    return storage.StorageMeasurements(written, {node: storage.ReadResult(frozenset(view)) for node, view in views.items()})


def test_storage_is_right_only_as_one_place() -> None:
    ids = {"a": "1", "b": "2", "c": "3"}
    everything = set(ids.values())
    one = storage.evaluate("s3://key:secret@bucket/x?scheme=http", ids, stored(dict.fromkeys(ids, everything)))
    assert one.status == "ok"
    assert "s3://bucket/x, the same for 3 nodes" in one.detail
    assert "secret" not in one.detail
    split = storage.evaluate("file:///x", ids, stored({"a": {"1", "3"}, "b": {"2"}, "c": {"1", "3"}}))
    assert_failed(split, "file:///x is a different place on b than", remedy="mount one share")
    halves = storage.evaluate("file:///x", {"a": "1", "b": "2"}, stored({"a": {"1"}, "b": {"2"}}))
    assert_failed(halves, "a different place on b than", remedy="mount")  # the head is a
    denied = storage.evaluate("s3://bucket/x", ids, stored({"a": {"1"}, "b": {"1"}}, b="Access Denied"))
    assert_failed(denied, "b cannot write s3://bucket/x (Access Denied)", remedy="role")
    unread = replace(stored({"a": {"1", "2"}}), read={"a": storage.ReadResult(frozenset({"1", "2"}), "Permission denied")})
    assert_failed(storage.evaluate("file:///x", ids, unread), "a cannot read", "Permission denied", remedy="user ID")


def test_a_share_that_is_not_mounted_is_not_made_instead(tmp_path: Path) -> None:
    written = storage.write_test_file(str(tmp_path / "share"), "folder", "1")
    assert "No such file" in written.error
    assert not list(tmp_path.iterdir())


def test_data_are_right_only_as_the_same_everywhere() -> None:
    here, other = local_data.LocalDataset("aaaa", 1437), local_data.LocalDataset("bbbb", 1437)
    assert local_data.evaluate("digits", {"a": here, "b": here}, {}).status == "ok"
    assert_failed(local_data.evaluate("digits", {"a": here, "b": other, "c": here}, {}), "bbbb on b", remedy="rsync")
    missing = local_data.evaluate("cifar10", {"a": here, "b": local_data.LocalDataset(error="no such folder")}, {})
    assert_failed(missing, "cifar10 on b: no such folder", remedy="prepare")
    late = local_data.evaluate("imagenet", {"a": here}, {"b": "does not answer within 9 s"})
    assert late.status == "not checked"
    assert "b does not answer within 9 s" in late.detail


def gpu(**changes: Any) -> gpus.Gpu:
    return replace(gpus.Gpu(name="H200", free_gb=140.0, correct=True), **changes)


def test_gpus_are_right_if_ray_counts_them_and_they_calculate() -> None:
    good = gpus.NodeGpus(cuda="13.0", driver="580", visible=[gpu(), gpu(correct=None, free_gb=1.0)])
    both = gpus.evaluate({"a": 2, "b": 2}, {"a": good, "b": good})
    assert both.status == "ok"
    assert (
        "4 GPUs, as Ray counts; 2 multiply correctly, 2 too busy to test; at least 1 GB free; CUDA 13.0, driver 580" in both.detail
    )
    assert gpus.evaluate({}, {}).status == "not checked"
    assert_failed(gpus.evaluate({"a": 8}, {"a": good}), "a: Ray counts 8, torch sees 2", remedy="--num-gpus")
    bad = replace(good, visible=[gpu(), gpu(correct=False)])
    assert_failed(gpus.evaluate({"a": 2, "b": 2}, {"a": good, "b": bad}), "GPU 1 of b", remedy="nvidia-smi")
    assert_failed(
        gpus.evaluate({"a": 2}, {"a": gpus.NodeGpus(error="no driver")}), "torch fails on a (no driver)", remedy="nvidia-smi"
    )
    older = gpus.evaluate({"a": 2, "b": 2}, {"a": good, "b": replace(good, driver="550")})
    assert_failed(older, "driver 550 on b", remedy="one image")


@pytest.mark.slow
def test_a_node_without_gpus_answers_that_torch_sees_none() -> None:
    found = gpus.measure()
    assert (list(found.visible), found.error) == ([], "")


def test_free_memory_is_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 580.1, GPU-abc, 143771\necho '580.1, GPU-def, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    driver, free_gb = gpus.query_nvidia_smi()
    assert (driver, list(free_gb)) == ("580.1", ["GPU-abc"])
    assert free_gb["GPU-abc"] == pytest.approx(150.8, abs=0.1)
    tool.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    assert gpus.query_nvidia_smi() == ("", {})


def test_a_machine_has_gpus_if_the_driver_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER_FOLDER", tmp_path / "gpus")
    assert not gpus.has_gpus()
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert gpus.has_gpus()


def test_an_all_reduce_is_right_if_its_sum_is_and_it_is_fast_enough() -> None:
    good = all_reduce.AllReduceMeasurement(workers=4, seconds=[0.1, 0.064, 0.02], correct=True)
    assert all_reduce.evaluate("gloo", good).detail.startswith("1.00 GB/s")
    assert_failed(all_reduce.evaluate("nccl", replace(good, correct=False)), "the sum is wrong", remedy="take out")
    assert_failed(all_reduce.evaluate("gloo", replace(good, seconds=[2.0])), "0.03 GB/s", remedy="GLOO_SOCKET_IFNAME")
    assert_failed(all_reduce.evaluate("nccl", "no result after 25 s"), "no result", remedy="NCCL_SOCKET_IFNAME")


# What the world can reach


def exposed(
    *sockets: tuple[str, str], token: bool = True, address: str = "10.0.0.1", password: bool = False
) -> network_exposure.NodeExposure:
    bound = [
        network_exposure.ListeningSocket(program=name, address=host, port=1, password=password or None) for name, host in sockets
    ]
    return network_exposure.NodeExposure(sockets=bound, addresses=["127.0.0.1", "::1", "fe80::1", address], token=token)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_on_private_addresses_ray_wants_a_token_and_mlflow_a_password(host: str) -> None:
    safe = exposed(("ray", host), ("mlflow", host), password=True)
    assert network_exposure.evaluate_ports({"a": safe}).status == "ok"
    assert network_exposure.evaluate_token({"a": safe}, True).status == "ok"
    bare = exposed(("ray", host), ("mlflow", host), token=False)
    assert_failed(
        network_exposure.evaluate_ports({"a": safe, "b": bare}),
        "MLflow is open without a password on b:1",
        remedy="ablations mlflow",
    )
    assert_failed(
        network_exposure.evaluate_token({"a": safe, "b": bare}, True), "Ray on b asks for no token", remedy="RAY_AUTH_MODE=token"
    )
    assert_failed(network_exposure.evaluate_token({"a": safe}, False), "the job server asks for no token", remedy="RAY_AUTH_MODE")


def test_on_loopback_nothing_has_to_ask() -> None:
    loopback = exposed(("ray", "127.0.0.1"), ("mlflow", "::1"), ("ray", "::ffff:127.0.0.1"), token=False, address="8.8.8.8")
    assert network_exposure.evaluate_ports({"a": loopback}).status == "ok"
    assert network_exposure.evaluate_token({"a": loopback}, False).status == "not checked"


@pytest.mark.parametrize(
    ("host", "address", "state"),
    [
        ("0.0.0.0", "8.8.8.8", "failed"),
        ("::", "8.8.8.8", "failed"),
        ("::", "2001:4860::1", "failed"),
        ("8.8.8.8", "8.8.8.8", "failed"),
        ("0.0.0.0", "2001:4860::1", "ok"),
        ("10.0.0.1", "8.8.8.8", "ok"),
        ("::", "fd00::2", "ok"),
    ],
)
def test_what_the_world_can_route_to_is_wrong_even_with_a_token(host: str, address: str, state: str) -> None:
    check = network_exposure.evaluate_ports({"a": exposed(("ray", host), address=address)})
    assert check.status == state
    if state == "failed":
        assert_failed(check, f"a listens on {address}", remedy="SSH tunnel")


@pytest.mark.parametrize(("status", "asks"), [(401, True), (403, False), (404, False), (200, False), (None, None)])
def test_a_server_asks_for_a_password_if_it_refuses_who_gives_none(
    status: int | None, asks: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # it is not asked
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(f"HTTP/1.1 {status} -\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        if status is None:
            server.close()
        else:
            threading.Thread(target=answer, daemon=True).start()
        assert network_exposure.requires_password(url) is asks


def test_a_server_of_another_protocol_has_no_answer_about_passwords() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer_as_grpc() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(bytes.fromhex("000018040000000000000400400000") + b"\n")

        thread = threading.Thread(target=answer_as_grpc)
        thread.start()
        assert network_exposure.requires_password(f"http://127.0.0.1:{server.getsockname()[1]}") is None
        thread.join()


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["/x/bin/python", "-m", "mlflow", "server", "--port", "5000"], "mlflow"),
        (["/x/bin/python", "/x/bin/mlflow", "server"], "mlflow"),
        (["/x/bin/python", "-m", "uvicorn", "--port", "5000", "mlflow.server.fastapi_app:app"], "mlflow"),
        (["/home/me/mlflow/.venv/lib/ray/core/src/ray/gcs/gcs_server", "--session-dir=/tmp/mlflow"], ""),
        (["/home/me/mlflow/.venv/bin/python", "/home/me/mlflow/.venv/lib/ray/dashboard/server.py"], ""),
    ],
)
def test_a_program_in_a_folder_named_mlflow_is_no_mlflow_server(
    monkeypatch: pytest.MonkeyPatch, command: list[str], program: str
) -> None:
    process = SimpleNamespace(cmdline=lambda: command, parent=lambda: None)
    monkeypatch.setattr("psutil.Process", lambda _: process)
    monkeypatch.setattr(network_exposure, "_session", lambda: "session_1")
    assert network_exposure._program(1) == program


# MLflow


def test_a_run_is_written_to_mlflow_and_nothing_of_it_is_seen(home: Path) -> None:
    uri = f"sqlite:///{home}/mlflow.db"
    found = tracking_server.measure(uri)
    assert (found.error, found.new, found.password) == ("", False, None)
    client = MlflowClient(uri)
    everything = [experiment.experiment_id for experiment in client.search_experiments(view_type=ViewType.ALL)]
    assert len(client.search_runs(everything, run_view_type=ViewType.ALL)) == 1
    assert not client.search_runs(everything)
    assert tracking_server.evaluate(uri, found).status == "ok"


def test_mlflow_beyond_loopback_wants_a_password() -> None:
    found = tracking_server.TrackingMeasurement(seconds=0.1, password=False)
    assert tracking_server.evaluate("http://127.0.0.1:5000", found).status == "ok"
    assert_failed(tracking_server.evaluate("http://head:5000", found), "without a password", remedy="ablations mlflow")
    assert tracking_server.evaluate("http://head:5000", replace(found, password=True)).status == "ok"
    refused = tracking_server.TrackingMeasurement(error="You are not authenticated", password=True)
    assert_failed(tracking_server.evaluate("http://head:5000", refused), "not authenticated", remedy="~/.mlflow/credentials")


def test_a_database_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_server.evaluate(uri, tracking_server.measure(uri)).status == "not checked"
    assert not list(tmp_path.iterdir())


def test_a_database_that_cannot_be_made_is_told_with_its_reason() -> None:
    uri = "sqlite:////etc/passwd/mlflow.db"
    measurement = tracking_server.MeasurementThread(uri)
    measurement.start()
    assert_failed(tracking_server.evaluate(uri, measurement.wait(30)), "Not a directory", remedy="MLFLOW_TRACKING_URI")


def test_a_server_that_never_answers_holds_up_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        measurement = tracking_server.MeasurementThread(f"http://127.0.0.1:{silent.getsockname()[1]}")
        measurement.start()
        assert "does not answer in time" in measurement.wait(0.3).error


# Requests


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "--workers=0: accepted: 1 or more"),
        (["--wait", "0"], "--wait=0"),
        (["--preset", "mnist"], "preset=mnist"),
        (["--set", "data.rot=x"], "data.rot"),
        (["--set", "data.name=own"], "data.name=own: is read by a study's reader"),
        (["--gpus-per-worker", "1.5"], "--gpus-per-worker=1.5"),
    ],
)
def test_a_wrong_request_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["doctor", *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


# A cluster


class Several:
    """A head without CPUs, two nodes with one each, and what they share."""

    def __init__(self, folder: Path, stores: tuple[Line, Line]) -> None:
        self.folder, self.stores = folder, stores
        (folder / "store").mkdir()
        self.storage = f"file://{folder}/store"
        photos(folder / "home" / "photos", 100)
        environment = self.environment(folder / "home", stores[0])
        head = {"num_cpus": 0, "include_dashboard": False, "env_vars": environment}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self.cluster.add_node(num_cpus=1, env_vars=environment)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        connection.connect()

    def environment(self, home: Path, store: Line) -> dict[str, str]:
        """Return the environment of a node with this home folder, which reaches this object store."""
        token = Path.home() / ".ray" / "auth_token"
        keeps = {"RAY_AUTH_TOKEN_PATH": str(token)} if token.exists() else {}
        return {"HOME": str(home), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}", **keeps}

    def add_odd(self) -> Any:
        """A node that has another numpy, another home folder, and reaches another object store."""
        folder = self.folder / "odd"
        package = folder / "packages" / "numpy-9.9.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9\n")
        photos(folder / "home" / "photos", 200)
        environment = self.environment(folder / "home", self.stores[1]) | {"PYTHONPATH": str(folder / "packages")}
        return self.cluster.add_node(num_cpus=0, env_vars=environment)

    def check(self, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, dict[str, tuple[str, str]]]:
        """Exit code, and state and text of each line by its name."""
        request = DoctorRequest(
            data=preset("digits").data,
            storage=self.storage,
            tracking_uri="http://127.0.0.1:9",
            workers=None,
            cpus_per_worker=1,
            gpus_per_worker=0,
            worker_timeout_seconds=20,
        )
        code = checklist.run_checks(replace(request, **changes))
        text = capsys.readouterr().out
        assert not list((self.folder / "store").iterdir()), "something is left in the storage"
        lines = re.findall(r"^(ok|failed|not checked) +(\S+(?: \w+)?)  +(.*(?:\n +→ .*)?)", text, re.MULTILINE)
        return code, {name: (state, said) for state, name, said in lines}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    with object_store() as one, object_store() as other:
        several = Several(tmp_path_factory.mktemp("several"), (one, other))
        yield several
        ray.shutdown()
        several.cluster.shutdown()


@pytest.fixture(scope="module")
def odd(several: Several) -> Iterator[Any]:
    node = several.add_odd()
    yield node
    raylet = node.all_processes["raylet"][0].process
    raylet.send_signal(signal.SIGCONT)
    several.cluster.remove_node(node)


def photos(folder: Path, brightness: int) -> None:
    """An image folder of two classes."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), brightness, np.uint8)).save(folder / part / name / "1.png")


PHOTOS = {"data.name": "imagefolder", "data.root": "~/photos", "data.image_size": 8}
S3 = "s3://bucket/checkpoints"


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.cluster
def test_on_nodes_that_are_alike_all_is_right_and_workers_are_left_free(
    several: Several, capsys: pytest.CaptureFixture[str]
) -> None:
    data = override(preset("digits"), PHOTOS).data
    _, found = several.check(capsys, data=data, storage=S3, workers=2)
    right = {"workers", "nodes", "versions", "clocks", "disk", "shared memory", "ports", "storage", "data", "all-reduce gloo"}
    assert {name for name, (state, _) in found.items() if state == "ok"} >= right
    assert found["nodes"][1].startswith("3 of 3 answer (2 CPUs, 0 GPUs)")
    assert "the same for 3 nodes" in found["storage"][1]
    assert "private addresses" in found["ports"][1]  # the sockets of Ray were found
    assert "2 training images" in found["data"][1]
    speed = re.match(r"([\d.]+) GB/s \(median of 5, 64 MB, 2 workers", found["all-reduce gloo"][1])
    assert speed
    assert 0.05 < float(speed[1]) < 100
    assert found["MLflow"][0] == "failed"  # nobody is there
    assert found["GPUs"][0] == "not checked"
    assert "2 workers with 1 CPU each" in found["workers"][1]
    until_free()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.cluster
def test_before_a_study_alike_nodes_are_examined_in_seconds(several: Several) -> None:
    preflight.check_nodes(several.storage)  # starts processes, if none is there
    began = time.monotonic()
    preflight.check_nodes(several.storage)
    assert time.monotonic() - began < 8  # 0.06 s on a machine that has nothing else to do
    assert not list((several.folder / "store").iterdir())


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.cluster
def test_who_is_busy_is_left_alone(several: Several) -> None:
    until_free()
    busy = ray.remote(num_cpus=1)(lambda: time.sleep(600)).remote()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) == 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    check = all_reduce.check_across_nodes("gloo", "CPU", nodes.alive_nodes())
    ray.cancel(busy, force=True)
    assert check.status == "not checked"
    assert "busy" in check.detail


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.cluster
def test_on_an_odd_node_everything_odd_is_found(several: Several, odd: Any, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(node.name for node in nodes.alive_nodes() if node.id == odd.node_id)
    code, found = several.check(
        capsys, data=override(preset("digits"), PHOTOS).data, storage=S3, workers=3, worker_timeout_seconds=1
    )
    assert code == 1
    assert found["workers"][0] == "failed"
    assert "3 workers with 1 CPU each after 1 s\n" in found["workers"][1]
    assert found["versions"][0] == found["storage"][0] == found["data"][0] == "failed"
    assert re.search(rf"numpy \S+ on 3 nodes, 9\.9 on {re.escape(name)}\n +→ install the same", found["versions"][1])
    assert f"{S3} is a different place on {name} than on the other nodes\n" in found["storage"][1]
    assert re.search(rf"imagefolder differs between nodes: \w+ on 3 nodes, \w+ on {re.escape(name)}\n", found["data"][1])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.cluster
def test_an_odd_node_is_said_before_a_study_starts(several: Several, odd: Any) -> None:
    with pytest.raises(ConfigError, match=r"^storage: .* is a different place on .*; mount one share .*doctor shows all\)$"):
        preflight.check_nodes(S3)
    asked = options.parse_options(
        STUDY, ["--preset", "smoke", "--storage", several.storage, "--tracking-uri", "http://127.0.0.1:9"]
    )
    with pytest.raises(ConfigError, match=r"^versions: numpy .* 9\.9 on .*constraints\.txt.*doctor shows all\)$"):
        jobs.prepare_cluster(planned(), asked)  # what every submission begins with
    with pytest.raises(ConfigError, match=r"^storage: .* cannot write file:///nowhere \(.*No such file"):
        preflight.check_nodes("file:///nowhere")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.cluster
def test_a_node_that_does_not_answer_is_a_line_in_bounded_time(
    several: Several,
    odd: Any,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checklist, "NODE_ANSWER_TIMEOUT_SECONDS", 10.0)
    monkeypatch.setattr(preflight, "NODE_ANSWER_TIMEOUT_SECONDS", 10.0)
    monkeypatch.setattr(storage, "CLEANUP_TIMEOUT_SECONDS", 1.0)
    name = next(node.name for node in nodes.alive_nodes() if node.id == odd.node_id)
    raylet = odd.all_processes["raylet"][0].process
    raylet.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    preflight.check_nodes(several.storage)  # a study can do without it
    assert f"not checked: {name} does not answer within 10 s; ablations doctor says more" in caplog.text
    code, found = several.check(capsys)
    assert time.monotonic() - began < 90
    assert code == 1
    assert found["nodes"][0] == "failed"
    assert f"{name} does not answer within 10 s\n" in found["nodes"][1]
    assert found["versions"][0] == found["storage"][0] == found["all-reduce gloo"][0] == "ok"  # of the others
    raylet.kill()  # a node that is gone, of which Ray may not know yet, is no reason against a study
    preflight.check_nodes(several.storage)


def until_free() -> None:
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
