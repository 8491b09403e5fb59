"""A user's code is part of a run's identity, and reaches other processes."""

import ast
import importlib.util
import pickle
import py_compile
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ablations.engine.task import sources
from ablations.engine.task.reachability import reachable
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


@pytest.mark.slow
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


def changes(load: Callable[..., ModuleType], old: str, new: str, **files: str) -> bool:
    """Return whether a change in one of the files changes the identity of `Net` and `train` in the first."""
    digests = []
    for of_files in (files, {name: text.replace(old, new) for name, text in files.items()}):
        module = load(**of_files)
        digests.append(sources.digest([module.Net, *([module.train] if hasattr(module, "train") else [])]))
    assert any(old in text for text in files.values())
    return digests[0] != digests[1]


def test_definitions_in_several_modules_rest_on_all_of_them(load: Callable[..., ModuleType]) -> None:
    files = {
        "trainer": "from cfg import Net, helper\ndef train(net): return helper(1)",
        "cfg": "class Net: pass\ndef helper(x): return x + 1\ndef unrelated(): return 7",
    }
    assert changes(load, "x + 1", "x + 2", **files)
    two = {"a__one": "class Net: pass\nfrom b.one import train", "b__one": "def train(): return 1"}
    assert changes(load, "return 1", "return 2", **two)
    assert changes(load, "class Net: pass", "class Net: x = 1", **two)


@pytest.mark.parametrize(
    "text",
    [
        "PARTS = {}\ndef part(f): PARTS[f.__name__] = f; return f\n@part\ndef one(): return 1\nclass Net:\n    x = PARTS",
        "PARTS = {}\nclass Part:\n    def __init_subclass__(cls): PARTS[cls.__name__] = cls\n"
        "class One(Part):\n    def f(self): return 1\nclass Net:\n    x = PARTS",
    ],
)
def test_what_registers_itself_counts(load: Callable[..., ModuleType], text: str) -> None:
    assert changes(load, "return 1", "return 2", study=text)


def test_a_decorator_of_python_or_pytorch_registers_nothing(load: Callable[..., ModuleType]) -> None:
    text = "import torch, functools\n@torch.no_grad()\n@functools.cache\ndef unused(): return 1\nclass Net: pass"
    assert not changes(load, "return 1", "return 2", study=text)


def test_arguments_and_body_of_a_partial_function_count(load: Callable[..., ModuleType]) -> None:
    text = "from functools import partial\nclass Net: pass\ndef base(net, k): return k + 1\ntrain = partial(base, k=1)"
    assert changes(load, "k=1", "k=2", study=text)
    assert changes(load, "k + 1", "k + 2", study=text)


@pytest.mark.parametrize("made", ["Train()", "Train().run", "'text'"])
def test_an_object_with_a_state_of_its_own_is_rejected(load: Callable[..., ModuleType], made: str) -> None:
    module = load(study=f"class Train:\n    def run(self): pass\n    __call__ = run\nmade = {made}")
    with pytest.raises(ConfigError, match=r"^\S.*: is a (Train|method|str); accepted: a class, function or module at the top"):
        sources.digest([module.made])


def test_modules_of_the_user_elsewhere_count_and_are_not_sent(load: Callable[..., ModuleType], tmp_path: Path) -> None:
    files = {"experiments__study": "from mylab.ops import make\nclass Net:\n    f = make", "mylab__ops": "def make(): return 1"}
    assert changes(load, "return 1", "return 2", **files)
    module = load(**files)
    assert b"mylab" in sources.pickled(module.Net, [module.Net])


