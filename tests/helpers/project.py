"""Location of the project, and the studies that it ships."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The repository's root."""
SHIPPED_STUDIES = ("blocks", "degradation", "depth", "hyperparameters", "responses", "shortcuts", "tricks", "warmup")
"""Studies that come with this project and follow its style. Studies that users add beside them need not."""
