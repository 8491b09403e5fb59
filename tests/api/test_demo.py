"""`make demo` ends with three lines: the answer, where to look, and what to try next."""

import re
import sys
from pathlib import Path

from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.api.demo import closing_lines
from ablations.engine.report.findings_json import findings_document
from tests.helpers.project import PROJECT
from tests.helpers.synthetic_study import evidence


def test_the_demo_ends_with_the_answer_the_report_and_a_next_step() -> None:
    given = evidence()
    answer, look, following = closing_lines(findings_document(given, analyze_study(given)), "http://127.0.0.1:5000/report")
    assert re.fullmatch(r"Answer: shortcut matters: .*none instead of A raises the test error by [\d.]+ points.*\)\.", answer)
    assert len(answer) < 160
    assert look.split() == ["Look:", "http://127.0.0.1:5000/report"]
    python = Path(following.split()[1])
    assert python == Path("python") or python.samefile(sys.executable), "as it works in a shell without the environment"
    assert "python ablations/degradation.py --plan " in following
    assert "make down" in following


def test_a_demo_without_a_result_says_so() -> None:
    assert closing_lines({"answers": []}, "x")[0] == "Answer: none yet."


def test_make_demo_prints_them_last() -> None:
    recipe = re.search(r"^demo: up\n((?:\t.*\n)+)", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert recipe[1].splitlines()[-1].endswith("-m ablations.engine.api.demo")
