"""The files of `deploy/`, read as Ray, Kubernetes and the shell read them. None of these clusters is started here."""

import ipaddress
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from mlflow import MlflowClient
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from ablations.engine.cli import commands as engine
from ablations.engine.cluster import mlflow_server
from tests.helpers.project import PROJECT

DEPLOY = PROJECT / "deploy"
CLUSTER = yaml.safe_load((PROJECT / "cluster.yaml").read_text())
ON_PREMISES = yaml.safe_load((DEPLOY / "on-premises.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
SLURM = DEPLOY / "slurm.sh"
OBJECTS = [content for name in ("kuberay.yaml", "kuberay-job.yaml") for content in yaml.safe_load_all((DEPLOY / name).read_text())]
KUBERNETES = "1.34"


def found(kind: str) -> dict[str, Any]:
    """The one object of a kind."""
    (content,) = (content for content in OBJECTS if content["kind"] == kind)
    return dict(content)


RAY_CLUSTER, RAY_JOB, DEPLOYMENT = found("RayCluster"), found("RayJob"), found("Deployment")
PODS = {
    "mlflow": DEPLOYMENT["spec"]["template"],
    "head": RAY_CLUSTER["spec"]["headGroupSpec"]["template"],
    **{group["groupName"]: group["template"] for group in RAY_CLUSTER["spec"]["workerGroupSpecs"]},
    "submitter": RAY_JOB["spec"]["submitterPodTemplate"],
}
"""Templates of pods."""


def environment(pod: str) -> dict[str, Any]:
    """Return the environment that the settings and its own list give to the container of a pod."""
    (container,) = PODS[pod]["spec"]["containers"]
    settings = found("ConfigMap")["data"] if {"configMapRef": {"name": "resnet-ablations"}} in container.get("envFrom", []) else {}
    return settings | {entry["name"]: entry.get("value") or entry["valueFrom"] for entry in container.get("env", [])}


# Machines of one's own


def test_rays_validation_accepts_the_file_for_machines_of_ones_own() -> None:
    validate_config(prepare_config(ON_PREMISES))


def test_what_the_two_files_of_ray_share_is_the_same() -> None:
    for name in ("file_mounts", "rsync_exclude", "cluster_synced_files", "head_start_ray_commands", "worker_start_ray_commands"):
        assert ON_PREMISES[name] == CLUSTER[name]
    *setting_up, installing = ON_PREMISES["setup_commands"]
    assert setting_up == [command for command in CLUSTER["setup_commands"] if "apt-get" not in command][:-1]
    assert installing == CLUSTER["head_setup_commands"][0]


# Kubernetes


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [content for content in OBJECTS if not content["apiVersion"].startswith("ray.io/")], ids=lambda c: c["kind"]
)
def test_kubernetes_knows_every_field(content: dict[str, Any]) -> None:
    kubernetes_validate.validate(content, KUBERNETES, strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_kubernetes_knows_every_field_of_a_pod(pod: str) -> None:
    content = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, **PODS[pod]["metadata"]}, "spec": PODS[pod]["spec"]}
    kubernetes_validate.validate(content, KUBERNETES, strict=True)


def test_kubernetes_validation_refuses_a_field_that_is_none() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**found("Service"), "spec": {"learning_rate": 0.1}}, KUBERNETES, strict=True)


def test_rays_autoscaler_brings_gpu_workers_from_zero_and_trains_nothing_on_the_head() -> None:
    config = _derive_autoscaling_config_from_ray_cr(
        {**RAY_CLUSTER, "metadata": {**RAY_CLUSTER["metadata"], "namespace": "default"}}
    )
    validate_config(config)
    head, worker = (config["available_node_types"][name] for name in ("headgroup", "gpu"))
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert worker["resources"]["GPU"] == 1
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    assert config["idle_timeout_minutes"] == 10


