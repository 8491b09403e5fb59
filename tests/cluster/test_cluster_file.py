"""`cluster.yaml`, read as Ray reads it: its schema, its autoscaler, and its commands run with stand-ins for the tools."""

import argparse
import copy
import ipaddress
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray._private.authentication.authentication_token_setup import _get_default_token_path
from ray.autoscaler._private.util import validate_config, with_head_node_ip
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.dashboard.modules.job.job_supervisor import JobSupervisor
from ray.scripts.scripts import start as ray_start

from ablations.engine.cli import commands as engine
from ablations.engine.cluster import mlflow_server
from ablations.engine.environment import paths
from tests.helpers.cluster_file import CLUSTER, CLUSTER_TEXT, prepared_cluster_file, worker_types
from tests.helpers.project import PROJECT

HEAD_ADDRESS = "10.0.0.1"
KINDS = ("head", "worker")

STAND_IN = f"""#!{sys.executable} -I
import json, os, sys
program, *arguments = sys.argv
call = {{"program": os.path.basename(program), "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}}
with open(os.path.join(os.environ["HOME"], "calls"), "a") as calls:
    print(json.dumps(call), file=calls)
"""


@dataclass(frozen=True)
class Call:
    """One call of a program by the commands of the cluster file."""

    program: str
    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]


class Node:
    """A machine as Ray's updater leaves it: synced, set up, started. Only a home folder; no program does its work."""

    def __init__(self, home: Path, kind: str) -> None:
        config = prepared_cluster_file()
        self.home, self.token = home, home / ".ray" / "auth_token"
        self.setting_up = [*config["initialization_commands"], *config[f"{kind}_setup_commands"]]
        self.starting = config[f"{kind}_start_ray_commands"]
        for folder in ("tools", ".ray", "resnet-ablations", "venv/bin"):
            (home / folder).mkdir(parents=True)
        for stand_in in ("tools/ray", "tools/sudo", "tools/python3", "tools/cloud-init", "venv/bin/pip", "venv/bin/python"):
            (home / stand_in).write_text(STAND_IN)
            (home / stand_in).chmod(0o755)
        for tool in ("chmod", "grep", "mkdir"):
            (home / "tools" / tool).symlink_to(shutil.which(tool) or tool)
        (home / ".bashrc").touch()
        self.token.write_text("not a real one")
        self.token.chmod(0o644)
        self.set_up, self.started = self.run(self.setting_up), self.run(self.starting)

    def run(self, commands: Sequence[str]) -> list[Call]:
        """Runs each command in a shell of its own, as Ray does, which finds nothing of this machine but what is in `tools`."""
        calls = self.home / "calls"
        calls.write_text("")
        environment = {"HOME": str(self.home), "USER": "ubuntu", "PATH": str(self.home / "tools")}
        for command in with_head_node_ip(commands, HEAD_ADDRESS):
            shell = [shutil.which("bash") or "bash", "-c", command]
            done = subprocess.run(shell, cwd=self.home, env=environment, check=False, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
        return [Call(**json.loads(line)) for line in calls.read_text().splitlines()]

    def ray_start(self) -> Call:
        """The one call of `ray start`."""
        (call,) = (call for call in self.started if call.program == "ray" and call.arguments[0] == "start")
        return call

    def ray_options(self) -> dict[str, Any]:
        """Return what Ray's own command line makes of `ray start`; it rejects unknown options."""
        options: dict[str, Any] = ray_start.make_context("ray start", list(self.ray_start().arguments[1:])).params
        return options

    def mlflow_service(self) -> list[str]:
        """The arguments with which systemd gets MLflow's server."""
        (call,) = (call for call in self.started if "systemd-run" in call.arguments)
        return list(call.arguments)

    def mlflow_server(self) -> argparse.Namespace:
        """Return what this project's own command line makes of its call."""
        service = self.mlflow_service()
        command = service.index(f"{self.home}/venv/bin/ablations")
        given: argparse.Namespace = engine.make_parser().parse_args(service[command + 1 :])
        return given

    def settings(self) -> dict[str, str]:
        """Return the content of the file of settings."""
        return dict(line.split("=", 1) for line in (self.home / "resnet-ablations.env").read_text().splitlines())


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Node]:
    return {kind: Node(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def head(nodes: dict[str, Node]) -> Node:
    return nodes["head"]


@pytest.fixture(params=KINDS)
def node(nodes: dict[str, Node], request: pytest.FixtureRequest) -> Node:
    return nodes[request.param]


def launched(runs: int, **needs: float) -> dict[str, int]:
    """Return the workers that Ray's autoscaler starts, where there are none, for this many runs that wait."""
    config = prepared_cluster_file()
    for name in worker_types():
        config["available_node_types"][name]["resources"] = {"CPU": 4, "GPU": 1}  # as AWS would say
    cluster = AutoscalingConfig(config, skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=cluster.get_node_type_configs(),
        max_num_nodes=cluster.get_max_num_worker_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(needs)] * runs),
    )
    return {launch.instance_type: launch.count for launch in ResourceDemandScheduler().schedule(request).to_launch}


