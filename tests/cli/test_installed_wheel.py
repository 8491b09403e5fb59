"""An installed wheel needs no source checkout: the service, the console command and studies work from any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

import ablations
from tests.helpers.local_service import Service
from tests.helpers.project import PROJECT

pytestmark = pytest.mark.slow

STUDY_FILE = textwrap.dedent(
    "".join(f"{line}\n" for line in (ablations.__doc__ or "").splitlines() if line.startswith("    ") or not line)
)
"""The example in the package's docstring."""


class Installed:
    """A virtual environment with the wheel, which takes all other packages from this process's environment.

    Args:
        folder: an empty folder for the wheel and the environment.
    """

    def __init__(self, folder: Path) -> None:
        source = folder / "source"
        for name in ("resnet_core", "ablations"):
            shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if (PROJECT / name).exists():
                shutil.copy(PROJECT / name, source)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
        shutil.rmtree(source)
        environment = folder / "environment"
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        self.python = environment / "bin" / "python"
        self.command = environment / "bin" / "ablations"
        # A line in a .pth file adds a folder, but not the .pth files in it, such as that of the editable installation.
        packages = Path(run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
        (wheel,) = folder.glob("*.whl")
        run(*pip, "--python", self.python, "install", "--quiet", "--no-deps", "--no-index", wheel)


def run(*command: str | Path, folder: Path | None = None, **settings: str) -> str:
    """Run a command and return what it prints; fail if its exit code is not 0."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds a study file and nothing else."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    (folder / "my_study.py").write_text(STUDY_FILE)
    return folder


@pytest.fixture
def service(tmp_path: Path, installed: Installed, folder: Path) -> Iterator[Service]:
    service = Service(tmp_path / "home")
    yield service
    service.run(str(installed.command), "down", folder=folder)


def test_the_command_and_the_shipped_studies_run_from_any_folder(installed: Installed, folder: Path, tmp_path: Path) -> None:
    assert str(PROJECT) not in run(installed.python, "-c", "import ablations; print(ablations.__file__)", folder=folder)
    assert run(installed.command, "--version", folder=folder).startswith("resnet-ablations ")
    assert run(installed.command, "--help", folder=folder).startswith("usage: ablations ")
    settings = {"RESNET_ABLATIONS_HOME": str(tmp_path / "home"), "RAY_ADDRESS": "local", "MLFLOW_TRACKING_URI": ""}
    plan = ("--preset", "smoke", "--seeds", "1", "--plan", "--no-calibrate")
    assert "8 runs, 8 to train" in run(installed.python, "-m", "ablations.shortcuts", *plan, folder=folder, **settings)
    assert [path.name for path in folder.iterdir()] == ["my_study.py"]


@pytest.mark.ray
@pytest.mark.nightly
def test_a_study_file_in_a_folder_of_its_own_is_submitted_and_its_results_are_in_mlflow(
    installed: Installed, service: Service, folder: Path
) -> None:
    ports = [word for name, port in service.ports.items() for word in (f"--{name}-port", port)]
    up = service.run(str(installed.command), "up", *ports, folder=folder)
    assert up.returncode == 0, up.stderr
    ray = [str(installed.python), "-m", "ray.scripts.scripts"]
    address = {"RAY_API_SERVER_ADDRESS": service.dashboard}
    study = ["python", "my_study.py", "--preset", "smoke", "--seeds", "1"]
    job = service.run(*ray, "job", "submit", "--working-dir", ".", "--", *study, folder=folder, **address)
    assert job.returncode == 0, job.stdout + job.stderr
    client = MlflowClient(service.mlflow)
    experiment = client.get_experiment_by_name("zero-init")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "fingerprint" not in run.data.tags)
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert parent.data.tags["git.commit"] == "unknown"
    assert "report.html" in {Path(file.path).name for file in client.list_artifacts(parent.info.run_id, "report")}
    listing = service.run(*ray, "job", "submit", "--", "ls", folder=service.home, **address)
    assert "my_study.py" in listing.stdout, "a job without a working folder starts where `ablations up` ran"
    down = service.run(str(installed.command), "down", folder=folder)
    assert down.stdout == "the service has ended\n"
    assert [path.name for path in folder.iterdir()] == ["my_study.py"]
