"""The documentation is true: links resolve, files and names exist, commands parse, and the README stays short."""

import importlib
import importlib.util
import json
import os
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablations.engine.cli import commands, options
from ablations.engine.search.plan import draft_search
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_draft
from ablations.engine.study.request import ALL_DESIGNS
from tests.helpers.project import PROJECT, SHIPPED_STUDIES

PAGES = [
    "README.md",
    "AGENTS.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md")),
]
LOGS = {"CHANGELOG.md", "docs/decisions.md"}
"""Pages about the past: they may name what no longer exists."""
CURRENT = [page for page in PAGES if page not in LOGS]
READMES = sorted(str(path.relative_to(PROJECT)) for path in (PROJECT / "benchmarks").glob("*/README.md"))
EXAMPLE = re.search(r"```python\n(\"\"\".*?)```", (PROJECT / "docs" / "adding-a-study.md").read_text(), re.DOTALL)
PYTHON_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
MAX_README_LINES = 160
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
PATH = re.compile(r"`((?:ablations|resnet_core|benchmarks|tests|docs|deploy)/[\w/.-]+)`")
NAME = re.compile(r"`((?:ablations|resnet_core)(?:\.\w+)+)`")
BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:python|ablations|make|ray job submit) [^`]+)`")
PLACEHOLDER = re.compile(r"[A-Z]+(\.py)?")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def text_of(page: str) -> str:
    return (PROJECT / page).read_text()


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *READMES])
def test_links_lead_to_a_file_and_a_heading(page: str) -> None:
    for link in LINK.findall(text_of(page)):
        file, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / file if file else PROJECT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(PROJECT))), link


@pytest.mark.parametrize("page", CURRENT)
def test_a_file_that_imports_and_defines_a_study_also_runs_it(page: str) -> None:
    files = [block for block in PYTHON_BLOCK.findall(text_of(page)) if re.search(r"^STUDY = Study\(", block, re.MULTILINE)]
    for file in files:
        assert "import" not in file or re.search(r"^ *(main\(STUDY\)|.*\brun\(STUDY)", file, re.MULTILINE), file


@pytest.mark.parametrize("page", CURRENT)
def test_files_and_names_on_a_page_exist(page: str) -> None:
    text = text_of(page)
    assert not [path for path in PATH.findall(text) if not (PROJECT / path).exists()]
    for name in NAME.findall(text):
        if importlib.util.find_spec(name.rpartition(".")[0]) is None or importlib.util.find_spec(name) is None:
            pkgutil.resolve_name(name)  # an attribute of a module; raises where there is none


def command_lines(page: str) -> Iterator[list[str]]:
    """Yield the commands of a page's examples and sentences, as words without comments. A job's command stands for the job."""
    text = text_of(page)
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *INLINE.findall(BLOCK.sub("", text).replace("\\|", ""))]:
        try:
            words = shlex.split(line.replace("$(", "("), comments=True)
        except ValueError:  # a quotation of several lines
            continue
        if words[:3] == ["ray", "job", "submit"] and "--" in words:
            words = words[words.index("--") + 1 :]
        if words and not any(PLACEHOLDER.fullmatch(word) for word in words):
            yield words


def example_study(page: str, file: str) -> Study | None:
    """Return the study that a page tells the reader to save as `file`."""
    found = re.search(rf"`{file}`.*?```python\n(.*?)```", text_of(page), re.DOTALL)
    if not found:
        return None
    scope: dict[str, object] = {"__name__": "example"}
    exec(found[1], scope)
    study = scope["STUDY"]
    assert isinstance(study, Study)
    return study


def check_study_command(page: str, file: str, arguments: list[str]) -> None:
    if file.startswith("ablations/"):
        name = Path(file).stem
        assert name in SHIPPED_STUDIES, file
        study = importlib.import_module(f"ablations.{name}").STUDY
    else:
        study = example_study(page, file)
    assert study, f"{page} does not show {file}"
    chosen = options.parse_options(study, arguments)
    if chosen.search:
        draft_search(study, chosen.request, chosen.search)
    elif chosen.request.design != ALL_DESIGNS:  # which says for each design whether it is possible
        make_draft(study, chosen.request)


