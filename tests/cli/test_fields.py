"""`ablations fields` lists what `--set` takes, and every line of it can be typed."""

import json
from pathlib import Path

import pytest

from ablations.engine.cli import commands
from resnet_core import PRESETS, ConfigError, RunSpec, override

OWN = """
from dataclasses import dataclass
from torch import nn
from ablations import Study, main

@dataclass(frozen=True, kw_only=True)
class Perceptron:
    width: int = 64
    '''Number of hidden units.'''
    dropout: float = 0.0

    def build(self, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        return nn.Flatten()

STUDY = Study(name="own", question="?", model=Perceptron, factors={"dropout": (0.0, 0.5)}, settings={"lr": 0.3})

if __name__ == "__main__":
    raise SystemExit("was run")
"""


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert commands._run(["fields", *arguments]) == 0
    return capsys.readouterr().out


def test_every_field_is_listed_with_a_value_that_set_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for preset in (None, "cifar10"):
        text = listed(capsys, *(["--preset", preset] if preset else []))
        lines = [line for line in text.splitlines() if not line.startswith(" ")]
        values = dict(line.partition("  (")[0].split("=", 1) for line in lines)
        assert values.keys() == RunSpec().flat().keys() - {"seed", "world_size"}
        spec = PRESETS[preset] if preset else RunSpec()
        assert override(RunSpec(), values).flat() == spec.flat()


def test_a_word_finds_fields_by_name_meaning_and_the_name_of_another_library(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "label_smoothing")
    assert found.splitlines()[0] == "optim.label_smoothing=0.0  (number, fraction)"
    assert listed(capsys, "learning_rate").startswith("optim.lr=0.1  (number)\n    Peak learning rate.")
    assert "model.shortcut=A  (choice)" in listed(capsys, "shortcut")
    assert "Accepted: none, A, B, C." in " ".join(listed(capsys, "model.shortcut").split())


def test_fields_as_json_have_types_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    (field,) = json.loads(listed(capsys, "optim.nesterov", "--json"))
    assert (field["name"], field["type"], field["default"]) == ("optim.nesterov", "true or false", False)
    assert field["description"]


def test_a_studys_own_network_has_its_own_fields_and_its_file_is_not_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    text = listed(capsys, "--study", str(file))
    assert "model.width=64  (whole number)\n    Number of hidden units.\n" in text
    assert "model.dropout=0.0" in text
    assert "optim.lr=0.3" in text, "the study's own setting"
    assert "model.shortcut" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zzz"], "ablations fields=zzz: no field has this word"),
        (["--preset", "mnist"], "--preset=mnist: accepted: smoke, digits"),
        (["--study", "/nowhere/x.py"], "--study=/nowhere/x.py: accepted: the file of a study"),
    ],
)
def test_a_wrong_request_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        commands._run(["fields", *arguments])
    assert str(error.value).startswith(message)
