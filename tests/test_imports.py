"""Importing this package is cheap, and needs few others."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain

import resnet_core
from tests.helpers.project import PROJECT

PUBLISHED_AS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def test_configurations_and_fingerprints_do_not_wait_for_torch() -> None:
    code = "import sys; from resnet_core import RunSpec, fingerprint; fingerprint(RunSpec(), data_version='1'); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    assert "resnet_core.identity" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "sklearn", "PIL", "ray", "mlflow"}


def test_a_training_does_not_wait_for_pytorchs_compiler() -> None:
    """Its import takes 3 s of CPU time in the process of each trial."""
    code = "import sys; from resnet_core import fit, preset; next(fit(preset('smoke'))); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())
    assert "torch.optim" in loaded
    assert not loaded & {"torch._dynamo", "torch._inductor", "sympy"}


def test_the_core_imports_no_engine_and_only_declared_packages() -> None:
    imported = set()
    for path in (PROJECT / "resnet_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    outside = imported - sys.stdlib_module_names - {"resnet_core"}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    required = [
        *project["dependencies"],
        *chain(*(project["optional-dependencies"][extra] for extra in ("datasets", "mnist", "timm"))),
    ]
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in required}
    assert {"torch", "numpy"} <= outside
    assert not outside & {"ablations", "ray", "mlflow", "pandas", "rich"}
    assert {PUBLISHED_AS.get(name, name) for name in outside} <= declared


def test_every_public_name_is_there() -> None:
    assert all(getattr(resnet_core, name) is not None for name in resnet_core.__all__)