def option(arguments: Sequence[str], name: str) -> str:
    """The value of `--name value` or `--name=value`."""
    (value,) = re.findall(rf"(?:^|\n){name}[\n=](.*)", "\n".join(arguments))
    return str(value)


# The file


def test_the_file_passes_rays_own_validation() -> None:
    validate_config(prepared_cluster_file())


@pytest.mark.parametrize("path", [(), ("auth",), ("provider", "security_group"), ("available_node_types", "head")])
def test_rays_validation_rejects_unknown_keys(path: Sequence[str]) -> None:
    config = section = prepared_cluster_file()
    for key in path:
        section = section[key]
    section["learning_rate"] = 0.1
    with pytest.raises(Exception, match=r"Additional properties are not allowed \('learning_rate'"):
        validate_config(config)


def test_every_command_parses_as_shell() -> None:
    commands = [command for name, value in prepared_cluster_file().items() if name.endswith("_commands") for command in value]
    for command in commands:
        parsed = subprocess.run(["bash", "-n", "-c", command], check=False, capture_output=True, text=True)
        assert parsed.returncode == 0, f"{command}: {parsed.stderr}"


def test_the_file_belongs_to_no_machine_and_no_account() -> None:
    personal = r"/home/|/root|/work|/Users/|AKIA|arn:aws|ami-[0-9a-f]{8}|s3://(?!BUCKET)|https?://(?!127\.0\.0\.1)|index-url|RAY_AUTH_TOKEN"
    assert re.findall(personal, CLUSTER_TEXT) == []


# Nodes


def test_nothing_but_the_head_runs_while_nothing_waits() -> None:
    assert worker_types()
    assert all(kind["min_workers"] == 0 for kind in worker_types().values())
    assert prepared_cluster_file()["idle_timeout_minutes"] > 0
    assert launched(0) == {}


def test_runs_that_wait_for_gpus_bring_workers_up_to_the_ceiling() -> None:
    assert sum(launched(1, CPU=1, GPU=1).values()) == 1
    assert sum(launched(4, CPU=1, GPU=0.25).values()) == 1  # they share it
    assert sum(launched(1000, CPU=1, GPU=1).values()) == CLUSTER["max_workers"]


def test_spot_workers_come_last_so_that_their_shortage_never_stops_a_study() -> None:
    spot = {name for name, kind in worker_types().items() if "InstanceMarketOptions" in kind["node_config"]}
    assert not spot & set(launched(1, CPU=1, GPU=1))
    assert spot & set(launched(1000, CPU=1, GPU=1))


def test_the_head_has_no_gpu_and_takes_no_training() -> None:
    head = prepared_cluster_file()["available_node_types"][CLUSTER["head_node_type"]]
    assert not re.match(r"[gp]\d|trn|inf", head["node_config"]["InstanceType"])
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_all_nodes_start_from_one_image_so_that_their_python_is_the_same() -> None:
    assert len({kind["node_config"]["ImageId"] for kind in CLUSTER["available_node_types"].values()}) == 1


# Set-up


