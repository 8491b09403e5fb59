"""The local service comes up, takes jobs, listens to nobody else, and goes without taking anything along."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from ablations.engine.cluster import local_service
from ablations.engine.cluster.local_service import RAY_ADDRESS_VARIABLE, _free_client_port, failure_reason, select_ray_cluster
from ablations.engine.environment import ray_processes
from tests.helpers.local_service import Service, answer, listening
from tests.helpers.ray_jobs import wait_until

EPOCHS = 600
"""So many take some twenty seconds: time to stop a study in."""


def test_one_port_for_two_servers_is_refused_before_anything_starts(tmp_path: Path) -> None:
    service = Service(tmp_path)
    done = service("up", ray=service.ports["mlflow"])
    assert done.returncode == 2
    assert f"--mlflow-port={service.ports['mlflow']} " in done.stderr
    assert done.stderr.endswith(": accepted: different ports\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mlflow", "dashboard", "ray"])
def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path, name: str) -> None:
    service = Service(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = service("up", **{name: str(port)})
    assert done.returncode == 2
    assert f"--{name}-port={port}: is not free" in done.stderr
    assert f"ablations up --{name}-port {port + 1}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "service.json").exists()


def test_what_is_not_running_is_said(tmp_path: Path) -> None:
    service = Service(tmp_path)
    assert service("down").stdout == "the service was not running\n"
    assert (service("env").returncode, service("env").stderr.startswith("error: the service is not running")) == (2, True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    done = service("up")
    assert done.returncode == 0, done.stderr
    yield service
    service("down")


def test_a_submitted_job_uses_the_services_ray_whatever_address_ray_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another Ray on the machine, Ray gives a job the address of either."""
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    select_ray_cluster()
    assert os.environ["RAY_ADDRESS"] == "192.0.2.1:6379"
    monkeypatch.setenv(RAY_ADDRESS_VARIABLE, "127.0.0.1:6380")
    select_ray_cluster()
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:6380"


def test_services_that_start_at_the_same_time_choose_different_ports_for_rays_client_server() -> None:
    """Nobody listens on the port yet when the next service chooses. Of 50 random ports, up to two pairs may be alike."""
    assert len({_free_client_port() for _ in range(50)}) >= 48


@pytest.mark.parametrize(("head", "said"), [("127.0.0.1:6379", False), ("127.0.0.1:6380", True), ("", False)])
def test_another_ray_on_the_machine_is_mentioned_with_what_ray_job_submit_then_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], head: str, said: bool
) -> None:
    nodes = [ray_processes.RayNode(head, 0, 0.0, private=True)] if head else []
    monkeypatch.setattr(ray_processes, "nodes_here", lambda: nodes)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    local_service._print_addresses(local_service.Ports(), {"RAY_AUTH_MODE": "disabled"})
    assert ('eval "$(ablations env)"' in capsys.readouterr().out) == said


def test_why_a_server_did_not_start_is_said_in_its_own_words_without_colors() -> None:
    log = (
        "Traceback (most recent call last):\n"
        "RuntimeError: Failed to bind to address 127.0.0.1:6379\n"
        "\x1b[39m\n"
        "2026-11-27 14:07:36,841\tERR scripts.py:1315 -- \x1b[31mRemaining processes will be killed.\x1b[39m\n"
    )
    assert failure_reason(log) == "RuntimeError: Failed to bind to address 127.0.0.1:6379"
    assert failure_reason("\x1b[31mno room\x1b[39m\n\n") == "no room"
    assert failure_reason("") == "its log is empty"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.versions
@pytest.mark.cluster
def test_a_submitted_study_that_was_stopped_goes_on_when_it_is_submitted_again_and_is_in_mlflow_when_the_job_ends(
    service: Service,
) -> None:
    study = ["python", "ablations/shortcuts.py", "--preset", "smoke", "--levels", "shortcut=A", "depth=8"]
    study += ["--seeds", "1", "--log-models", "--set", f"optim.epochs={EPOCHS}"]
    uri = service.mlflow
    assert service("up").returncode == 0  # again: tests that start Ray come last, after the one that ends the service
    assert service.job("submit", "--no-wait", "--submission-id", "first", "--", *study).returncode == 0
    wait_until(lambda: any("test/error" in run.data.metrics for run in runs_in(uri)))
    assert "was stopped" in service.job("stop", "first").stdout
    before = {run.info.run_id: run.info.status for run in runs_in(uri)}
    assert list(before.values()) == ["KILLED"] * 2

    job = service.job("submit", "--", *study)  # from anywhere: jobs start where the service was started for
    assert job.returncode == 0, job.stdout + job.stderr
    assert "[1/1]" in job.stdout
    assert re.search(rf"Report: {re.escape(uri)}/#/experiments/\S+\?workflowType=machine_learning", job.stdout)
    runs = runs_in(uri)
    assert {run.info.run_id: run.info.status for run in runs} == dict.fromkeys(before, "FINISHED")
    (parent,) = (run for run in runs if "fingerprint" not in run.data.tags)
    assert parent.data.metrics["completed_runs"] == 1
    image = re.search(r"\]\((get-artifact\S+)\)", parent.data.tags["mlflow.note.content"])
    assert image, "the description shows the cells, as MLflow's page loads it"
    with urllib.request.urlopen(f"{uri}/{image[1]}", timeout=30) as shown:
        assert shown.read(4) == b"\x89PNG"
    child = next(run for run in runs if run is not parent)
    steps = [metric.step for metric in MlflowClient(uri).get_metric_history(child.info.run_id, "test/error")]
    assert sorted(steps) == list(range(1, EPOCHS + 1))
    assert child.data.tags["attempts"] == "2"
    assert_model_works(uri, child.outputs.model_outputs[0].model_id)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.versions