def test_fields_of_kuberay_are_those_of_its_definition() -> None:
    """Compared by hand with ray.io/v1 of KubeRay 1.5: a name that is new here has to be looked up there."""
    cluster, job = RAY_CLUSTER["spec"], RAY_JOB["spec"]
    assert set(cluster) == {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    assert set(cluster["autoscalerOptions"]) == {"version", "idleTimeoutSeconds", "resources", "securityContext"}
    assert set(cluster["headGroupSpec"]) == {"serviceType", "rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert set(job) == {"clusterSelector", "entrypoint", "submissionMode", "submitterPodTemplate"}


def test_the_job_goes_to_the_cluster() -> None:
    assert RAY_JOB["spec"]["clusterSelector"] == {"ray.io/cluster": RAY_CLUSTER["metadata"]["name"]}
    script = RAY_JOB["spec"]["entrypoint"].split()[1]
    assert (PROJECT / script).exists()
    assert f"COPY --chown=ray {script.split('/')[0]} " in DOCKERFILE


def test_ray_is_the_version_that_is_installed() -> None:
    assert f"ray=={RAY_CLUSTER['spec']['rayVersion']}" in (PROJECT / "constraints.txt").read_text().splitlines()


def test_ray_on_kubernetes_asks_for_a_token() -> None:
    assert RAY_CLUSTER["spec"]["authOptions"] == {"mode": "token"}


def test_mlflow_on_kubernetes_asks_for_the_password_that_jobs_have() -> None:
    (container,) = PODS["mlflow"]["spec"]["containers"]
    given = engine.make_parser().parse_args(container["args"][1:])
    assert container["args"][0] == engine.PROGRAM
    assert engine.COMMAND_MODULES[given.command] is mlflow_server
    address = environment("head")["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert given.allowed_hosts == [address]
    assert address == f"{found('Service')['metadata']['name']}:{given.port}"
    assert environment("mlflow")["MLFLOW_AUTH_ADMIN_PASSWORD"] == environment("head")["MLFLOW_TRACKING_PASSWORD"]
    assert environment("head")["MLFLOW_TRACKING_USERNAME"] == mlflow_server.ADMIN_USER


def test_mlflows_state_is_on_the_volume_that_stays() -> None:
    (mount,) = PODS["mlflow"]["spec"]["containers"][0]["volumeMounts"]
    (volume,) = PODS["mlflow"]["spec"]["volumes"]
    assert environment("mlflow")["RESNET_ABLATIONS_HOME"] == mount["mountPath"]
    assert volume["persistentVolumeClaim"]["claimName"] == found("PersistentVolumeClaim")["metadata"]["name"]
    assert (DEPLOYMENT["spec"]["replicas"], DEPLOYMENT["spec"]["strategy"]) == (1, {"type": "Recreate"})


def test_storage_is_said_once_and_seen_by_mlflow_and_every_node() -> None:
    for pod in ("mlflow", "head", "gpu"):
        assert "RESNET_ABLATIONS_STORAGE" in environment(pod)
    assert (DEPLOY / "kuberay.yaml").read_text().count("RESNET_ABLATIONS_STORAGE:") == 1
    assert int(environment("head")["RAY_JOB_STOP_WAIT_TIME_S"]) > 3


def test_nothing_is_reachable_from_outside_kubernetes() -> None:
    kinds = {content["kind"] for content in OBJECTS}
    assert not kinds & {"Ingress", "Gateway", "HTTPRoute"}
    assert {found("Service")["spec"]["type"], RAY_CLUSTER["spec"]["headGroupSpec"]["serviceType"]} == {"ClusterIP"}
    policy = found("NetworkPolicy")["spec"]
    (rule,) = policy["ingress"]
    assert policy["policyTypes"] == ["Ingress"]
    assert all("podSelector" in peer for peer in rule["from"])  # no whole network, no whole namespace
    for pod in PODS.values():
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])


@pytest.mark.parametrize("pod", PODS)
def test_pods_have_no_rights_that_they_do_not_need(pod: str) -> None:
    spec = PODS[pod]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod == "head" or spec["automountServiceAccountToken"] is False  # the head's autoscaler asks for pods
    for container in [*spec["containers"], RAY_CLUSTER["spec"]["autoscalerOptions"]]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in container["resources"]["limits"]


# All of them


@pytest.mark.parametrize("file", sorted(DEPLOY.iterdir()), ids=lambda file: file.name)
def test_no_file_holds_a_secret_or_an_address_of_somebodys(file: Path) -> None:
    text = file.read_text()
    assert not re.findall(r"kind: Secret|stringData|AKIA|arn:aws|/home/(?!ray)|/root|/Users/|index-url|(?:TOKEN|PASSWORD)=\S", text)
    assert not re.findall(r"https?://(?!127\.0\.0\.1|resnet-ablations-mlflow|…)\S*", text)


def test_what_is_installed_is_pinned() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]} == {
        f"resnet-ablations:{version}"
    }
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", re.findall(r"^FROM (.*)", DOCKERFILE, re.MULTILINE)[0])
    for text in (DOCKERFILE, *ON_PREMISES["setup_commands"]):
        for install in re.findall(r"pip install.*", text):
            assert " -c constraints.txt " in install


