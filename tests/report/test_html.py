"""The report: one page that says what was found, holds whatever text and loads nothing."""

import base64
import itertools
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ablations.engine.analysis import number_format
from ablations.engine.analysis.findings import Answer
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report import tables
from ablations.engine.report.page.figures import ReportFigure, inline_svg
from ablations.engine.report.paper_comparison import PaperRow
from tests.helpers import synthetic_study
from tests.helpers.project import PROJECT
from tests.helpers.synthetic_findings import HOSTILE, PRINTED, SVG, estimate, found_in, many
from tests.helpers.synthetic_findings import page as made
from tests.helpers.synthetic_study import FORMATS

STYLES = PROJECT / "ablations/engine/report/templates/report.css"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Content of a page: elements in order with their text, and tables as rows of (text, value)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.tables: dict[str, list[list[tuple[str, str | None]]]] = {}
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self._table = ""
        self.feed(page)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element: tuple[str, dict[str, str], list[str]] = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)
        if tag == "caption":
            self._table = element[1]["id"]
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        opened, attributes, text = self._open.pop()
        assert opened == tag
        if tag in {"td", "th"}:
            self.tables[self._table][-1].append(("".join(text).strip(), attributes.get("data-value")))

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str], str]]:
        return [(tag, attributes, "".join(text)) for tag, attributes, text in self.elements if tag in tags]

    @property
    def text(self) -> str:
        return self.all("main")[0][2] + self.all("header")[0][2]


def number(text: str | None) -> float | None:
    return float(text) if text else None


def test_every_number_of_the_results_is_the_one_found() -> None:
    found = found_in(synthetic_study.evidence())
    head, *lines = Page(made(found=found)).tables["table-results"]
    names = [name for name, _ in head]
    by_cell = tables.comparisons_by_cell(found)
    for line, one in zip(lines, found.cells, strict=True):
        values = dict(zip(names[4:], line[4:], strict=True))  # both intervals have the same name
        assert [text for text, _ in line[:2]] == list(one.levels.values())
        assert line[2] == (FORMATS.mean_std(one.value), repr(one.value.mean))
        assert line[3] == (FORMATS.interval(one.value), repr(one.value.low))
        assert number(values["train error, %"][1]) == one.train_value.mean
        if comparison := by_cell.get(one.label):
            difference = comparison.difference
            text, value = values["difference"]
            assert number(value) == difference.mean
            assert text.removeprefix("● significant: ") == FORMATS.signed(difference.mean)
            assert text.startswith("●") == difference.significant
            assert values["95 % interval"] == (FORMATS.signed_interval(difference), repr(difference.low))
            assert values["p, adjusted"] == (number_format.p_value(difference.p_adjusted), repr(difference.p_adjusted))
        else:
            assert values["difference"][0] == "baseline"


def test_costs_have_a_table_of_their_own() -> None:
    found = found_in(synthetic_study.evidence())
    page = Page(made(found=found))
    head, *lines = page.tables["table-costs"]
    assert [name for name, _ in head[2:]] == ["parameters", "multiply-adds", "images/s", "GPU memory, MiB", "seconds", "GPU-hours"]
    text = " ".join(made(found=found).split())
    assert (
        "Images/s is the speed of training in the final epoch. GPU memory is the peak on the GPU of one worker in the final" in text
    )
    for line, one in zip(lines, found.cells, strict=True):
        assert [text for text, _ in line[:2]] == list(one.levels.values())
        costs = (one.parameters, one.flops, one.images_per_second, one.peak_memory_mb, one.seconds, one.gpu_hours)
        assert tuple(number(value) for _, value in line[2:]) == costs
    assert not {name for name, _ in head[2:]} & {name for name, _ in page.tables["table-results"][0]}


def test_memory_is_that_of_a_gpu_or_not_shown() -> None:
    given = synthetic_study.evidence()
    heads = [name for name, _ in Page(made(given, analyze_study(given))).tables["table-costs"][0]]
    assert heads == ["shortcut", "depth", "parameters", "multiply-adds", "images/s", "seconds"]
    on_gpu = replace(given, runs=given.runs.assign(gpu_hours=0.5))
    head, line, *_ = Page(made(on_gpu, analyze_study(on_gpu))).tables["table-costs"]
    assert dict(zip([name for name, _ in head], line, strict=True))["GPU memory, MiB"] == ("120", "120.0")


