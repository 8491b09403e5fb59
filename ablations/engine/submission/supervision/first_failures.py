"""An early end for a study whose first runs all fail with the same error: the others would fail as well."""

import re

VARIABLE_PARTS = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+(?:\.\d+)?", re.IGNORECASE)
"""Parts of an error message that differ between runs with the same error: numbers, sizes, fingerprints, addresses."""
FAILED = ("failed", "oom")
"""Outcomes of runs without a result. A run that diverges has one."""


class FirstFailures:
    """Watches the first runs of a submission that end.

    Args:
        limit: number of runs that must fail with the same error, and no run must end otherwise before; 0 to watch nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reason = ""
        """Error with which the first runs failed; empty if the study goes on."""
        self._count, self._error = 0, ""

    def ended(self, outcome: str, message: str) -> None:
        """Note the end of a run."""
        if not self.limit or self.reason or outcome == "stopped":
            return
        error = f"{outcome} {VARIABLE_PARTS.sub('#', message)}"
        if outcome not in FAILED or (self._count and error != self._error):
            self.limit = 0
            return
        self._count, self._error = self._count + 1, error
        if self._count == self.limit:
            self.reason = message
