"""A single run by its ID, its fingerprint, or the first characters of either."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from resnet_core.fields import enumerated, reject

MIN_CHARACTERS = 6
"""Least number of characters of an ID or fingerprint that is given in part."""
ID = re.compile(r"[0-9a-f]{6,32}")
MAX_NAMED = 4
"""Maximum number of runs that a message names."""


def find_run(runs: Sequence[Any], text: str, accepted: str) -> Any:
    """Return the run that a text means; the latest generation of a fingerprint counts.

    Args:
        runs: runs to choose from, as a client returns them.
        text: ID or fingerprint, whole or its first characters.
        accepted: what else would be accepted, for messages.

    Raises:
        ConfigError: none, or several runs.
    """
    name = text.strip().lower()
    if not ID.fullmatch(name):
        raise reject("RUN", text, f"accepted: {MIN_CHARACTERS} or more of the first characters of a run ID or fingerprint")
    found = [run for run in runs if run.info.run_id.startswith(name) or run.data.tags.get("fingerprint", "").startswith(name)]
    fingerprints = {run.data.tags.get("fingerprint", "") for run in found}
    if len(fingerprints) == 1:
        return max(found, key=lambda run: int(run.data.tags.get("generation", "1")))
    if found:
        texts = [f"{run.info.run_id[:12]} ({run_title(run)})" for run in found]
        raise reject("RUN", text, f"means several runs; accepted: one of {enumerated(texts, MAX_NAMED)}")
    known = [run.info.run_id[: len(name)] for run in runs]
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise reject("RUN", text, f"accepted: {accepted}{hint}")


def run_title(run: Any) -> str:
    """Return the name of a run for messages: `shortcut=A depth=20 seed=1`."""
    tags = run.data.tags
    return str(tags.get("mlflow.runName") or f"{tags.get('cell', '')} seed={tags.get('seed', '')}".strip())
