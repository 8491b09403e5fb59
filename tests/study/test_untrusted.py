"""Untrusted names and files cause no path traversal, no command execution, no markup injection and no endless wait."""

import ast
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ablations.engine.study.definition import STUDY_NAME, Study
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.request import StudyRequest
from resnet_core import ConfigError, RunSpec, override
from resnet_core.data.__main__ import main
from resnet_core.data.datasets import load_dataset
from resnet_core.data.folders import files_below
from resnet_core.fields import printable
from tests.helpers.project import PROJECT

NAMES = [
    "..",
    "a/b",
    "/etc",
    ".",
    "",
    " ",
    "é",
    "²",
    "١",
    "a b",
    "a\nb",
    "-rf",
    "$(id)",
    "<b>",
    "[bold]",
    "a.b",
    "a\x00",
    "x" * 65,
    "a\n",
]
CLASSES = [
    "$(reboot)",
    "; rm -rf ~",
    "<script>alert(1)<",
    "[bold red]x[",
    r"$\frac",
    "a\nb",
    "\x1b[2J",
    "x\\..\\y",
    "'\"",
    "%s{0}",
    " ",
    "é",
]
CLASSES += ["\u202eabc", "\udcff", "-rf", "~", "aux"]


def save_image(path: Path, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (color, 10, 200)).save(path, format="png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of five images."""
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        for i in range(5):
            save_image(root / name / f"{i}.png", 40 * i)
    return root


def load(root: Path, cache: Path | None = None, **changes: Any) -> Any:
    return load_dataset(override(RunSpec(), {"data.name": "imagefolder", "data.root": str(root), **changes}).data, cache)


@pytest.mark.parametrize("name", NAMES)
def test_a_studys_name_is_safe_as_a_folder_an_address_and_an_experiment(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^study name=.*: accepted: up to 64 of a-z, A-Z, 0-9, - and _") as error:
        Study(name=name, question="?", factors={"depth": (8, 14)}, baseline={})
    assert str(error.value).isprintable()
    assert STUDY_NAME.fullmatch("figure-7_B")


def test_class_names_are_printed_escaped_and_drawn_whatever_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, cache = tmp_path / "data\x1b[2J\n", tmp_path / "cache"
    for name in CLASSES:
        for i in range(2):
            save_image(root / name / f"{i}\n.png", 100 * i)
    before = {path for path in tmp_path.rglob("*") if cache not in path.parents and path != cache}
    common = ["--preset", "smoke", "--set", "data.name=imagefolder", f"data.root={root}", "image_size=none", "train_examples=none"]
    common += ["test_examples=none", "--cache", str(cache)]
    assert main(["prepare", *common]) == 0
    picture = tmp_path / "batch.png"
    assert main(["show", *common, "--output", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(line.isprintable() for line in out.splitlines())
    assert printable("\x1b[2J") == r"\x1b[2J"
    assert load(root).classes == tuple(sorted(CLASSES))
    after = {path for path in tmp_path.rglob("*") if cache not in path.parents and path != cache}
    assert after - before == {picture}


@pytest.mark.parametrize("root", ["", "a\x00b", "\ud800", "~\x00", "../nowhere", "$(pwd)", "[/]", "x" * 5000, "a\nb\x1b[2J"])
@pytest.mark.parametrize("name", ["imagefolder", "cifar10", "imagenet"])
def test_a_root_that_is_no_folder_is_refused_in_printable_words(root: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.root=") as error:
        load_dataset(override(RunSpec(), {"data.name": name, "data.root": root}).data, tmp_path)
    assert str(error.value).isprintable()


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x.png")


def listening(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a socket's address is short
        server.bind("x.png")


def device(folder: Path) -> None:
    (folder / "x.png").symlink_to("/dev/zero")


def no_image(folder: Path) -> None:
    (folder / "x.png").symlink_to("/etc/passwd")


def itself(folder: Path) -> None:
    (folder / "x.png").symlink_to("x.png")


def loop(folder: Path) -> None:
    for name in ("again", "once-more"):  # two double the ways with every step
        (folder / name).symlink_to(folder)


def deep(folder: Path) -> None:
    save_image(folder.joinpath(*["d"] * 900) / "x.png")


def sealed(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(30, method="thread")  # a read that waits for ever cannot be interrupted otherwise
@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pipe, "has the name of an image but is not a regular file"),
        (listening, "has the name of an image but is not a regular file"),
        (device, "has the name of an image but is not a regular file"),
        (no_image, "cannot be decoded as an image"),
        (itself, "cannot be read"),
        (loop, "is a link to a folder that contains it"),
        (deep, "accepted: at most 32 nested folders"),
        (sealed, "no images in it"),
    ],
)
def test_what_no_image_can_be_read_from_is_named_and_never_waited_for(
    images: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str, cached: bool, stream: str
) -> None:
    spoil(images / "cat")
    with pytest.raises(ConfigError) as error:
        load(images, tmp_path / "cache" if cached else None, stream=stream, image_size="8")
    assert message in str(error.value)
    assert str(error.value).startswith(f"data.root={images / 'cat'}")
    assert len(str(error.value)) < 5000


def test_links_are_followed_wherever_they_lead_and_only_read(images: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    images.joinpath("dog").rename(elsewhere)
    images.joinpath("dog").symlink_to(elsewhere)
    images.joinpath("owl").write_text("a file, not a class")
    data = load(images)
    assert data.classes == ("cat", "dog")
    assert len(data.train.labels) + len(data.test.labels) == 10
    assert len(list(files_below(images))) == 11


def test_a_thousand_classes_and_an_empty_folder_next_to_them_are_told_in_one_line(tmp_path: Path) -> None:
    for i in range(1000):
        save_image(tmp_path / f"{i:04}" / "x.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"^data\.root={tmp_path}/empty: no images in it"):
        load(tmp_path)


def test_a_folder_train_is_a_class_where_it_holds_images_and_nothing_tests_it(images: Path) -> None:
    images.joinpath("dog").rename(images / "train")
    assert load(images).classes == ("cat", "train")
    assert load(images, validation="0.2").classes == ("cat", "train")
    save_image(images / "train" / "terrier" / "x.png")
    with pytest.raises(ConfigError, match="has a folder train; accepted: a folder test or val next to it"):
        load(images, image_size="8")


@pytest.mark.parametrize("size", ["8000", "1000000", "9" * 18])
def test_images_too_large_for_memory_are_refused_before_one_is_decoded_at_that_size(
    images: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_core.data.sources.MEMORY_LIMIT_GIB", 1)
    sizes: list[int] = []
    resized = Image.Image.resize

    def recorded(image: Image.Image, size: tuple[int, int], *others: Any, **named: Any) -> Image.Image:
        sizes.extend(size)
        return resized(image, size, *others, **named)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    with pytest.raises(ConfigError, match=rf"^data\.image_size={size}: .* GiB to hold in memory"):
        load(images, image_size=size)
    assert max(sizes) <= 8


def forbidden(path: Path) -> list[str]:
    """Return the calls in a source file that pass text to a shell or an interpreter."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            shell = any(keyword.arg == "shell" for keyword in node.keywords)
            if shell or name in (
                "os.system",
                "os.popen",
                "subprocess.getoutput",
                "eval",
                "exec",
                "__import__",
                "pickle.load",
                "pickle.loads",
            ):
                found.append(f"{path.name}:{node.lineno} {name}")
    return found


@pytest.mark.slow
def test_no_text_is_handed_to_a_shell_or_an_interpreter(tmp_path: Path) -> None:
    sources = [path for folder in ("resnet_core", "ablations", "benchmarks") for path in (PROJECT / folder).rglob("*.py")]
    assert len(sources) > 40
    found = [call for path in sources for call in forbidden(path)]
    # The code of a user's network or task, which the driver of the same study has sent to its trials.
    assert [re.sub(r":\d+", "", call) for call in found] == ["worker.py pickle.loads"]
    (tmp_path / "bad.py").write_text("import os, subprocess\nos.system('x')\nsubprocess.run('x', shell=True)\n")
    assert len(forbidden(tmp_path / "bad.py")) == 2


def test_probes_asked_for_come_on_top_of_a_studys_own(tmp_path: Path) -> None:
    study = Study(name="s", question="?", factors={"depth": (8,)}, baseline={}, preset="smoke", settings={"probes": ("responses",)})
    assert make_plan(study, StudyRequest(probes=("gradients",)), cache=tmp_path).base.probes == ("responses", "gradients")
    assert make_plan(study, StudyRequest(probes=("responses",)), cache=tmp_path).base.probes == ("responses",)
    assert make_plan(study, StudyRequest(overrides={"probes": "gradients"}), cache=tmp_path).base.probes == ("gradients",)


@pytest.mark.parametrize(
    ("levels", "overrides"),
    [
        ({"epochs": ("1", "2")}, {"iterations": "9"}),
        ({"iterations": ("8", "9")}, {"epochs": "2"}),
        ({"iterations": ("8", "9"), "epochs": ("1", "2")}, {}),
        ({}, {"iterations": "9", "epochs": "2"}),
    ],
)
def test_a_trainings_length_is_asked_for_in_one_unit(
    tmp_path: Path, levels: dict[str, tuple[str, ...]], overrides: dict[str, str]
) -> None:
    study = Study(name="s", question="?", factors={"depth": (8,)}, baseline={}, preset="smoke")
    with pytest.raises(ConfigError, match=r"^optim\.iterations=\d: .*optim\.epochs"):
        make_plan(study, StudyRequest(levels=levels, overrides=overrides), cache=tmp_path)


def test_a_length_that_is_asked_for_replaces_a_studys_own_whatever_its_unit(tmp_path: Path) -> None:
    by_epochs = Study(name="s", question="?", factors={"depth": (8,)}, baseline={}, preset="smoke", settings={"epochs": 3})
    optim = make_plan(by_epochs, StudyRequest(overrides={"iterations": "5"}), cache=tmp_path).base.optim
    assert optim.total_steps(128) == 5
    by_steps = Study(name="s", question="?", factors={"depth": (8,)}, baseline={}, preset="smoke", settings={"iterations": 5})
    optim = make_plan(by_steps, StudyRequest(overrides={"epochs": "3"}), cache=tmp_path).base.optim
    assert optim.total_steps(128) == 12
    plan = make_plan(by_epochs, StudyRequest(levels={"iterations": ("5", "6")}), cache=tmp_path)
    assert {run.spec.optim.total_steps(128) for run in plan.runs} == {5, 6}
