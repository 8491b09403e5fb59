"""Image folders with random pixels."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_image(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def save_images(root: Path, classes: str = "ab", count: int = 5, shape: tuple[int, ...] = (4, 4, 3)) -> Path:
    """Create class folders of random images, seeded by the name of `root`; return `root`."""
    random = np.random.default_rng(list(root.name.encode()))
    for name in classes:
        for i in range(count):
            save_image(root / name / f"{i}.png", random.integers(0, 256, shape))
    return root