def test_what_is_synced_is_enough_to_install() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    packages = [name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    for name in ("pyproject.toml", "constraints.txt", project["project"]["readme"], *packages):
        assert CLUSTER["file_mounts"][f"~/resnet-ablations/{name}"] == name


@pytest.mark.slow
def test_every_install_is_held_to_the_constraints(node: Node) -> None:
    installs = [call for call in node.set_up if call.program == "pip"]
    assert any(call.arguments[-2:] == ["-e", "."] for call in installs)
    for call in installs:
        assert option(call.arguments, "-c") == "constraints.txt"
        assert call.folder == f"{node.home}/resnet-ablations"


def test_the_constraints_name_everything_that_is_installed() -> None:
    pinned = {canonicalize_name(line.partition("==")[0]) for line in (PROJECT / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    missing, todo, seen = set(), [Requirement(line) for line in asked], set()
    while todo:
        one = todo.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        missing |= {canonicalize_name(one.name)} - pinned
        needed = [Requirement(line) for line in requires(one.name) or ()]
        todo += [each for each in needed if not each.marker or any(each.marker.evaluate({"extra": e}) for e in ("", *one.extras))]
    assert not missing


def test_shells_and_jobs_find_the_python_that_was_set_up(node: Node) -> None:
    (call,) = node.run(["source ~/.bashrc; python study.py"])
    assert call.environment["PATH"].startswith(f"{node.home}/venv/bin:")
    assert call.environment["RAY_AUTH_MODE"] == "token"


def test_setting_up_again_changes_nothing(node: Node) -> None:
    before = (node.home / ".bashrc").read_text()
    node.run(node.setting_up)
    assert (node.home / ".bashrc").read_text() == before


# Security


def test_every_ray_start_has_token_authentication_on(node: Node) -> None:
    assert node.ray_start().environment["RAY_AUTH_MODE"] == "token"


def test_every_node_gets_the_token_where_ray_looks_and_nobody_else_reads_it(node: Node) -> None:
    (remote,) = (remote for remote, local in CLUSTER["file_mounts"].items() if local == "~/.ray/auth_token")
    assert Path(remote).expanduser() == _get_default_token_path()
    assert stat.S_IMODE(node.token.stat().st_mode) == 0o600


def test_every_ray_start_binds_the_dashboard_to_loopback(node: Node) -> None:
    assert ipaddress.ip_address(node.ray_options()["dashboard_host"]).is_loopback


def test_no_other_security_group_is_used() -> None:
    assert CLUSTER["provider"]["security_group"]["GroupName"]  # without, a group of Ray's default name, with the rules it has
    for kind in CLUSTER["available_node_types"].values():
        assert not {"SecurityGroupIds", "SecurityGroups", "NetworkInterfaces", "LaunchTemplate"} & set(kind["node_config"])


@pytest.mark.slow
def test_ray_creates_nodes_at_aws_that_only_ssh_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of `ray up` to AWS, sent to moto, which knows the names of all parameters."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts the key for SSH there
    with mock_aws():
        iam = boto3.client("iam", region_name=CLUSTER["provider"]["region"])
        iam.create_instance_profile(InstanceProfileName="resnet-ablations")
        iam.create_role(RoleName="resnet-ablations", AssumeRolePolicyDocument="{}")
        iam.add_role_to_instance_profile(InstanceProfileName="resnet-ablations", RoleName="resnet-ablations")
        config = bootstrap_aws(prepared_cluster_file())
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_NODE_KIND: "worker", TAG_RAY_LAUNCH_CONFIG: name}
            provider.create_node(copy.deepcopy(kind["node_config"]), tags, 1)
        ec2 = boto3.client("ec2", region_name=CLUSTER["provider"]["region"])
        nodes = [node for made in ec2.describe_instances()["Reservations"] for node in made["Instances"]]
        (used,) = {group["GroupId"] for node in nodes for group in node["SecurityGroups"]}
        (group,) = ec2.describe_security_groups(GroupIds=[used])["SecurityGroups"]
    assert len(nodes) == len(CLUSTER["available_node_types"])
    assert {node["MetadataOptions"]["HttpTokens"] for node in nodes} == {"required"}
    for rule in group["IpPermissions"]:
        among_themselves = [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [used] and not rule["IpRanges"]
        assert among_themselves or rule["FromPort"] == rule["ToPort"] == 22


# Start


def test_workers_join_the_head_that_scales_them(nodes: dict[str, Node]) -> None:
    head, worker = nodes["head"].ray_options(), nodes["worker"].ray_options()
    assert head["head"]
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"  # where `ray up` leaves it
    assert not worker["head"]
    assert worker["address"] == f"{HEAD_ADDRESS}:{head['port']}"


def test_mlflow_listens_on_loopback_where_jobs_look_for_it(head: Node) -> None:
    server = head.mlflow_server()
    assert ipaddress.ip_address(server.host).is_loopback
    assert head.ray_start().environment["MLFLOW_TRACKING_URI"] == f"http://{server.host}:{server.port}"


def test_mlflow_runs_behind_a_password(head: Node) -> None:
    assert engine.COMMAND_MODULES[head.mlflow_server().command] is mlflow_server


def test_mlflow_is_a_service_that_is_there_once_and_comes_back(head: Node) -> None:
    stop, start = (call.arguments for call in head.started if call.program == "sudo")
    assert stop == ["systemctl", "stop", option(start, "--unit")]
    assert "--property=Restart=always" in start
    assert option(start, "--uid") == "ubuntu"


def test_settings_are_said_once_and_seen_by_mlflow_jobs_and_shells(head: Node) -> None:
    settings = head.settings()
    assert f"--property=EnvironmentFile={head.home}/resnet-ablations.env" in head.mlflow_service()
    (shell,) = head.run(["source ~/.bashrc; python study.py"])
    for seen in (head.ray_start().environment, shell.environment):
        assert {name: seen[name] for name in settings} == settings
    for name in settings:
        assert len(re.findall(rf"{name}=", CLUSTER_TEXT)) == 1


def test_a_bucket_that_is_filled_in_holds_checkpoints_and_mlflows_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: Node
) -> None:
    head.run([command.replace("ABLATIONS_STORAGE=", "ABLATIONS_STORAGE=s3://bucket/folder") for command in head.setting_up])
    (job,) = (call for call in head.run(head.starting) if call.arguments[0] == "start")
    head.run(head.setting_up)  # as the other tests know it
    for name in ("RESNET_ABLATIONS_STORAGE", "RESNET_ABLATIONS_HOME"):
        monkeypatch.setenv(name, job.environment[name])
    assert paths.default_storage() == "s3://bucket/folder/checkpoints"
    assert "s3://bucket/folder/artifacts" in mlflow_server._command("127.0.0.1", 5000, [])


def test_without_a_bucket_checkpoints_are_a_local_path_which_a_study_on_several_nodes_refuses(
    head: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = head.ray_start().environment
    for name in ("RESNET_ABLATIONS_STORAGE", "RESNET_ABLATIONS_HOME"):
        monkeypatch.setenv(name, environment[name])
    assert "://" not in paths.default_storage()


def test_records_are_on_a_disk_that_outlives_the_cluster(head: Node) -> None:
    assert head.ray_start().environment["RESNET_ABLATIONS_HOME"] == f"{head.home}/state"
    assert CLUSTER["provider"]["cache_stopped_nodes"]


@pytest.mark.slow
def test_postgresql_is_installed_where_it_is_chosen_and_only_there(head: Node) -> None:
    def created(commands: Sequence[str]) -> bool:
        return any("createdb" in call.arguments for call in head.run(commands))

    assert not created(head.setting_up)
    assert created(
        [command.replace("ABLATIONS_DATABASE=", "ABLATIONS_DATABASE=postgresql:///mlflow", 1) for command in head.setting_up]
    )
    head.run(head.setting_up)


def test_a_stopped_study_has_time_to_end_cleanly(head: Node) -> None:
    assert JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S < 30 == int(head.ray_start().environment["RAY_JOB_STOP_WAIT_TIME_S"])