@pytest.mark.parametrize(
    "ending",
    [
        "import ablations as ab\nab.main(STUDY)",
        "import sys\nfrom ablations import main\nsys.exit(main(STUDY))",
        "print(STUDY)",
    ],
)
def test_what_runs_or_shows_the_study_makes_it_no_part(load: Callable[..., ModuleType], ending: str) -> None:
    text = f"STUDY = 1\nclass Net: pass\ndef run():\n    STUDY\n{ending}"
    assert ast.dump(reachable(ModuleType("study"), ast.parse(text), {"Net"})) == ast.dump(ast.parse("class Net: pass"))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("SCALE * x", "SCALE + x", "helper"),
        ("SCALE = 2", "SCALE = 3", "SCALE"),
        ("width: int = 4", "width: int = 5", "Net.width"),
        ("helper(self.width)", "helper(2)", "Net.build"),
    ],
)
def test_a_file_that_changed_after_its_import_is_rejected(
    load: Callable[..., ModuleType], tmp_path: Path, old: str, new: str, name: str
) -> None:
    module = load(study=STUDY)
    (tmp_path / "study.py").write_text("# a comment\n\n" + STUDY.replace("(4, 8)", "(4, 16)"))
    before = sources.digest([module.Net])
    (tmp_path / "study.py").write_text(STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=f"^{name}: .*study.py has changed since it was imported; accepted: import it again"):
        sources.digest([module.Net])
    assert digest(load, study=STUDY.replace(old, new)) != before


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


@pytest.mark.slow
def test_types_that_are_text_are_known_where_the_file_is_not(load: Callable[..., ModuleType], tmp_path: Path) -> None:
    text = STUDY.replace("import math", "from __future__ import annotations\nfrom typing import Literal")
    study = load(study=text.replace("width: int = 4", "rate: float = 1\n    width: Literal[4, 8] = 4")).STUDY
    content = tmp_path / "content"
    content.write_bytes(study.workload.pickled())
    program = f"import pickle; w = pickle.load(open({str(content)!r}, 'rb')); s = w.override(w.presets['smoke'], {{'width': '8'}})"
    program += "; print(s.model.width, w.code_version())"
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout == f"8 {study.workload.code_version()}\n", done.stderr


def test_a_number_has_the_type_of_its_field(load: Callable[..., ModuleType]) -> None:
    study = load(study=STUDY.replace("width: int", "rate: float = 1\n    width: int")).STUDY
    assert repr(study.workload.presets["smoke"].model.rate) == "1.0"


def test_what_cannot_be_sent_is_one_line(load: Callable[..., ModuleType]) -> None:
    text = STUDY.replace("import math", "import threading\nLOCK = threading.Lock()").replace("SCALE * x", "LOCK")
    net = load(study=text).Net
    with pytest.raises(ConfigError, match=r"Net: cannot be sent to other processes: .*lock.*; accepted: create such objects in"):
        sources.pickled(net(), [net])


@pytest.fixture
def enter() -> Iterator[Callable[[str], ModuleType]]:
    """Run cells of a notebook; return the module of their names."""
    shell_module = pytest.importorskip("IPython.core.interactiveshell")
    shell: Any = shell_module.InteractiveShell.instance()
    before, main = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = main
    shell.user_module, shell.user_ns = main, vars(main)
    shell.user_ns["_oh"] = {}

    def run_cell(text: str) -> ModuleType:
        assert shell.run_cell(text, store_history=True).success
        return main

    yield run_cell
    sys.modules["__main__"] = before
    shell_module.InteractiveShell.clear_instance()


