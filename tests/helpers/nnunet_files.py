"""Small data sets in nnU-Net's raw format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

AFFINE = np.array([[-0.8, 0.0, 0.0, 90.0], [0.0, -0.7, 0.0, 120.0], [0.0, 0.0, 2.5, -40.0], [0.0, 0.0, 0.0, 1.0]])
"""That of a scan whose first two axes run to the left and posterior."""

VOLUME = (9, 10, 6)
PICTURE = (12, 14)

VERSION_2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
REGIONS = {
    **VERSION_2,
    "labels": {"background": 0, "liver": [1, 2], "tumour": [2], "ignore": 3},
    "regions_class_order": [1, 2],
}
VERSION_1 = {
    "name": "Liver",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver", "2": "tumour"},
    "numTraining": 5,
    "training": [{"image": "./imagesTr/case_000.nii.gz", "label": "./labelsTr/case_000.nii.gz"}],
}


def save(path: Path, array: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.name:
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    else:
        Image.fromarray(array).save(path)


def label_map(shape: tuple[int, ...], shift: int = 0, ignored: bool = False) -> NDArray[np.uint8]:
    """Return a liver (1) with a tumour (2), and if wanted a first row to ignore (3)."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:7, 2 + shift : 8] = 1
    labels[3:5, 3 + shift : 5] = 2
    if ignored:
        labels[0] = 3
    return labels


def write_nnunet(
    root: Path,
    description: dict[str, Any] | None = None,
    cases: int = 5,
    tests: int = 0,
    raters: tuple[str, ...] = ("", "_ANNA"),
    shape: tuple[int, ...] = VOLUME,
    ending: str = ".nii.gz",
    colours: bool = False,
) -> Path:
    """Write a data set; rater n's liver begins n voxels further, and the last rater of the first case ignores a row."""
    description = {**VERSION_2, **(description or {})} if description is None else description
    if "numTraining" in description:
        description = {**description, "numTraining": cases}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(description))
    for part, count in {"Tr": cases, "Ts": tests}.items():
        for number in range(count):
            name = f"case_{number:03d}" if part == "Tr" else f"test_{number:03d}"
            rng = np.random.default_rng(number + 100 * (part == "Ts"))
            names = description.get("channel_names", description.get("modality"))
            for channel in range(1 if colours else len(names)):
                pixels = rng.integers(0, 255, (*shape, 3) if colours else shape, dtype=np.uint8)
                stored = pixels if ending != ".nii.gz" else pixels.astype(np.int16) * 4
                save(root / f"images{part}" / f"{name}_{channel:04d}{ending}", stored)
            for place, rater in enumerate(raters):
                ignored = "ignore" in description["labels"] and number == 0 and place == len(raters) - 1
                save(root / f"labels{part}{rater}" / f"{name}{ending}", label_map(shape, place, ignored))
    return root
