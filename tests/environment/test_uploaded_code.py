"""The files that `ray job submit --working-dir .` uploads to a cluster, and their commit there."""

import ast
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from ablations.engine.environment import provenance
from tests.helpers.project import PROJECT

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
LEFT_OUT = [
    "data/cifar10/batch.bin",
    "my-images/cat/1.png",
    ".env",
    "server.pem",
    "notes/todo.md",
    ".venv/lib/x.py",
    ".git/config",
    "ablations/__pycache__/x.pyc",
    "state/mlflow.db",
]


def packed(folder: Path, scratch: Path) -> Path:
    """Return the archive that Ray makes of a folder for upload."""
    package = scratch / "sent.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    return package


def tracked() -> set[str]:
    """Return the tracked files of the two packages."""
    files = [path for name in ("ablations", "resnet_core") for path in (PROJECT / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(PROJECT)) for path in files if "__pycache__" not in path.parts}


def test_an_upload_contains_the_two_packages_and_is_small(tmp_path: Path) -> None:
    package = packed(PROJECT, tmp_path)
    assert set(ZipFile(package).namelist()) == tracked()
    assert package.stat().st_size < 2_500_000, "Ray takes 100 MB"


def test_data_keys_and_notes_in_the_folder_are_not_uploaded(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in (*LEFT_OUT, "ablations/mine.py", "mine.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a secret, or gigabytes")
    shutil.copy(PROJECT / ".rayignore", folder)
    package = packed(folder, tmp_path)
    assert sorted(ZipFile(package).namelist()) == ["ablations/mine.py", "mine.py"]


@pytest.mark.slow
def test_the_uploaded_code_is_imported_and_can_plan_a_study(tmp_path: Path) -> None:
    """Import from the unpacked folder, which Ray puts first on `sys.path`, although this project is installed in editable mode."""
    ZipFile(packed(PROJECT, tmp_path)).extractall(tmp_path / "job")
    code = """
import runpy, sys
sys.argv = ["ablations/shortcuts.py", "--plan", "--no-calibrate", "--preset", "smoke"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    import ablations.engine.cli.study, ablations.engine.report.html, resnet_core
    print({sys.modules[name].__file__ for name in sys.modules if name.startswith(("ablations", "resnet_core"))})
"""
    environment = {
        "PYTHONPATH": str(tmp_path / "job"),
        "RESNET_ABLATIONS_HOME": str(tmp_path / "home"),
        "RAY_ADDRESS": "local",
        "PATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path / "job", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "runs" in done.stdout
    imported = ast.literal_eval(done.stdout.splitlines()[-1])
    assert len(imported) > 30
    assert all(name.startswith(str(tmp_path / "job")) for name in imported)


def test_the_commit_is_known_in_a_checkout_and_in_an_archive_and_unknown_elsewhere(tmp_path: Path) -> None:
    repository = tmp_path / "project"
    engine = repository / "ablations" / "engine" / "environment"
    engine.mkdir(parents=True)
    shutil.copy(PROJECT / ".gitattributes", repository)
    shutil.copy(PROJECT / "ablations" / "engine" / "environment" / "provenance.py", engine)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]

    def git(*words: str) -> str:
        return subprocess.run(["git", *identity, *words], cwd=repository, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    commit = git("rev-parse", "HEAD")

    def state(folder: Path) -> tuple[str, str]:
        found = runpy.run_path(str(folder / "ablations" / "engine" / "environment" / "provenance.py"))["git_state"]()
        return found["git.commit"], found["git.dirty"]

    assert state(repository) == (commit, "false")
    git("archive", "--format=zip", "--output", str(tmp_path / "study.zip"), "HEAD")
    ZipFile(tmp_path / "study.zip").extractall(tmp_path / "archived")
    assert state(tmp_path / "archived") == (commit, "unknown")
    inside = repository / "upload"  # as a job's folder, or an environment, in another project
    shutil.copytree(PROJECT / "ablations" / "engine", inside / "ablations" / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    assert state(inside) == ("unknown", "unknown")


def test_local_changes_of_the_training_code_are_listed(tmp_path: Path) -> None:
    repository = tmp_path / "project"
    for name in ("ablations/engine/trial/worker.py", "resnet_core/optim.py", "tests/test_x.py", "ablations/shortcuts.py"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("x = 1\n")
    source = Path("ablations", "engine", "environment", "provenance.py")
    (repository / source).parent.mkdir()
    shutil.copy(PROJECT / source, repository / source)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for words in (["init"], ["add", "."], ["commit", "-m", "x"]):
        subprocess.run(["git", *identity, *words], cwd=repository, check=True, capture_output=True)

    def found() -> tuple[str, str, str]:
        module = runpy.run_path(str(repository / source))
        state = module["git_state"]()
        return state["git.dirty"], state.get("git.changed", ""), module["_local_changes"]()

    assert found() == ("false", "", "")
    (repository / "notes.txt").write_text("anything")
    (repository / "resnet_core" / "picture.png").write_text("anything")
    assert found() == ("false", "", "")
    # Of a study or a test, the difference is kept, but it trains nothing.
    (repository / "ablations" / "mine.py").write_text("STUDY = 1\n")
    (repository / "tests" / "test_x.py").write_text("x = 2\n")
    dirty, changed, difference = found()
    assert (dirty, changed) == ("false", "")
    assert "+x = 2" in difference
    assert "+++ b/ablations/mine.py" in difference
    assert "+STUDY = 1" in difference
    (repository / "resnet_core" / "optim.py").write_text("x = 3\n")
    (repository / "resnet_core" / "data").mkdir()
    (repository / "resnet_core" / "data" / "new.py").write_text("token = 1\n")
    dirty, changed, difference = found()
    assert (dirty, changed) == ("true", "resnet_core/optim.py, resnet_core/data/new.py (untracked)")
    assert "+x = 3" in difference
    assert "+token = …" in difference


def test_an_uploaded_working_folder_is_recorded_and_part_of_the_resubmit_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--seeds", "2"])
    assert "upload" not in provenance.git_state()
    config = {"metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv(JOB, json.dumps(config))
    assert provenance.resubmit_command() == "ray job submit -- python x.py --seeds 2"
    config["runtime_env"] = {"working_dir": "gcs://_ray_pkg_101b1d40ab5473df.zip"}
    monkeypatch.setenv(JOB, json.dumps(config))
    assert provenance.resubmit_command() == "ray job submit --working-dir . -- python x.py --seeds 2"
    assert provenance.git_state()["upload"] == "_ray_pkg_101b1d40ab5473df.zip"
