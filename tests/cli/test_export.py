"""`ablations export` writes what MLflow has: every value of every run once, at its step and time."""

import os
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from ablations.engine.cli import commands
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.run_queries import search_runs
from resnet_core import ConfigError
from tests.helpers.stored_study import EPOCHS, RUNS, stored_study


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stored_study(tmp_path_factory.mktemp("stored"))


def export(uri: str, *arguments: str) -> None:
    assert commands._run(["export", "stored", *arguments, "--tracking-uri", uri]) == 0


def masked(data: bytes) -> int:
    """Return the checksum of a record, as TensorFlow's format has it."""
    value = int(crc32c(data))
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(file: Path) -> Iterator[Event]:
    """Yield the events of a file, whose records are framed by their length and checksums."""
    data = file.read_bytes()
    while data:
        head, (length, check) = data[:8], struct.unpack("<QI", data[:12])
        assert masked(head) == check
        body = data[12 : 12 + length]
        assert masked(body) == struct.unpack("<I", data[12 + length : 16 + length])[0]
        yield Event.FromString(body)
        data = data[16 + length :]


@pytest.mark.slow
def test_event_files_have_every_value_of_every_run_at_its_step_and_time(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(uri, "--tensorboard", str(tmp_path / "events"))
    client = connect(uri)
    stored = {run.data.tags["cell"] + run.data.tags["seed"]: run for run in search_runs(client, "tags.outcome = 'completed'")}
    files = sorted((tmp_path / "events").rglob("events.out.tfevents.*"))
    assert len(files) == len({file.parent for file in files}) == RUNS == len(stored)
    count = 0
    for file in files:
        found = list(events(file))
        fields: dict[str, Any] = {}
        values = set()
        for event in found:
            for each in event.summary.value:
                if each.tag == "_hparams_/session_start_info":
                    sent = HParamsPluginData.FromString(each.metadata.plugin_data.content).session_start_info.hparams
                    fields = {name: value.string_value or value.number_value for name, value in sent.items()}
                elif not each.tag.startswith("_hparams_"):
                    values.add((each.tag, event.step, each.simple_value, event.wall_time))
        run = stored[f"{fields['cell']}{fields['seed']:.0f}"]
        assert {fields["model.depth"], fields["model.shortcut"]} == {
            float(run.data.params["model.depth"]),
            run.data.params["model.shortcut"],
        }
        assert "optim.lr" not in fields, "equal in all runs"
        history = client.get_metric_history(run.info.run_id, "test/error")
        single = struct.Struct("f")
        wanted = {("test/error", m.step, *single.unpack(single.pack(m.value)), m.timestamp / 1000) for m in history}
        assert wanted <= values
        assert len(history) == EPOCHS
        count += len(values)
    assert f"{RUNS} runs with {count:,} values are in {tmp_path}/events; next: tensorboard --logdir" in capsys.readouterr().out


@pytest.mark.slow
def test_offline_runs_have_the_fields_and_the_curves(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in records what is sent to `wandb`, which tests do not install."""
    written: list[Any] = []

    class Written:
        def __init__(self, **settings: Any) -> None:
            self.settings, self.rows = settings, dict[int, dict[str, float]]()
            written.append(self)

        def __enter__(self) -> "Written":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def log(self, values: dict[str, float], step: int) -> None:
            self.rows[step] = values

    stand_in = types.ModuleType("wandb")
    stand_in.init, stand_in.Settings = Written, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    export(uri, "--wandb", str(tmp_path / "runs"))
    assert len(written) == RUNS
    for each in written:
        assert (each.settings["mode"], each.settings["project"], each.settings["dir"]) == (
            "offline",
            "stored",
            str(tmp_path / "runs"),
        )
        assert each.settings["config"]["cell"].startswith("shortcut=")
        assert list(each.rows) == [1, 2, 3, 4]
        assert {"train/loss", "test/error"} < each.rows[4].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ablations export: names no format; accepted: --tensorboard FOLDER, --wandb FOLDER, or both"),
        (["--tensorboard", "{full}"], "--tensorboard={full}: is not empty; accepted: a new or empty folder"),
        (["--tensorboard", "{new}", "--preset", "digits"], "--preset=digits: stored has no runs with a metric; accepted: smoke"),
        (["--wandb", "{new}"], "--wandb: needs the package wandb, which is not installed; accepted: pip install wandb"),
        (
            ["--tensorboard", "{new}", "--wandb", "{other}"],
            "--wandb: needs the package wandb, which is not installed; accepted: pip install wandb",
        ),
        (["--tensorboard", "{new}", "--wandb", "{new}"], "--tensorboard, --wandb: name the same folder; accepted: two folders"),
    ],
)
def test_a_wrong_request_is_one_line(
    uri: str, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    places = {"full": tmp_path / "full", "new": tmp_path / "new", "other": tmp_path / "other"}
    with pytest.raises(ConfigError) as error:
        export(uri, *(each.format(**places) for each in arguments))
    assert str(error.value) == message.format(**places)
    assert [each.name for each in tmp_path.iterdir()] == ["full"], "nothing was written"


def test_an_unknown_study_is_answered_with_those_that_there_are(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^export=shortcuts: MLflow has no such study; accepted: stored$"):
        commands._run(["export", "shortcuts", "--tensorboard", str(tmp_path / "new"), "--tracking-uri", uri])
    assert not (tmp_path / "new").exists()


def test_a_preset_or_a_setting_selects_runs_as_in_other_commands(uri: str, tmp_path: Path) -> None:
    for number, name in enumerate(("stored@smoke", "stored@lr=0.1")):
        folder = tmp_path / str(number)
        assert commands._run(["export", name, "--tensorboard", str(folder), "--tracking-uri", uri]) == 0
        assert len(list(folder.rglob("events.*"))) == RUNS
    with pytest.raises(ConfigError, match=r"^NAME=stored@digits: MLflow has no such study; did you mean stored\?$"):
        commands._run(["export", "stored@digits", "--tensorboard", str(tmp_path / "new"), "--tracking-uri", uri])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(uri: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\); accepted: a folder$"):
        export(uri, "--tensorboard", str(tmp_path))
