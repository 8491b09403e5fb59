"""`ablations logs` shows why a real run failed, its traceback, and what its process printed."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from ablations.engine.cli import commands
from ablations.engine.scheduling import tune_runner
from ablations.engine.trial import trainable
from ablations.engine.trial.job import PROCESS_TAG, Report
from resnet_core.model.network import ResNet
from tests.helpers.submission import Submitted


def forward(_: ResNet, images: torch.Tensor) -> torch.Tensor:
    return images.misspelt()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "few_figures")
def test_a_run_that_fails_before_its_first_epoch_names_its_process(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Printing(trainable.RunTrainable):
        def step(self) -> Report:
            print("before the first epoch", flush=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ResNet, "forward", forward)
                return super().step()

    monkeypatch.setattr(tune_runner, "RunTrainable", Printing)
    failed = Submitted(home, "--levels", "shortcut=A")
    assert failed.entry().outcome == "failed"
    capsys.readouterr()
    assert commands.main(["logs", failed.entry().run_id, "--tracking-uri", failed.client.tracking_uri]) == 0
    assert "\nbefore the first epoch\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "few_figures")
def test_the_reason_the_traceback_and_the_output_of_a_run_are_there(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Printing(trainable.RunTrainable):
        def step(self) -> Report:
            epochs = len(getattr(self, "printed", []))
            self.printed = [*getattr(self, "printed", []), epochs]
            print(f"step {epochs} of {self.config['job']['fingerprint']}", flush=True)
            with pytest.MonkeyPatch.context() as patch:
                if epochs:
                    patch.setattr(ResNet, "forward", forward)
                return super().step()

    monkeypatch.setattr(tune_runner, "RunTrainable", Printing)
    failed = Submitted(home, "--levels", "shortcut=A")
    entry = failed.entry()
    assert entry.outcome == "failed"
    uri = failed.client.tracking_uri
    capsys.readouterr()
    for name in (entry.run_id, entry.run_id[:8], entry.tags["fingerprint"], entry.tags["fingerprint"][:7].upper()):
        assert commands.main(["logs", name, "--json", "--tracking-uri", uri]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["run_id"], found["outcome"], found["study"]) == (entry.run_id, "failed", "small")
    assert found["message"] == "AttributeError: 'Tensor' object has no attribute 'misspelt'"
    assert ", in forward\n    return images.misspelt()" in found["traceback"]
    text = "\n".join(process["text"] for process in found["processes"])
    assert f"step 0 of {entry.tags['fingerprint']}\nstep 1 of" in text
    assert all(process["machine"] == entry.tags[PROCESS_TAG].rpartition(":")[0] for process in found["processes"])
    assert commands.main(["logs", entry.run_id, "--lines", "1", "--tracking-uri", uri]) == 0
    out = capsys.readouterr().out
    assert "failed: AttributeError" in out
    assert "step 1 of" in out
    assert "step 0 of" not in out


def test_twenty_characters_are_a_fingerprint_or_the_beginning_of_a_run_id(
    stored_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(stored_uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.fingerprint LIKE '%'")
    for name in (runs[0].data.tags["fingerprint"], runs[0].info.run_id[:20]):
        assert commands.main(["logs", name, "--tracking-uri", stored_uri]) == 0
        assert f"run {runs[0].info.run_id}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["abcdefghij'klmnopqrs", "eine Zelle mit \u00fcber", "'", "shortcut=A seed=0", "%"])
def test_what_is_no_run_is_refused_as_such(name: str, stored_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["logs", name, "--tracking-uri", stored_uri]) == 2
    expected = f"error: RUN={name}: accepted: 6 or more of the first characters of a run ID or fingerprint\n"
    assert capsys.readouterr().err == expected
