"""`load` and `Result`: a study's results from MLflow alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ablations
from ablations import ConfigError, Context, Epoch, Metric, Result, Study, Task, load
from ablations.engine.api import calls
from ablations.engine.cli import dispatch
from ablations.engine.report import bundle
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import Options
from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import build_network
from resnet_core.overrides import from_flat
from tests.helpers.json_schemas import problems
from tests.helpers.project import PROJECT
from tests.helpers.stored_study import EPOCHS, RUNS, STUDY


@pytest.fixture(scope="module")
def loaded(stored_uri: str) -> Result:
    return load(STUDY, tracking_uri=stored_uri)


@pytest.mark.slow
def test_tables_have_a_row_per_run_epoch_and_cell(loaded: Result) -> None:
    assert loaded.complete
    assert (len(loaded.runs), len(loaded.curves), len(loaded.cells)) == (RUNS, RUNS * EPOCHS, 4)
    assert [str(loaded.runs[name].dtype) for name in ("shortcut", "depth")] == ["str", "int64"]
    last = loaded.curves[loaded.curves["epoch"] == EPOCHS]
    means = last.groupby(["shortcut", "depth"])["test/error"].mean()
    assert (loaded.cells.set_index(["shortcut", "depth"])["mean"] - means).abs().max() < 1e-9


def test_findings_are_the_published_document_with_what_was_expected(stored_uri: str) -> None:
    found = load(STUDY, tracking_uri=stored_uri, levels={"depth": (8,)}, expect=["shortcut matters"]).findings
    assert problems("findings", found) == []
    assert found["protocol"]["factors"] == {"shortcut": ["none", "A"], "depth": ["8"]}
    assert [each["expectation"] for each in found["expectations"]] == ["shortcut matters"]


def test_the_representation_is_the_answers(loaded: Result) -> None:
    assert repr(loaded).startswith("stored on synthetic: Which shortcut helps?\n")
    assert all(answer["text"] in repr(loaded) for answer in loaded.findings["answers"])


def test_a_notebook_displays_the_report_in_a_frame(loaded: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(evidence: object, findings: object, folder: Path) -> None:
        (folder / "report").mkdir()
        (folder / "report" / "report.html").write_text('<p class="a">×</p>', encoding="utf-8")

    monkeypatch.setattr(bundle, "write", write)
    report = loaded.report
    assert report._repr_html_().startswith('<iframe srcdoc="&lt;p class=&quot;a&quot;&gt;×')
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report.html


def test_the_network_of_a_run_has_its_trained_weights(stored_uri: str, tmp_path: Path) -> None:
    loaded = load(STUDY, tracking_uri=stored_uri, storage=tmp_path)
    row = loaded.runs[(loaded.runs["depth"] == 14) & (loaded.runs["shortcut"] == "A") & (loaded.runs["seed"] == 1)].iloc[0]
    (cell,) = (cell for cell in loaded._stored.evidence.design.cells if row["fingerprint"] in cell.fingerprints)
    trained = build_network(from_flat({**cell.spec, "seed": 1}).model, 8)
    CheckpointFolder(str(tmp_path), row["fingerprint"]).save({"model": trained.state_dict(), "history": []}, 1)
    images = torch.randn(2, *(3, 16, 16) if _channels(trained) == 3 else (1, 8, 8))
    for run in (row, next(row.to_frame().T.itertuples()), {"shortcut": "A", "depth": 14, "seed": 1}):
        net = loaded.net(run)
        assert not net.training
        assert torch.equal(net(images), trained.eval()(images))


def test_the_checkpoint_of_a_task_is_what_the_task_yielded(stored_uri: str, tmp_path: Path) -> None:
    loaded = load(STUDY, tracking_uri=stored_uri, storage=tmp_path)
    row = loaded.runs.iloc[0]
    yielded = {"epoch": 3, "weight": torch.ones(2)}
    CheckpointFolder(str(tmp_path), row["fingerprint"]).save({"history": [], "state": yielded}, 1)
    assert loaded.checkpoint(row).keys() == {"history", "state"}
    task = Task(name="walk", config=Config, train=train, metric=Metric("valid/loss"))
    of_task = Study(name="walks", question="?", task=task, factors={"a": (1, 2)}, baseline={"a": 1})
    assert Result(of_task, loaded._stored, loaded._options).checkpoint(row).keys() == yielded.keys()


@dataclass(frozen=True, kw_only=True)
class Config:
    a: int = 1


def train(config: Config, context: Context) -> Iterator[Epoch]:
    yield Epoch(metrics={"valid/loss": config.a})


def _channels(net: torch.nn.Module) -> int:
    return int(next(net.parameters()).shape[1])


def test_a_run_without_a_checkpoint_or_that_is_not_one_run_is_named(stored_uri: str, tmp_path: Path) -> None:
    loaded = load(STUDY, tracking_uri=stored_uri, storage=tmp_path)
    one = {"shortcut": "A", "depth": 8, "seed": 0}
    with pytest.raises(ConfigError, match=r"^run=shortcut=A depth=8 seed=0: has no checkpoint in .*; accepted: storage="):
        loaded.net(one)
    with pytest.raises(ConfigError, match=r"^run=depth=8: 6 runs with these values; accepted: exactly one"):
        loaded.net({"depth": 8})
    with pytest.raises(ConfigError, match=r"^run=width: accepted: shortcut, depth, seed"):
        loaded.net({"width": 8})
    with pytest.raises(ConfigError, match=r"^run=3: accepted: a row of runs"):
        loaded.net(3)


def test_what_mlflow_does_not_have_is_a_config_error(stored_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MLflow has no study stored with preset digits"):
        load(STUDY, tracking_uri=stored_uri, preset="digits")
    with pytest.raises(ConfigError, match="the database does not exist"):
        load(STUDY, tracking_uri=f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(ConfigError, match="accepted: a Study"):
        load("stored")  # type: ignore[arg-type]


@pytest.mark.slow
def test_loading_needs_no_ray_and_leaves_the_environment_as_it_was(stored_uri: str, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from ablations import Study, load
from tests.helpers.stored_study import STUDY
before = dict(os.environ)
assert load(STUDY, tracking_uri={stored_uri!r}).complete
assert os.environ.get("RAY_ADDRESS") == before.get("RAY_ADDRESS")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGINT)
import ray
assert not ray.is_initialized()
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupted_run_raises_keyboard_interrupt_and_restores_the_handlers(
    monkeypatch: pytest.MonkeyPatch, stored_uri: str
) -> None:
    import signal

    def train(plan: Plan, options: Options) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as a study does: it closes its records
            return 1
        raise AssertionError("not interrupted")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(dispatch, "train", train)
    with pytest.raises(KeyboardInterrupt):
        ablations.run(STUDY, tracking_uri=stored_uri)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.setattr(dispatch, "train", lambda *_: 0)
    assert ablations.run(STUDY, tracking_uri=stored_uri).complete


def test_what_a_run_records_and_prints_as_its_command_is_the_call(monkeypatch: pytest.MonkeyPatch, stored_uri: str) -> None:
    from ablations.engine.environment import provenance

    seen: list[str] = []

    def train(plan: Plan, options: Options) -> int:
        seen.append(provenance.resubmit_command())
        return 0

    monkeypatch.setattr(dispatch, "train", train)
    ablations.run(STUDY, seeds=2, tracking_uri=stored_uri)
    assert seen == [f"run(stored, seeds=2, tracking_uri='{stored_uri}')"]
    assert not provenance.resubmit_command().startswith("run(")


def test_a_wrong_call_starts_nothing(monkeypatch: pytest.MonkeyPatch, stored_uri: str) -> None:
    monkeypatch.setattr(dispatch, "train", lambda *_: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match="is no level of shortcut"):
        ablations.run(STUDY, tracking_uri=stored_uri, expect="shortcut=B better than A")
    with pytest.raises(ConfigError, match="seed: no such keyword; did you mean seeds"):
        calls.run(STUDY, seed=1)