def test_the_doctor_finds_no_fault_with_the_service(service: Service) -> None:
    assert service("up").returncode == 0
    done = service.job("submit", "--", "python", "-m", "ablations", "doctor", "--preset", "smoke")
    found = {name: state for state, name in re.findall(r"^(ok|failed|not checked) +([\w-]+)", done.stdout, re.MULTILINE)}
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"nodes", "versions", "storage", "data", "MLflow"} <= {name for name, state in found.items() if state == "ok"}


def runs_in(uri: str) -> list[Run]:
    """Return the runs of the study, its own among them."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("shortcuts")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def assert_model_works(uri: str, model_id: str) -> None:
    """The model loads in a program that knows nothing of this project, and takes any number of images."""
    code = f"""
import sys, mlflow, numpy as np
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/{model_id}")
assert model.metadata.signature and model.input_example.shape == (2, 3, 8, 8)
print(model.predict(np.zeros((5, 3, 8, 8), np.float32)).shape, "resnet_core" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("(5, 10) False\n"), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.cluster
def test_everything_listens_on_loopback_only(service: Service) -> None:
    assert list(listening(service)) == ["127.0.0.1"]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_page_from_elsewhere_in_a_browser_starts_and_changes_nothing(service: Service) -> None:
    """Also one whose name leads to this machine. What Ray shows without a token, that one can read: see docs/security.md."""
    experiments = f"{service.mlflow}/api/2.0/mlflow/experiments"
    assert answer(f"{experiments}/get?experiment_id=0") == 200
    assert answer(f"{experiments}/get?experiment_id=0", Host="elsewhere.example") == 403
    assert answer(f"{experiments}/create", "POST", Origin="http://elsewhere.example") == 403
    jobs = f"{service.dashboard}/api/jobs/"
    for header in ("Origin", "Referer"):
        assert answer(jobs, "POST", **{header: "http://elsewhere.example"}) == 405
        assert answer(f"{jobs}1", "DELETE", **{header: "http://elsewhere.example"}) == 405
    assert answer(jobs, Host="elsewhere.example", Origin="http://elsewhere.example") == 200


@pytest.mark.slow
@pytest.mark.cluster
def test_ray_leaves_no_address_that_other_programs_would_wait_for(service: Service) -> None:
    current = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    assert not current.exists() or not current.read_text().endswith(f":{service.ports['ray']}")
    (node,) = (each for each in ray_processes.nodes_here() if each.head.endswith(f":{service.ports['ray']}"))
    assert (node.head, node.user, node.private) == (f"127.0.0.1:{service.ports['ray']}", os.geteuid(), True)


@pytest.mark.slow
@pytest.mark.cluster
def test_up_again_says_where_it_is_and_starts_nothing(service: Service) -> None:
    before = (service.home / "service.json").read_text()
    done = service("up")
    assert done.returncode == 0
    assert f"http://127.0.0.1:{service.ports['mlflow']}/#/experiments?workflowType=machine_learning" in done.stdout
    assert (service.home / "service.json").read_text() == before
    exported = service("env").stdout
    assert f"export RAY_ADDRESS=127.0.0.1:{service.ports['ray']}" in exported


@pytest.mark.slow
@pytest.mark.cluster
def test_down_ends_what_up_started_and_nothing_else(service: Service) -> None:
    processes = service.processes()
    with subprocess.Popen(["sleep", "60"]) as bystander:
        assert service("down").stdout == "the service has ended\n"
        assert bystander.poll() is None
        bystander.terminate()
    psutil.wait_procs(processes, timeout=10)
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert service("down").stdout == "the service was not running\n"