def test_without_a_baseline_there_are_no_columns_of_dashes() -> None:
    given = synthetic_study.evidence(synthetic_study.design(synthetic_study.FACTORS, {}))
    found = analyze_study(given)
    page = Page(made(given, found))
    assert [name for name, _ in page.tables["table-results"][0]] == [
        "shortcut",
        "depth",
        "test error, %",
        "95 % interval",
        "n",
        "train error, %",
    ]
    for text in (tables.markdown(found), tables.latex(found), page.all("caption")[0][2]):
        assert "difference" not in text.lower()


def test_a_cell_without_a_value_is_one_line_with_the_reason_once() -> None:
    given = synthetic_study.evidence()
    for seed in range(3):
        given = synthetic_study.without(given, f"shortcut=none depth=56/{seed}", "failed", f"out of memory: {seed} MiB left")
    page = Page(made(given, analyze_study(given)))
    line = next(line for line in page.tables["table-results"] if [text for text, _ in line[:2]] == ["none", "56"])
    assert [text for text, _ in line[2:]] == ["no value: 3 runs failed: out of memory: 0 MiB left (and 2 like it)"]
    compared = next(line for line in page.tables["table-comparisons"] if line[0][0] == "shortcut=none depth=56")
    assert [text for text, _ in compared[2:4]] == ["no pair of runs", "–"]
    assert not [line for line in page.tables["table-costs"] if [text for text, _ in line[:2]] == ["none", "56"]]


def test_a_message_is_written_once_for_the_runs_of_a_cell() -> None:
    given = synthetic_study.evidence()
    for seed in (0, 2):
        given = synthetic_study.without(given, f"shortcut=A depth=20/{seed}", "failed", "disk full")
    ended = [line[5][0] for line in Page(made(given)).tables["table-runs"] if line[0][0] == "shortcut=A depth=20"]
    assert ended == ["failed: disk full", "completed", "failed, as seed 0"]


def test_shown_intervals_end_where_the_metric_does_and_the_page_says_so() -> None:
    given = synthetic_study.evidence(truth=lambda levels, seed: 0.2 + 2.0 * (seed == 2))
    found = analyze_study(given)
    page = Page(made(given, found))
    assert {line[3][0].partition(",")[0] for line in page.tables["table-results"][1:]} == {"[0.00"}
    assert {cell.train_value.low for cell in found.cells} == {0.0}
    assert "cut off at 0 %: no error is lower." in page.all("caption")[0][2]
    assert "cut off" not in Page(made()).all("caption")[0][2]


def test_every_test_is_in_its_table() -> None:
    found = found_in(synthetic_study.evidence())
    page = Page(made(found=found))
    differences = [comparison.difference for comparison in found.comparisons]
    for table, expected in {
        "table-comparisons": differences,
        "table-effects": [effect.difference for effect in found.effects],
        "table-interactions": [one.difference for one in found.interactions],
    }.items():
        head, *lines = page.tables[table]
        first = [name for name, _ in head].index("difference")
        shown = [[number(value) for _, value in line[first : first + 6]] for line in lines]
        assert shown == [[e.mean, e.low, e.p, e.p_adjusted, e.effect_size, e.n] for e in expected]
    assert page.tables["table-anova"][1] == [
        ("shortcut", None),
        ("2", "2.0"),
        ("212.50", "212.5"),
        ("0.980", "0.98"),
    ]


def test_every_run_is_listed_with_its_place_in_mlflow() -> None:
    evidence = synthetic_study.without(synthetic_study.evidence(), "shortcut=A depth=20/1", "failed", "disk full")
    _, *lines = Page(made(evidence)).tables["table-runs"]
    assert len(lines) == 18
    line = next(line for line in lines if line[-1][0] == "shortcut=A depth=20/1")
    assert [text for text, _ in line] == [
        "shortcut=A depth=20",
        "1",
        "–",
        "–",
        "1",
        "failed: disk full",
        "run-shortcut=A depth=20/1",
        "shortcut=A depth=20/1",
    ]


