"""The published JSON Schemas, and a strict variant that rejects keys which a schema does not describe."""

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from tests.helpers.project import PROJECT


def schema(name: str) -> dict[str, Any]:
    """Return `docs/<name>.schema.json`."""
    found: dict[str, Any] = json.loads((PROJECT / "docs" / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(found)
    return found


def problems(name: str, document: Any) -> list[str]:
    """Return where a document differs from its schema, or has a key that the schema does not describe."""
    found = schema(name)
    for part in _objects(found):
        part.setdefault("additionalProperties", False)
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(found).iter_errors(document)]


def _objects(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of a schema that list the keys of an object."""
    if isinstance(part, dict):
        if "required" in part:
            yield part
        for each in part.values():
            yield from _objects(each)
    elif isinstance(part, list):
        for each in part:
            yield from _objects(each)
