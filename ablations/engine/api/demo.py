"""The last three lines of `make demo`: the answer, where to look, and what to try next."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations.engine.cli import dispatch, options
from ablations.engine.cluster import local_service
from ablations.engine.report.findings_json import findings_document
from ablations.engine.submission.reporting import read_study, report_address
from ablations.shortcuts import STUDY
from resnet_core import ConfigError


def closing_lines(findings: Mapping[str, Any], report: str) -> list[str]:
    """Return the lines.

    Args:
        findings: findings of the study, as in `findings.json`.
        report: address of its report.
    """
    python = Path(os.path.relpath(sys.executable)) if Path(sys.executable).is_relative_to(Path.cwd()) else Path("python")
    answer = next(iter(findings["answers"]), {"text": "none yet"})["text"]
    first = re.split(r"[.;] (?=[A-Za-z])", answer)[0].rstrip(".")
    return [
        f"Answer: {first}.",
        f"Look:   {report}",
        f"Next:   {python} ablations/degradation.py --plan   (another study), or make down (ends the service)",
    ]


def main() -> int:
    """Print the lines about the study of `make demo`; return 1 if MLflow does not have it."""
    local_service.select_ray_cluster()
    chosen = options.parse_options(STUDY, [])
    try:
        stored = read_study(dispatch.draft(STUDY, chosen), chosen, details=False)
        findings = findings_document(stored.evidence, stored.findings)
        lines = closing_lines(findings, report_address(stored.client, stored.run_id))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print()
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