def test_an_incomplete_cell_is_shown_as_k_of_n_with_its_reason() -> None:
    evidence = synthetic_study.evidence()
    found = found_in(evidence)
    one = replace(found.cells[1], value=replace(found.cells[1].value, n=2), problems={"oom": 1}, reasons=("out of memory",))
    page = Page(made(evidence, replace(found, cells=(found.cells[0], one, *found.cells[2:]))))
    assert "2 of 3" in [text for text, _ in page.tables["table-results"][2]]
    assert "1 run ran out of memory: out of memory" in [text for text, _ in page.tables["table-results"][2]]


def test_a_running_study_says_how_far_it_is() -> None:
    assert "12 of 24 runs had ended" in Page(made(progress="12 of 24 runs")).text
    assert "Interim report" not in Page(made()).text


def test_verdicts_differ_by_more_than_colour() -> None:
    shown = [text for _, attributes, text in Page(made()).all("span") if attributes.get("class", "").startswith("verdict")]
    assert shown == ["● matters", "◐ may matter", "◎ no effect within margin", "○ no difference shown", "? cannot be said"]


def test_why_there_is_no_analysis_of_variance_is_said() -> None:
    found = replace(found_in(synthetic_study.evidence()), anova=None, no_anova="2 cells have no completed run")
    assert "2 cells have no completed run" in Page(made(found=found)).text


def test_published_errors_are_shown_with_what_makes_them_incomparable() -> None:
    row = PaperRow(
        cell="shortcut=A depth=20",
        metric="one view",
        ours=estimate(8.1),
        published=8.75,
        published_std=None,
        runs=1,
        above=True,
        source="table 6",
        difference=-0.65,
        differs=("10 epochs, not 164",),
    )
    lines = Page(made(published=(row, replace(row, differs=(), published_std=0.16, above=False)))).tables["table-paper"][1:]
    assert [line[3][0] for line in lines] == ["> 8.75", "8.75 ± 0.16"]
    assert [line[5][0] for line in lines] == ["○ not comparable: 10 epochs, not 164", "● the same protocol"]
    assert number(lines[0][4][1]) == -0.65
    assert "Against the paper" not in Page(made()).text


