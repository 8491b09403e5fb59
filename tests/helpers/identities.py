"""Fingerprints and code version, computed by Python without any other library: `python tests/helpers/identities.py` prints them."""

import json
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "resnet_core"
VALUES: dict[str, Any] = {
    "optim.lr": 1 / 3,
    "optim.weight_decay": 5e-324,
    "optim.milestones": (0.1, 2 / 3),
    "optim.changes": ("4:lr=0.1",),
    "model.stages": (1, 3, 5),
    "model.width": 32,
    "seed": 2**70,
    "deterministic": True,
    "probes": ("responses", "gradients"),
}
"""A value for a field of each type."""


def identities() -> dict[str, Any]:
    from resnet_core import PRESETS, RunSpec, fingerprint, override
    from resnet_core.identity import code_version, normalized_source

    specs = {**PRESETS, **{name: override(RunSpec(), {name: value}) for name, value in VALUES.items()}}
    return {
        "code": code_version(),
        "sources": {str(path): normalized_source(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))},
        "fingerprints": {name: fingerprint(spec, data_version="1") for name, spec in specs.items()},
    }


if __name__ == "__main__":
    sys.path.insert(0, str(PACKAGE.parent))
    print(json.dumps(identities()))
