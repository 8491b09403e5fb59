"""Where the project is, and which studies it ships."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The repository's root."""
SHIPPED_STUDIES = ("blocks", "degradation", "depth", "hyperparameters", "responses", "shortcuts", "warmup")
"""The studies that come with this project and keep to its style. Those that people add beside them need not."""