def test_the_page_loads_nothing() -> None:
    page = Page(made(synthetic_study.evidence(), progress="1 of 2 runs"))
    policy = next(a["content"] for _, a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert not page.all("link", "img", "iframe", "object", "embed", "base", "form")
    for _, attributes, _ in page.elements:
        for name, value in attributes.items():
            if name in {"href", "src", "xlink:href", "action", "data"}:
                assert value.startswith(("#", "data:text/plain;base64,", "../")), value
    written = made()
    assert set(re.findall(r"url\((.)", written)) == {"#"}
    assert "@import" not in written
    assert "http:" not in written


def test_whatever_text_is_shown_as_text() -> None:
    made_design = synthetic_study.design(question=HOSTILE)
    one = replace(made_design.cells[0], levels={"shortcut": HOSTILE, "depth": "20"}, label=HOSTILE, spec={"data.root": HOSTILE})
    origin = {"command": HOSTILE.replace("\n", ""), "git.diff": f"+{HOSTILE}"}
    cells = (one, *made_design.cells[1:])
    made_design = replace(made_design, dataset=HOSTILE, cells=cells, skipped=((HOSTILE, HOSTILE),), origin=origin)
    evidence = replace(synthetic_study.evidence(), design=made_design)
    evidence.runs[["message", "device", "cell", "run_id"]] = HOSTILE
    found = replace(
        found_in(evidence),
        answers=(Answer(factor=HOSTILE, verdict="matters", text=HOSTILE),),
        flags=(HOSTILE,),
        no_anova=HOSTILE,
        anova=None,
    )
    picture = ReportFigure("curves", HOSTILE, HOSTILE, HOSTILE, SVG)
    written = made(evidence, found, progress=HOSTILE, figures=[picture])
    page = Page(written)
    assert len(page.all("script")) == 1
    assert not [a for _, attributes, _ in page.elements for a in attributes if a.startswith("on")]
    assert page.text.count(PRINTED) > 30
    assert page.all("h1")[0][2] == PRINTED
    assert page.all("svg")[0][1]["aria-label"] == PRINTED
    assert not set(written) & {"\x00", "\u202e"}


def test_headings_follow_each_other_and_everything_has_its_name() -> None:
    page = Page(made(progress="1 of 2 runs"))
    levels = [int(tag[1]) for tag, _, _ in page.all("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(a["scope"] in {"row", "col"} for _, a, _ in page.all("th"))
    assert len(page.tables) == len(page.all("table"))  # each has a caption
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    names = {value for _, a, _ in page.elements for value in (a.get("aria-labelledby"), a.get("href", "")[1:])}
    links = {a["href"][1:] for _, a, _ in page.all("a") if a["href"].startswith("#")}
    assert links <= set(ids)
    assert {name for name in names if name and name.startswith("table-")} <= set(ids)
    assert all(a.get("tabindex") == "0" for _, a, _ in page.all("div") if a.get("class") == "scroll")
    assert page.all("html")[0][1]["lang"] == "en"


def test_files_are_within_the_page() -> None:
    evidence = synthetic_study.evidence()
    found = found_in(evidence)
    page = Page(made(evidence, found))
    links = {a["download"]: a["href"] for _, a, _ in page.all("a") if "download" in a}
    read = {name: base64.b64decode(address.partition(",")[2]).decode() for name, address in links.items()}
    assert [text for _, _, text in page.all("textarea")] == [text.rstrip("\n") + "\n" for text in read.values()]
    assert read == {
        "shortcuts.csv": tables.csv(found),
        "shortcuts.md": tables.markdown(found),
        "shortcuts.tex": tables.latex(found),
    }


def test_what_cells_share_and_where_they_differ_is_all_of_their_configuration() -> None:
    page = Page(made())
    assert [[text for text, _ in line] for line in page.tables["table-varied"][1:]] == [
        ["model.depth", "20 · 56"],
        ["model.shortcut", "none · A · B"],
    ]
    named = [text for _, _, text in page.all("dt")]
    spec = synthetic_study.design().cells[0].spec
    assert {name.rpartition(".")[2] for name in spec} - {"depth", "shortcut"} <= set(named)


def test_figures_follow_the_theme_and_share_no_names() -> None:
    drawn = [str(inline_svg(SVG, name, 'a "quoted" alt')) for name in ("curves", "cost")]
    first = drawn[0]
    assert first.startswith('<svg id="figure-curves" role="img" aria-label="a &#34;quoted&#34; alt" style="--width: 216" viewBox=')
    assert "stroke: var(--ink); fill: var(--muted)" in first
    assert "stroke: var(--grid); fill: var(--paper)" in first
    assert "#figure-curves *{" in first
    assert 'd="M 0.12 7\nL 9 9"' in first
    assert not re.search(r"<\?|<!|metadata|unused|http", first)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', first))
    assert used == {"figure-curves-p1", "figure-curves-mark"}
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in drawn]
    assert used < ids[0]
    assert not ids[0] & ids[1]


def colours() -> list[dict[str, str]]:
    """The page's colours: light, dark."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLES.read_text(), flags=re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", theme)) for theme in (light, dark)]


def contrast(one: str, other: str) -> float:
    """Ratio of relative luminances, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_all_text_can_be_read(theme: int) -> None:
    colour = colours()[theme]
    pairs = [(ink, paper) for ink in ("ink", "muted", "accent", "notice-ink") for paper in ("paper", "panel")]
    pairs += [("ink", "notice"), ("notice-ink", "notice")]
    low = {pair: ratio for pair in pairs if (ratio := contrast(colour[pair[0]], colour[pair[1]])) < 4.5}
    assert not low


@pytest.mark.slow
def test_hundreds_of_cells_are_a_page_that_opens() -> None:
    evidence, found = many()
    began = time.process_time()
    written = made(evidence, found)
    assert time.process_time() - began < 3
    assert len(written.encode()) < 3_000_000  # leaves room for figures
    assert len(Page(written).tables["table-results"]) == 401
