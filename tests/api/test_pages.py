"""The examples of the Python API on the pages and in the notebook run."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from ablations.engine.environment import paths
from ablations.engine.submission import reporting
from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import build_network
from resnet_core.overrides import from_flat
from tests.helpers.project import PROJECT
from tests.helpers.stored_study import stored_study

PAGE = (PROJECT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NOTEBOOK = PROJECT / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_the_examples_of_the_page_run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All runs of the page's study are in MLflow already, so that its calls train nothing."""
    scope: dict[str, Any] = {"__name__": "page"}
    definition = BLOCKS[0].partition("result =")[0]
    exec(definition, scope)
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stored_study(home, scope["STUDY"]))
    stored_study(home, replace(scope["STUDY"], datasets={"few": {"train_examples": 64}, "many": {"train_examples": 96}}))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(reporting, "publish", lambda *_, **__: None)  # figures take a minute on a busy machine
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    exec(BLOCKS[0].removeprefix(definition), scope)
    result = scope["result"]
    assert result.complete
    Path(paths.default_storage(), "checkpoints").mkdir(parents=True, exist_ok=True)
    for cell in result._stored.evidence.design.cells:
        for fingerprint in cell.fingerprints:
            trained = build_network(from_flat(cell.spec).model, 8).state_dict()
            CheckpointFolder(paths.default_storage(), fingerprint).save({"model": trained, "history": []}, 1)
    for block in BLOCKS[1:]:
        if "weight_decay" in block:  # other settings, which are not stored
            assert "seeds=3" in block
            block = block.replace('    settings={"optim.weight_decay": 1e-4},  # --set\n', "")
        exec(block, scope)
    assert scope["net"] is not None
    assert scope["result"].findings["expectations"][0]["expectation"] == "shortcut=A better than none"


def test_the_notebook_has_no_outputs() -> None:
    code = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]  # type: ignore[no-untyped-call]
    assert code
    assert not [cell for cell in code if cell.outputs or cell.execution_count]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.nightly
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_ADDRESS": "local", "PYTHONPATH": str(PROJECT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=500, kernel_name="python3").execute(env={**os.environ})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    lines = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "[12/12]" in lines
    assert "\x1b" not in lines, "lines as in a log, not the live table of a terminal"
