"""What a user's code contributes to a run's identity, and how it reaches other processes."""

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ablations.engine.task import sources
from resnet_core import ConfigError

STUDY = '''
"""A docstring."""
import math
from dataclasses import dataclass

from ablations import Study, main

SCALE = 2


def unrelated(x):
    return x


def helper(x):
    return SCALE * x


@dataclass(frozen=True)
class Net:
    width: int = 4

    def build(self, image_size, in_channels, num_classes):
        return helper(self.width)


STUDY = Study(name="s", question="?", model=Net, factors={"width": (4, 8)})
if __name__ == "__main__":
    main(STUDY)
'''


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Return a function that writes files into a folder and imports the first, as a program there would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = set[str]()

    def forget() -> None:
        for name in loaded:
            sys.modules.pop(name, None)

    def load(**files: str) -> ModuleType:
        forget()
        loaded.update({"lab", *(name.replace("__", ".") for name in files)})
        importlib.invalidate_caches()
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
            for cached in path.parent.glob("__pycache__/*"):
                cached.unlink()
        return importlib.import_module(next(iter(files)).replace("__", "."))

    yield load
    forget()


def digest(load: Callable[..., ModuleType], **files: str) -> str:
    return sources.digest([load(**files).Net])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("helper(self.width)", "helper(self.width) + 1"),
        ("SCALE * x", "SCALE + x"),
        ("SCALE = 2", "SCALE = 3"),
        ("width: int = 4", "width: int = 5"),
        ("import math", "import math\nmath.tau = 6"),
    ],
)
def test_what_a_network_rests_on_is_part_of_its_identity(load: Callable[..., ModuleType], old: str, new: str) -> None:
    assert old in STUDY
    assert digest(load, study=STUDY) != digest(load, study=STUDY.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    return x", "    return -x"),
        ('"width": (4, 8)', '"width": (4, 8, 16)'),
        ("A docstring", "Another docstring"),
        ("SCALE = 2", "SCALE  =  2  # a comment"),
        ("    main(STUDY)", "    print(STUDY)"),
        ("STUDY = Study", "OTHER = 3\nSTUDY = Study"),
    ],
)
def test_what_a_network_does_not_rest_on_is_not(load: Callable[..., ModuleType], old: str, new: str) -> None:
    assert old in STUDY
    assert digest(load, study=STUDY) == digest(load, study=STUDY.replace(old, new))


def test_a_file_that_is_run_has_the_identity_of_the_same_file_imported(load: Callable[..., ModuleType], tmp_path: Path) -> None:
    imported = digest(
        load, study=STUDY.replace("main(STUDY)", "from ablations.engine.task import sources; print(sources.digest([Net]))")
    )
    done = subprocess.run([sys.executable, str(tmp_path / "study.py")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == imported


def test_modules_beside_it_count_and_those_they_import_and_no_others(load: Callable[..., ModuleType]) -> None:
    study = STUDY.replace("import math", "import layers")
    study = study.replace("return SCALE * x", "return layers.make(x)")
    layers = "import inner\ndef make(x): return inner.one(x)"
    files = {"study": study, "layers": layers, "inner": "def one(x): return 1", "other": "X = 1"}
    before = digest(load, **files)
    assert digest(load, **{**files, "inner": "def one(x): return 2"}) != before
    assert digest(load, **{**files, "layers": "import inner\ndef make(x): return inner.one(-x)"}) != before
    assert digest(load, **{**files, "other": "X = 2"}) == before


def test_modules_of_its_package_count(load: Callable[..., ModuleType]) -> None:
    files = {
        "lab__study": STUDY.replace("import math", "from . import layers").replace("SCALE * x", "layers.X * x"),
        "lab__layers": "X = 1",
    }
    assert digest(load, **files) != digest(load, **{**files, "lab__layers": "X = 2"})


def test_modules_of_the_user_count_wherever_they_lie(
    load: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository often has its package beside the folder of its studies, and installs it in editable mode."""
    library = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(str(tmp_path / "studies"))
    monkeypatch.syspath_prepend(str(library))
    study = STUDY.replace("import math", "import mine, theirs").replace("SCALE * x", "mine.X * theirs.X * x")

    def digest_of(mine: str, theirs: str) -> str:
        (tmp_path / "studies").mkdir(exist_ok=True)
        (tmp_path / "studies" / "far.py").write_text(study)
        library.mkdir(exist_ok=True)
        (library / "theirs.py").write_text(theirs)
        load(mine=mine)
        for name in ("far", "theirs"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        return sources.digest([importlib.import_module("far").Net])

    before = digest_of("X = 1", "X = 1")
    assert digest_of("X = 2", "X = 1") != before
    assert digest_of("X = 1", "X = 2") == before


def test_a_definition_inside_a_function_is_rejected_in_one_line() -> None:
    class Net:
        pass

    with pytest.raises(ConfigError, match="is defined inside a function; accepted: a class or function at the top level"):
        sources.digest([Net])


def test_code_arrives_where_its_files_are_not(load: Callable[..., ModuleType], tmp_path: Path) -> None:
    files = {
        "study": STUDY.replace("import math", "import layers").replace("SCALE * x", "layers.make(x)"),
        "layers": "def make(x): return 10 * x",
    }
    net = load(**files).Net
    content = tmp_path / "content"
    content.write_bytes(sources.pickled(net(width=3), [net]))
    program = f"import pickle, sys; print(pickle.load(open({str(content)!r}, 'rb')).build(1, 1, 1), 'layers' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "30 False\n", done.stderr


def test_what_cannot_be_sent_is_one_line(load: Callable[..., ModuleType]) -> None:
    text = STUDY.replace("import math", "import threading\nLOCK = threading.Lock()").replace("SCALE * x", "LOCK")
    net = load(study=text).Net
    with pytest.raises(ConfigError, match=r"Net: cannot be sent to other processes: .*lock.*; accepted: create such objects in"):
        sources.pickled(net(), [net])


def test_cells_of_a_notebook_count_as_they_are_now(load: Callable[..., ModuleType]) -> None:
    shell_module = pytest.importorskip("IPython.core.interactiveshell")
    shell: Any = shell_module.InteractiveShell.instance()
    before, main = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = main
    try:
        shell.user_module, shell.user_ns = main, vars(main)

        def enter(text: str) -> None:
            assert shell.run_cell(text, store_history=True).success

        enter("SCALE = 2")
        enter("def helper(x):\n    return SCALE * x")
        enter("class Net:\n    def build(self):\n        return helper(1)")
        first = sources.digest([main.Net])
        enter("unrelated = 5")
        assert sources.digest([main.Net]) == first
        enter("def helper(x):\n    return SCALE + x")
        second = sources.digest([main.Net])
        enter("SCALE = 3")
        assert len({first, second, sources.digest([main.Net])}) == 3
        assert pickle.loads(sources.pickled(main.Net(), [main.Net])).build() == 4
        load(layers="def make(x): return x")
        enter("from layers import make\ndef helper(x):\n    return make(x)")
        beside = sources.digest([main.Net])
        load(layers="def make(x): return 2 * x")
        enter("from layers import make")
        assert sources.digest([main.Net]) != beside
    finally:
        sys.modules["__main__"] = before
        shell_module.InteractiveShell.clear_instance()