def test_cells_of_a_notebook_count_as_they_are_now(enter: Callable[[str], Any]) -> None:
    enter("SCALE = 2")
    enter("def helper(x):\n    return SCALE * x")
    main = enter("class Net:\n    def build(self):\n        return helper(1)")
    first = sources.digest([main.Net])
    enter("unrelated = 5")
    enter("6 * 7")  # IPython binds `_`, `_8` and `_i8`
    assert sources.digest([main.Net]) == first
    enter("def helper(x):\n    return SCALE + x")
    second = sources.digest([main.Net])
    enter("SCALE = 3")
    assert len({first, second, sources.digest([main.Net])}) == 3
    assert pickle.loads(sources.pickled(main.Net(), [main.Net])).build() == 4


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from torch.nn import ReLU as part", "from torch.nn import GELU as part"),
        ("from torch import nn\npart = {'a': nn.ReLU}", "from torch import nn\npart = {'a': nn.GELU}"),
        ("import math as part", "import cmath as part"),
        ("import torch\npart = torch.ones(2)", "import torch\npart = torch.zeros(2)"),
        (
            "from functools import partial\npart = [partial(round, ndigits=1)]",
            "from functools import partial\npart = [partial(round, ndigits=2)]",
        ),
        ("part = lambda x: x", "part = lambda x: -x"),
        ("class part:\n    rate = 1", "class part:\n    rate = 2"),
    ],
)
@pytest.mark.parametrize("name", ["part", "_part"])
def test_whatever_a_network_of_a_notebook_uses_counts(enter: Callable[[str], Any], name: str, before: str, after: str) -> None:
    digests = []
    for text in (before, after, before):
        enter(text.replace("part", name) if "partial" not in text else text.replace("part =", f"{name} ="))
        main = enter(f"for _ in range(2): pass\nclass Net:\n    def build(self):\n        return {name}")
        digests.append(sources.digest([main.Net]))
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


def test_what_no_network_of_a_notebook_uses_may_have_no_text(enter: Callable[[str], Any]) -> None:
    exec("unknown = lambda: 1\nclass Unknown:\n    def f(self): pass", vars(enter("class E(Exception): pass")))
    main = enter("class Net:\n    def build(self):\n        return 1")
    before = sources.digest([main.Net])
    main = enter("class Net:\n    def build(self):\n        return unknown()")
    with pytest.raises(ConfigError, match=r"^<lambda>: its source cannot be found; accepted: code in a file or in a notebook"):
        sources.digest([main.Net])
    assert before


def test_a_class_that_a_later_cell_replaced_is_rejected(enter: Callable[[str], Any]) -> None:
    first = enter("class Net:\n    def build(self):\n        return 1").Net
    enter("class Net:\n    def build(self):\n        return 2")
    with pytest.raises(ConfigError, match=r"^Net: was redefined; accepted: run the code that defines the study again"):
        sources.digest([first])


def test_a_module_beside_a_notebook_counts(
    enter: Callable[[str], Any], load: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digests = []
    for value in (1, 2):
        load(beside=f"def f(): return {value}")
        main = enter("import beside\nfrom beside import f as g\nclass Net:\n    def build(self):\n        return beside.f() + g()")
        digests.append(sources.digest([main.Net]))
    assert digests[0] != digests[1]
    assert b"beside" in sources.pickled(main.Net, [main.Net])


def test_the_order_of_a_set_does_not_count() -> None:
    program = "from ablations.engine.task.entered_code import describe; print(describe({'a', 'b', 'c', 'd'}))"
    texts = set()
    for seed in ("1", "2", "3"):
        done = subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        texts.add(done.stdout or done.stderr)
    assert len(texts) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from dataclasses import dataclass\n@dataclass(frozen=True, slots=True)\nclass Net:\n    width: int = 4",
        "from enum import Enum\nclass Norm(Enum):\n    BATCH = 'batch'\nclass Net:\n    norm = Norm.BATCH",
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int = 3\nclass Net:\n    p = P()",
        "from __future__ import annotations\nclass Net:\n    def f(self):\n        def g(a: int): return a\n        return g",
        "FAST = False\ntry:\n    import json\n    FAST = True\nexcept ImportError: pass\nclass Net:\n    fast = FAST",
        "cache = None\ndef fill():\n    global cache\n    cache = 3\nfill()\nclass Net:\n    f = fill",
    ],
)
def test_what_a_program_changes_itself_is_no_changed_file(load: Callable[..., ModuleType], text: str) -> None:
    assert len(sources.digest([load(study=text).Net])) == 20