def check_module_command(module: str, arguments: list[str]) -> None:
    assert importlib.util.find_spec(module), module
    if module in ("ablations", "ablations.engine"):
        commands.make_parser().parse_args(arguments)
    elif module.startswith("resnet_core"):
        subcommand = [argument for argument in arguments[:1] if not argument.startswith("-")]
        shown = subprocess.run(
            [sys.executable, "-m", module, *subcommand, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert not [option for option in arguments if option.startswith("--") and option not in shown]


def check_make(targets: list[str]) -> None:
    known = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
    assert not [target for target in targets if "=" not in target and target not in known]


@pytest.mark.slow
@pytest.mark.parametrize("page", CURRENT)
def test_commands_on_a_page_are_accepted(page: str) -> None:
    for words in command_lines(page):
        match words:
            case ["python", "-m", module, *arguments] if module != "pytest":
                check_module_command(module, arguments)
            case ["python", file, *arguments] if file.endswith(".py") and not file.startswith("docs/"):
                check_study_command(page, file, arguments)
            case ["ablations", *arguments] if arguments:
                commands.make_parser().parse_args(arguments)
            case ["make", *targets]:
                check_make([target for target in targets if target not in ("&&", ".", ".venv/bin/activate")])


def test_the_page_of_options_names_every_option_and_no_other() -> None:
    study = importlib.import_module("ablations.hyperparameters").STUDY
    entries = re.findall(r"^  (--.*)", options.make_parser(study).format_help(), re.MULTILINE)
    offered = {option for entry in entries for option in OPTION.findall(entry.partition("  ")[0])}
    section = text_of("docs/command-line.md").partition("## Exit codes")[0]
    named = {
        option for row in re.findall(r"^\| (.*?) \|", section.replace("\\|", ""), re.MULTILINE) for option in OPTION.findall(row)
    }
    assert named == offered


def test_the_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= MAX_README_LINES


def test_the_index_has_every_page() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of("docs/README.md")))
    assert listed == {Path(page).name for page in [*CURRENT, "docs/decisions.md"] if page.startswith("docs/")} - {"README.md"}


@pytest.mark.slow
def test_the_picture_shows_the_packages_and_imports_of_today() -> None:
    drawn = subprocess.run(
        [sys.executable, "-c", "import runpy; print(runpy.run_path('docs/figures/architecture.py')['draw'](), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    assert drawn.stdout == text_of("docs/figures/architecture.svg"), "python docs/figures/architecture.py draws it again"


def test_the_tree_names_every_package() -> None:
    tree = text_of("docs/architecture.md").split("```")[1]
    folders = [*(PROJECT / "ablations" / "engine").iterdir(), *(PROJECT / "resnet_core").iterdir()]
    packages = {folder.name for folder in folders if (folder / "__init__.py").exists()}
    assert packages <= set(re.findall(r"(\w+)/", tree))


@pytest.mark.slow
def test_the_study_that_is_added_as_an_example_runs(cluster: str, tmp_path: Path) -> None:
    assert EXAMPLE
    file = tmp_path / "zero_init.py"
    file.write_text(EXAMPLE[1])
    command = [sys.executable, str(file), "--preset", "smoke", "--seeds", "1", "--levels", "depth=8"]
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_ADDRESS": cluster}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=200).stdout
    assert "[2/2]" in shown
    assert "zero-init on synthetic: Does a network train better if every block starts as the identity?" in shown


@pytest.mark.nightly
@pytest.mark.slow
def test_the_example_beside_the_other_studies_breaks_no_test_of_them(tmp_path: Path) -> None:
    assert EXAMPLE
    for folder in ("ablations", "resnet_core", "tests"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    (tmp_path / "ablations" / "zero_init.py").write_text(EXAMPLE[1])
    tests = ["tests/test_architecture.py", "tests/cli/test_command_line.py", "-k", "zero_init or imports or data_in_less"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stdout
    assert "test_no_study_takes_the_name_of_another_module[zero_init]" in done.stdout


def test_the_picture_of_the_terminal_is_drawn_from_its_recording() -> None:
    drawn = runpy.run_path(str(PROJECT / "docs/figures/terminal.py"), run_name="terminal")
    recorded = json.loads(text_of("docs/figures/terminal.json"))
    assert text_of("docs/figures/terminal.svg") == drawn["picture"](recorded), "draw it: python docs/figures/terminal.py"
    typed = [each["text"] for each in recorded if each["kind"] == "typed"]
    assert len(typed) == 3
    assert typed[0] == typed[2], "the same command continues"
    assert typed[1].startswith("kill -9 ")
    assert str(Path.home()) not in text_of("docs/figures/terminal.json")


@pytest.mark.parametrize(
    ("wrong", "code", "last"),
    [
        ('factors={"dept": (8, 14)}', 2, r"error: factors dept: no such field; .*"),
        ('factors={"depth": DEPTHS}', 1, r"NameError: name 'DEPTHS' is not defined"),
    ],
)
def test_a_wrong_study_is_one_line_and_another_error_in_its_file_a_traceback(
    tmp_path: Path, wrong: str, code: int, last: str
) -> None:
    """As docs/adding-a-study.md says."""
    file = tmp_path / "wrong.py"
    file.write_text(f'from ablations import Study, main\n\nmain(Study(name="wrong", question="?", preset="smoke", {wrong}))\n')
    done = subprocess.run([sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == code
    assert re.fullmatch(last, lines[-1])
    assert (len(lines) == 1) == (code == 2)
