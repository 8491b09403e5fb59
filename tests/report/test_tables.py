"""Tables as files: every number as it was found, whatever text is around it."""

import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ablations.engine.analysis import number_format
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report import tables
from tests.helpers.synthetic_findings import HOSTILE, PRINTED, cell, findings
from tests.helpers.synthetic_study import FORMATS


def hostile() -> Findings:
    odd = cell("shortcut=B depth=20", 9.0, levels={"shortcut": HOSTILE, "depth": "20"}, problems={"failed": 1}, reasons=(HOSTILE,))
    odd = replace(odd, label=f"shortcut={HOSTILE} depth=20", value=replace(odd.value, n=2))
    return findings(cell("shortcut=A depth=20"), odd)


def read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])


def split_row(line: str) -> list[str]:
    """Cells of a Markdown row, as CommonMark reads them."""
    cells = re.split(r"(?<!\\)\|", line.replace("\\\\", "\0"))[1:-1]
    return [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", part.strip()).replace("\0", "\\") for part in cells]


def test_csv_reads_back_to_the_same_numbers() -> None:
    made = findings()
    found = read(tables.csv(made))
    assert list(found["cell"]) == [c.label for c in made.cells]
    for i, one in enumerate(made.cells):
        row = found.iloc[i]
        assert [row[f"test_error_{name}"] for name in ("mean", "std", "low", "high")] == [
            one.value.mean,
            one.value.std,
            one.value.low,
            one.value.high,
        ]
        assert (row["train_error_mean"], row["train_error_std"]) == (one.train_value.mean, one.train_value.std)
        assert (row["parameters"], row["multiply_adds"], row["seconds"]) == (one.parameters, one.flops, one.seconds)
        assert (row["images_per_second"], row["peak_memory_mb"]) == (one.images_per_second, one.peak_memory_mb)
        assert (row["gpu_hours"], row["n"], row["planned"]) == (one.gpu_hours, one.value.n, one.planned)
    for i, comparison in enumerate(made.comparisons, 1):
        row, difference = found.iloc[i], comparison.difference
        assert row["baseline"] == comparison.baseline
        assert (row["difference_mean"], row["difference_low"], row["difference_high"]) == (
            difference.mean,
            difference.low,
            difference.high,
        )
        assert (row["p"], row["corrected_p"], row["effect"]) == (difference.p, difference.p_adjusted, difference.effect_size)


def test_what_is_not_known_is_an_empty_field() -> None:
    found = read(tables.csv(findings(cell("depth=20"), cell("depth=56", None, parameters=None, problems={"missing": 3}))))
    assert found["test_error_mean"].isna().tolist() == [False, True]
    assert found["parameters"].isna().tolist() == [False, True]
    assert found["difference_mean"].isna().tolist() == [True, False]


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "@sum(a1)", "-cmd"])
def test_no_text_of_the_csv_is_a_formula(text: str) -> None:
    found = read(tables.csv(findings(cell("depth=20", levels={"depth": text}))))
    assert found["depth"][0] == f"'{text}"


def test_negative_levels_stay_numbers_in_csv() -> None:
    assert read(tables.csv(findings(cell("x=-0.5"))))["x"][0] == -0.5


def test_csv_keeps_any_text() -> None:
    found = read(tables.csv(hostile()))
    assert found["shortcut"][1] == PRINTED
    assert len(found) == 2


def test_markdown_says_what_was_found() -> None:
    lines = [split_row(line) for line in tables.markdown(findings()).splitlines() if line.startswith("|")]
    assert lines[0][:5] == ["shortcut", "depth", "test error %", "n", "difference"]
    assert lines[2][:5] == ["A", "20", "7.50 ± 0.43", "3", "baseline"]
    assert lines[3][:7] == ["none", "20", "8.90 ± 0.43", "3", "−0.67 [−1.17, −0.17]", "<0.001", "2.97 ± 0.20"]
    assert lines[4][4:] == ["−0.33 [−0.83, +0.17]", "0.864", "2.57 ± 0.20", "269,434", "40.8 M", "12.3"]


def test_markdown_keeps_its_shape_whatever_the_text() -> None:
    written = tables.markdown(hostile())
    lines = [split_row(line) for line in written.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {10}
    assert lines[3][0] == PRINTED
    assert not re.search(r"(?<!\\)[<`$](?!0\.001)", written)


def test_an_incomplete_cell_is_shown_as_k_of_n_with_its_reason() -> None:
    one = cell("depth=56", problems={"diverged": 1}, reasons=("loss is not finite",))
    one = replace(one, value=replace(one.value, n=2))
    for written in (tables.markdown(findings(cell("depth=20"), one)), tables.latex(findings(cell("depth=20"), one))):
        assert "2 of 3" in written
        assert "1 run diverged: loss is not finite" in written


def test_a_note_that_many_cells_share_is_written_once() -> None:
    written = tables.markdown(findings(*(cell(f"depth={i}", flags=("trained with torch 2.14 and 2.15",)) for i in range(9))))
    assert written.count("torch 2.14 and 2.15") == 1
    assert "depth=3 and 5 more" in written


def test_latex_uses_only_escaped_specials() -> None:
    body = tables.latex(hostile()).split("\\midrule")[1].split("\\bottomrule")[0]
    bare = re.sub(r"\\[a-z]+(\{[0-9]?\})?|\\[{}$&#%_]|\$(\\[a-z]+|-)\$", "", body)
    rows = [row for row in bare.split("\\\\") if row.strip()]
    assert [row.count("&") for row in rows] == [7, 7]
    assert not set("$#%_^~<>|\"'`") & set(bare)
    assert body.isascii() or set(body) - set(map(chr, range(128))) == {"ü"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles_with_any_text(tmp_path: Path) -> None:
    made = hostile()
    table = tables.latex(replace(made, cells=(*made.cells, cell("x=y", levels={"shortcut": "[3, 3, 3]", "depth": "*"}))))
    packages = "\\usepackage[T1]{fontenc}\\usepackage{textcomp}\\usepackage{booktabs}"
    (tmp_path / "t.tex").write_text(f"\\documentclass{{article}}{packages}\\begin{{document}}\n{table}\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_numbers_are_written_for_people() -> None:
    assert number_format.scaled(3_858_000_000) == "3.86 G"
    assert number_format.scaled(852) == "852"
    assert number_format.p_value(0.0496) == "0.050"
    assert number_format.number(-1234.5) == "−1,234.50"
    assert number_format.number(float("nan")) == number_format.number(None) == number_format.MISSING
    assert FORMATS.mean_std(Estimate(n=1, mean=5.0)) == "5.00"
    assert FORMATS.interval(Estimate(n=1, mean=5.0)) == number_format.MISSING
    assert FORMATS.signed_with_interval(Estimate(n=1, mean=-0.5)) == "−0.50"