def test_a_set_in_a_compiled_file_has_no_order(load: Callable[..., ModuleType], tmp_path: Path) -> None:
    """Its order may differ between a module that was compiled and one that was read from the cache."""
    sets = ["{" + ", ".join(repr(f"name{1000 * size + i}") for i in range(size)) + "}" for size in range(10, 40)]
    load(study="class Net: pass\n" + "\n".join(f"def f{i}(x): return x in {each}" for i, each in enumerate(sets)))
    py_compile.compile(str(tmp_path / "study.py"), doraise=True)
    del sys.modules["study"]
    assert len(sources.digest([importlib.import_module("study")])) == 20


def test_a_docstring_that_changed_after_the_import_does_not_count(load: Callable[..., ModuleType], tmp_path: Path) -> None:
    text = "class Net:\n    def f(self):\n        'One.'\n        return 1"
    module = load(study=text)
    before = sources.digest([module.Net])
    (tmp_path / "study.py").write_text(text.replace("One", "Another"))
    assert sources.digest([module.Net]) == before


def test_a_folder_without_init_counts_before_it_is_imported(load: Callable[..., ModuleType], tmp_path: Path) -> None:
    digests = []
    for value in (1, 2):
        module = load(study="class Net:\n    def f(self):\n        from layers.attn import K\n        return K")
        (tmp_path / "layers").mkdir(exist_ok=True)
        (tmp_path / "layers" / "attn.py").write_text(f"K = {value}")
        importlib.invalidate_caches()
        digests.append(sources.digest([module.Net]))
    assert digests[0] != digests[1]


@pytest.mark.parametrize("argument", ["part", "[part]", "{'a': part}", "partial(part, 3)", "Part()"])
def test_code_in_the_arguments_of_a_partial_function_counts(load: Callable[..., ModuleType], argument: str) -> None:
    text = "from functools import partial\nclass Net: pass\ndef part(x=0): return x + 1\n"
    text += "class Part:\n    def f(self): return 0 + 1\n"
    text += f"def base(net, loss): pass\ntrain = partial(base, loss={argument})"
    assert changes(load, "+ 1", "+ 2", study=text)


@pytest.mark.parametrize(
    "text",
    [
        "import functools\nR = {}\ndef _reg(kind, f): R[kind] = f; return f\nregister = functools.partial(_reg, 'a')\n"
        "@register\ndef one(): return 1\nclass Net:\n    x = R",
        "HOOKS = []\n@HOOKS.append\ndef one(): return 1\nclass Net:\n    x = HOOKS",
        "R = {}\nclass Meta(type):\n    def __init__(cls, *_): R[cls.__name__] = cls\nclass Base(metaclass=Meta): pass\n"
        "class One(Base):\n    def f(self): return 1\nclass Net:\n    x = R",
        "R = {}\ndef one(): return 1\n_ = R.setdefault('a', one)\nclass Net:\n    x = R",
        "class Sub:\n    x = 'return 1'\nclass Net:\n    sub: 'Sub | None' = None",
    ],
)
def test_what_is_found_without_its_name_counts(load: Callable[..., ModuleType], text: str) -> None:
    assert changes(load, "return 1", "return 2", study=text)


def test_a_function_without_a_name_is_rejected(load: Callable[..., ModuleType]) -> None:
    with pytest.raises(ConfigError, match=r"^<lambda>: has no name; accepted: a class or function with a name at the top level"):
        sources.digest([load(study="class Net: pass\ncost = lambda c: {}").cost])


def test_a_notebook_may_use_an_enumeration(enter: Callable[[str], Any]) -> None:
    digests = []
    for value in ("batch", "group", "batch"):
        enter(f"from enum import Enum\nclass Norm(Enum):\n    FIRST = '{value}'")
        main = enter("class Net:\n    def build(self):\n        return Norm.FIRST")
        digests.append(sources.digest([main.Net]))
    assert digests[0] == digests[2] != digests[1]
