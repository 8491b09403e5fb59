"""Packages import downwards, without cycles, and each library is imported only by the packages that wrap it."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.project import PROJECT, SHIPPED_STUDIES

RAY_INTERNALS = "scheduling.ray_internals"
FLOORS = (
    (RAY_INTERNALS,),
    ("environment",),
    ("task",),
    ("study",),
    ("search", "trial", "analysis"),
    ("scheduling", "tracking"),
    ("report", "cluster"),
    ("submission",),
    ("cli",),
    ("api",),
)
"""Packages of `ablations.engine`. Each may import those on lower floors.

`scheduling.ray_internals` belongs to scheduling, but imports nothing of this project, so that every package may use it."""
MAX_MODULES = 14
WRAPPED_BY = {
    "ray": {"trial", "scheduling", "cluster", RAY_INTERNALS},
    "mlflow": {"tracking", "report", "cluster", "submission"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "optuna": {"search", "analysis", "report"},
    "statsmodels": {"analysis"},
}
"""Packages that may import a library."""


def modules(root: str) -> dict[str, Path]:
    files = (PROJECT / root).rglob("*.py")
    return {".".join(p.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


@cache
def imports(path: Path) -> set[str]:
    """Return every module and name that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def package(module: str) -> str | None:
    """Return the package of the engine that holds a module; None outside the engine."""
    if module.startswith(f"ablations.engine.{RAY_INTERNALS}"):
        return RAY_INTERNALS
    return module.split(".")[2] if module.startswith("ablations.engine.") else None


def engine() -> Iterator[tuple[str, str, set[str]]]:
    """Yield each module of the engine's packages with its package and what it imports."""
    for module, path in modules("ablations/engine").items():
        name = package(module)
        if name and name != "__main__":
            yield module, name, imports(path)


def test_packages_import_downwards_only() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    upwards = [
        f"{module} imports {imported}"
        for module, own, found in engine()
        for imported in sorted(found)
        if (other := package(imported)) and other != own and floor[other] >= floor[own]
    ]
    assert not upwards


@pytest.mark.slow
@pytest.mark.parametrize("root", ["ablations", "resnet_core"])
def test_no_import_is_a_cycle(root: str) -> None:
    found = modules(root)
    plain = {module for module, path in found.items() if path.name != "__init__.py"}  # a package's door imports what is in it
    graph = {module: (imports(found[module]) & plain) - {module} for module in plain}
    assert set(TopologicalSorter(graph).static_order()) == plain, "CycleError names the cycle"


def test_no_package_is_crowded_and_none_holds_one_module() -> None:
    folders = {path.parent for path in modules("ablations/engine").values()} - {PROJECT / "ablations/engine"}
    sizes = {folder.name: len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert max(sizes.values()) <= MAX_MODULES, sizes
    single = [folder for folder in folders if sizes[folder.name] == 1]
    assert all("\ndef " in (folder / "__init__.py").read_text() for folder in single), f"{single}: the door holds no code either"


def test_the_core_knows_nothing_of_the_engine_or_its_libraries() -> None:
    roots = {name.partition(".")[0] for path in modules("resnet_core").values() for name in imports(path)}
    assert not roots & {"ray", "mlflow", "optuna", "ablations", "pandas", "rich"}


@pytest.mark.parametrize("library", sorted(WRAPPED_BY))
def test_a_library_is_imported_only_where_it_is_wrapped(library: str) -> None:
    users = {own for _, own, found in engine() if any(name.partition(".")[0] == library for name in found)}
    assert users <= WRAPPED_BY[library]


def test_a_study_imports_the_public_names_only() -> None:
    roots = {"typing", "typing.Any", "ablations", "ablations.Study", "ablations.main"}
    for name in SHIPPED_STUDIES:
        assert imports(PROJECT / "ablations" / f"{name}.py") <= roots, name