def test_what_is_copied_is_enough_to_install() -> None:
    copied = {
        word.rstrip("/") for line in re.findall(r"^COPY --chown=ray (.*)", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    }
    assert copied == {name for name in CLUSTER["file_mounts"].values() if not name.startswith("~")}


# Slurm


def test_the_shell_and_its_linter_accept_the_script() -> None:
    linter = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert linter
    for command in (["bash", "-n"], [linter]):
        checked = subprocess.run([*command, str(SLURM)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


SRUN = """#!/usr/bin/env bash
# One node: what it is told to start, it starts, and writes down.
echo "$RAY_AUTH_MODE $MLFLOW_TRACKING_URI $*" >> "$HOME/calls"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def alone() -> list[str]:
    """Starts a program where it sees no other processes than its own: at the end, Ray's launcher stops every Ray it sees."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = command if os.getuid() == 0 else [*command, "--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a process cannot be given a view of its own here")
    return command


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.cluster
def test_a_slurm_job_on_one_node_trains_a_study_and_leaves_its_records(tmp_path: Path, alone: list[str]) -> None:
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    project = tmp_path / "project"
    project.mkdir()
    (project / ".venv").symlink_to(Path(sys.executable).parents[1])
    (project / "ablations").symlink_to(PROJECT / "ablations")
    # As on a login node, without what this process was told.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RESNET_", "MLFLOW_", "SLURM_"))}
    of_slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
    environment = {**inherited, **of_slurm, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    study = ["ablations/shortcuts.py", "--preset", "smoke", "--levels", "shortcut=A", "depth=8", "--seeds", "1"]
    done = subprocess.run(
        [*alone, "bash", str(SLURM), *study], cwd=project, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    state = tmp_path / "resnet-ablations"
    client = MlflowClient(f"sqlite:///{state}/mlflow.db")
    experiment = client.get_experiment_by_name("shortcuts")
    assert experiment
    outcomes = [run.data.tags.get("outcome") for run in client.search_runs([experiment.experiment_id])]
    assert "completed" in outcomes
    assert list((state / "checkpoints").iterdir())
    mode, uri, *srun = (tmp_path / "calls").read_text().split()
    assert mode == "token"
    assert ipaddress.ip_address(uri.removeprefix("http://").partition(":")[0]).is_loopback
    options = srun[srun.index("symmetric-run") + 1 : srun.index("--")]
    separated = [
        word
        for pair in zip(options, [*options[1:], ""], strict=True)
        if pair[0] in {"--num-cpus", "--dashboard-host"}
        for word in pair
    ]
    assert ipaddress.ip_address(ray_start.make_context("ray start", separated).params["dashboard_host"]).is_loopback
    token = (tmp_path / ".ray" / "auth_token").read_text()
    password = (state / "mlflow" / "password").read_text()
    for secret in (token, password):
        assert secret not in done.stdout + done.stderr + (state / "mlflow.log").read_text()
