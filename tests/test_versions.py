"""The versions that pyproject.toml allows are those that `make test-versions` tests with."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.project import PROJECT

DEPENDENCIES = [Requirement(line) for line in tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]]
NEXT_MAJOR = {"ray": "3", "torch": "3", "torchvision": "1", "mlflow": "4", "optuna": "6"}


def pinned(name: str) -> dict[str, set[Version]]:
    """Return the versions of each package in a file; several where they depend on the version of Python."""
    found: dict[str, set[Version]] = {}
    for package, version in re.findall(r"^([^=\[ ]+)(?:\[.*\])?==(\S+)", (PROJECT / name).read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(package), set()).add(Version(version))
    return found


def test_lower_bounds_are_the_oldest_tested_versions() -> None:
    oldest = pinned("tests/versions/oldest.txt")
    lower = {each.name: {Version(one.version) for one in each.specifier if one.operator == ">="} for each in DEPENDENCIES}
    assert lower == {name: oldest[canonicalize_name(name)] for name in lower}


@pytest.mark.parametrize("name", ["constraints.txt", "tests/versions/newest.txt"])
def test_tested_versions_are_allowed(name: str) -> None:
    versions = pinned(name)
    for each in DEPENDENCIES:
        assert all(version in each.specifier for version in versions[canonicalize_name(each.name)]), each


def test_upper_bounds_are_the_next_major_versions() -> None:
    upper = {each.name: one.version for each in DEPENDENCIES for one in each.specifier if one.operator != ">="}
    assert upper == NEXT_MAJOR
