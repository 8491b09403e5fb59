"""Output of commands: one JSON document, or CSV."""

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_document(document: Mapping[str, Any]) -> None:
    """Print a document as JSON to standard output. NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False))


def print_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows as CSV to standard output, with a line of column names. None becomes an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    sys.stdout.write(text.getvalue())


def studies(count: int) -> str:
    """Return a number of studies in words: `1 study`, `2 studies`."""
    return f"{count} stud{'y' if count == 1 else 'ies'}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
