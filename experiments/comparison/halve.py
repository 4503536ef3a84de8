"""Photographs of cells at half their resolution, so that a machine without a GPU trains on them.

python experiments/comparison/halve.py bu_bil bu_bil_half

Copies a folder with `manifest.csv`: a pixel of an image is the mean of 2x2 pixels, a pixel of a mask or region is
marked if at least two of its four are. A last odd row or column is left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

MANIFEST = "manifest.csv"

# columns of the manifest with names of files
_FILES = re.compile(r"image\d*|mask|region")
_NOT_HALVED = {"spacing", "label", "segment", "votes"}


def halve(folder: Path, target: Path) -> int:
    """Write images and masks at half their resolution, with the manifest, and return the number of images.

    Args:
        folder: folder with the manifest and images of one channel or in colours, of 8 or 16 bits.
        target: folder for the copy.

    Raises:
        ValueError: if the copy would overwrite its source, or the manifest has a column with values that change with
            the resolution or give numbers in masks another meaning.
    """
    if target.resolve() == folder.resolve():
        raise ValueError(f"{target}: is the source; choose another folder")
    # as text, so that names such as 007 stay
    manifest = pd.read_csv(folder / MANIFEST, dtype=str, keep_default_na=False)
    for column in sorted(_NOT_HALVED & {*manifest}):
        if any(manifest[column]):
            raise ValueError(f"{folder / MANIFEST}: has the column {column}, which cannot be halved")
    columns = [str(column) for column in manifest if _FILES.fullmatch(str(column))]
    files = {column: sorted({*manifest[column]} - {""}) for column in columns}
    for column, names in files.items():
        for name in names:
            pixels = _pixels(folder / name)
            if column.startswith("image"):
                _write(np.rint(_means(pixels)).astype(pixels.dtype), target / name)
            else:
                marked = _means((pixels > 0).astype(np.uint8)) >= 0.5
                _write(255 * marked.astype(np.uint8), target / name)
    manifest.to_csv(target / MANIFEST, index=False)
    return len(files["image"])


def _pixels(file: Path) -> NDArray[np.uint8 | np.uint16]:
    return np.asarray(Image.open(file))


def _means(pixels: NDArray[np.uint8 | np.uint16]) -> NDArray[np.float64]:
    rows, columns = (length // 2 for length in pixels.shape[:2])
    return pixels[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, *pixels.shape[2:]).mean((1, 3))


def _write(pixels: NDArray[np.uint8 | np.uint16], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    try:
        print(f"{halve(asked.source, asked.target)} images: {asked.target}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
