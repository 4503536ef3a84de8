"""Draws pictures of blobs with the masks of three raters, in the layout that `PictureFolders` reads.

python draw_pictures.py FOLDER [--cases 24]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
# by how much each rater draws a blob larger, in pixels
RATERS = {"anna": -1.0, "ben": 0.0, "carla": 1.5}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=24)
    arguments = parser.parse_args()
    for name in ("images", *RATERS):
        (arguments.folder / name).mkdir(parents=True)
    rows, columns = np.indices((SIZE, SIZE))
    for number in range(arguments.cases):
        rng = np.random.default_rng(number)
        middle, radius = rng.uniform(11, SIZE - 11, 2), rng.uniform(4, 8)
        distance = np.hypot(rows - middle[0], columns - middle[1])
        picture = 60 + 120 / (1 + np.exp(distance - radius)) + rng.normal(0, 8, (SIZE, SIZE))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(arguments.folder / f"images/{number:02d}.png")
        for rater, larger in RATERS.items():
            mask = distance < radius + larger + rng.normal(0, 0.5)
            Image.fromarray(mask.astype(np.uint8) * 255).save(arguments.folder / f"{rater}/{number:02d}.png")


if __name__ == "__main__":
    main()
