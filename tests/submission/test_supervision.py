"""A submission ends early if its runs cannot work, tells a webhook how it ended, and keeps the checkpoints it is asked to keep."""

import threading
from pathlib import Path

import pytest

from ablations.engine.submission.supervision import notifications
from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import ConfigError
from tests.helpers.submission import Submitted, planned
from tests.helpers.webhook import running_webhook

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster", "few_figures")]

SIX = ("--levels", "shortcut=none,A,B", "--seeds", "2")


def checkpoints(home: Path) -> dict[str, list[str]]:
    """Return the files with checkpoints by folder."""
    return {folder.name: sorted(file.name for file in folder.iterdir()) for folder in (home / "checkpoints").iterdir()}


def test_a_study_whose_first_runs_fail_with_the_same_error_stops_and_tells_it_and_continues_once_repaired(home: Path) -> None:
    plan = planned(*SIX)
    (home / "checkpoints").mkdir()
    blocked = [home / "checkpoints" / run.fingerprint for run in plan.runs]
    for path in blocked:
        path.write_text("a file where a folder should be")
    with running_webhook() as webhook:
        failed = Submitted(home, *SIX, "--notify", webhook.url, "--notify-after", "1")
        assert failed.code == 1
        outcomes = [failed.entries[run.fingerprint].outcome if run.fingerprint in failed.entries else "" for run in plan.runs]
        assert outcomes.count("failed") == 3
        assert set(outcomes) <= {"failed", "stopped", ""}
        reason = "The study stopped: the first 3 runs failed with the same error: OSError: checkpoints in "
        assert reason in failed.text
        assert failed.parent().info.status == "FAILED"
        assert len(webhook.texts) == 2, "one because of failures, one at the end"
        assert webhook.texts[0].startswith("small on synthetic: 2 failed so far. The latest is shortcut=")
        assert webhook.texts[1].startswith("small on synthetic: the study stopped: the first 3 runs failed with the same error: ")
        assert "0 of 6 runs have a result." in webhook.texts[1]
        recorded = repr([failed.parent().data, list(failed.entries.values()), failed.text])
        assert webhook.secret not in recorded
        design = Path(failed.client.download_artifacts(failed.parent().info.run_id, "design.json")).read_text()
        assert webhook.secret not in design

        for path in blocked:
            path.unlink()
        repaired = Submitted(home, *SIX, "--notify", webhook.url)
        assert (repaired.code, set(repaired.outcomes())) == (0, {"completed"})
        assert webhook.texts[2].startswith("small on synthetic: complete. 6 of 6 runs have a result. ")
        assert len(webhook.texts) == 3


def test_a_webhook_that_never_answers_changes_nothing_of_a_study(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "CLOSE_TIMEOUT_SECONDS", 1.0)
    done = Submitted(home, "--levels", "shortcut=A", "--notify", "http://127.0.0.1:9/hook/abcdef")
    assert (done.code, done.outcomes()) == (0, ["completed"])
    assert "abcdef" not in done.text


def test_a_run_with_a_result_keeps_its_last_checkpoint_or_none(home: Path) -> None:
    last = Submitted(home, "--levels", "shortcut=A", "--set", "optim.epochs=3")
    ((folder, files),) = checkpoints(home).items()
    assert folder == last.plan.runs[0].fingerprint
    assert [name[:12] for name in files] == ["epoch-000003"]
    assert last.checkpoint()["history"][-1]["test/error"] == pytest.approx(last.history("test/error")[-1].value)

    none = Submitted(home, "--levels", "shortcut=A", "--set", "optim.epochs=3", "optim.lr=0.05", "--keep-checkpoints", "none")
    assert none.outcomes() == ["completed"]
    assert checkpoints(home).keys() == {folder}
    with pytest.raises(ConfigError, match="--keep-checkpoints none, --log-models"):
        Submitted(home, "--keep-checkpoints", "none", "--log-models")


def test_checkpoints_stay_until_mlflow_has_the_result(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose end has not been delivered is trained again from its checkpoint."""
    from ablations.engine.tracking.run_delivery import RunDelivery

    seen: list[int] = []
    deliver, lock = RunDelivery._deliver_end, threading.Lock()

    def watched(self: RunDelivery, record: object) -> None:
        with lock:
            seen.append(CheckpointFolder(str(home / "checkpoints"), record.fingerprint).latest_epoch())  # type: ignore[attr-defined]
        deliver(self, record)  # type: ignore[arg-type]

    monkeypatch.setattr(RunDelivery, "_deliver_end", watched)
    done = Submitted(home, "--levels", "shortcut=A", "--keep-checkpoints", "none")
    assert done.outcomes() == ["completed"]
    assert seen == [2]
    assert not checkpoints(home)
