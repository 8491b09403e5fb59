"""The code on the pages about own networks and own data runs, in the order of the page."""

import re

import pytest

from ablations import Study
from resnet_core import load_dataset
from tests.helpers.project import PROJECT


@pytest.mark.parametrize(("page", "blocks"), [("own-networks", 3), ("own-data", 2)])
def test_the_code_on_a_page_runs(page: str, blocks: int, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    assert len(code) == blocks
    scope: dict[str, object] = {"__name__": "page"}
    for block in code:
        exec(block, scope)
    assert isinstance(scope["STUDY"], Study)
    error = float(capsys.readouterr().out.splitlines()[0])
    assert 0 <= error <= 100


def test_the_reader_on_the_page_is_used_by_its_study() -> None:
    (code, _) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "own-data.md").read_text(), re.DOTALL)
    scope: dict[str, object] = {"__name__": "page"}
    exec(code, scope)
    study = scope["STUDY"]
    assert isinstance(study, Study)
    spec = study.workload.presets["smoke"]
    assert spec.data.name == "own"
    assert load_dataset(spec.data, reader=study.reader).classes == ("dark", "gray", "bright")
