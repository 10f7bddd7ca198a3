"""Small folders of real image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_set(folder: Path, classes: int = 3, images: int = 10, side: int = 8, seed: int = 0) -> Path:
    """``classes`` folders of grey PNG files, a class brighter than the one before it; returns ``folder``."""
    random = np.random.default_rng(seed)
    for number in range(classes):
        place = folder / f"class{number}"
        place.mkdir(parents=True, exist_ok=True)
        for count in range(images):
            pixels = random.integers(0, 60, (side, side)) + 180 * number // max(1, classes - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{count:03}.png")
    return folder
