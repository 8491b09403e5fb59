"""What the documents tell people to type works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.project import PROJECT

STUDY = re.search(r"```python\n(\"\"\".*?)```", (PROJECT / "docs" / "adding-a-study.md").read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.alone
def test_the_study_that_is_added_as_an_example_runs(tmp_path: Path) -> None:
    assert STUDY
    file = tmp_path / "zero_init.py"
    file.write_text(STUDY[1])
    command = [sys.executable, str(file), "--preset", "smoke", "--seeds", "1", "--levels", "depth=8"]
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_ADDRESS": "local"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=200).stdout
    assert "[2/2]" in shown
    assert "zero-init on synthetic: Does a network train better if every block starts as the identity?" in shown


def test_the_example_beside_the_other_studies_breaks_no_test_of_them(tmp_path: Path) -> None:
    assert STUDY
    for folder in ("ablations", "resnet_core", "tests"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    (tmp_path / "ablations" / "zero_init.py").write_text(STUDY[1])
    tests = ["tests/test_architecture.py", "tests/cli/test_command_line.py", "-k", "zero_init or imports or data_in_less"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stdout
    assert "test_no_study_takes_the_name_of_another_module[zero_init]" in done.stdout


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))])
def test_links_between_files_lead_somewhere(document: str) -> None:
    folder = (PROJECT / document).parent
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", (PROJECT / document).read_text()):
        assert (folder / target).exists(), target
