"""A checkpoint is there whole or not at all, and damage is found out."""

from pathlib import Path

import pytest
import torch

from ablations.engine.checkpoints import CheckpointFolder


def state(epoch: int) -> dict[str, object]:
    return {"weights": torch.full((3,), float(epoch)), "history": [{"epoch_seconds": 1.0}] * epoch}


def epoch_of(folder: CheckpointFolder) -> int | None:
    latest = folder.latest()
    return None if latest is None else len(latest["history"])


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_newest_of_two_kept_is_read(tmp_path: Path, scheme: str) -> None:
    folder = CheckpointFolder(f"{scheme}{tmp_path}/some/where", "run")
    assert epoch_of(folder) is None
    for epoch in (1, 2, 3):
        folder.save(state(epoch), epoch)
    assert epoch_of(folder) == 3
    assert sorted(p.name[:12] for p in (tmp_path / "some/where/run").iterdir()) == ["epoch-000002", "epoch-000003"]


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(str(tmp_path), "run")
    for epoch in (1, 2):
        folder.save(state(epoch), epoch)
    newest = max(tmp_path.glob("run/*.pt"))
    content = bytearray(newest.read_bytes())
    content[100] ^= 1
    newest.write_bytes(content if damage == "altered" else content[:-10])
    assert epoch_of(folder) == 1
    assert newest.name in caplog.text


def test_a_file_that_was_not_finished_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(str(tmp_path), "run")
    folder.save(state(1), 1)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("the machine dies here")))
    with pytest.raises(OSError, match="dies"):
        folder.save(state(2), 2)
    assert epoch_of(folder) == 1
