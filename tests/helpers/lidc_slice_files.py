"""Writes slices in the two public layouts of LIDC-IDRI's slices."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REAL = Path(__file__).parents[3] / "shared" / "data" / "lidc_slices.zip"
"""Real slices on the developers' machines."""

EDGE = 32


def disc(radius: float, edge: int = EDGE) -> NDArray[np.bool_]:
    """Return a disc in the middle, empty for radius 0."""
    rows, columns = np.mgrid[:edge, :edge] - edge // 2
    return rows**2 + columns**2 < radius**2


def write_slice(
    root: Path, patient: int, nodule: int, number: int, radii: Sequence[float], edge: int = EDGE, tag: int = 0
) -> Path:
    """Write a slice whose four masks are discs of the given radii, and return its nodule's folder."""
    folder = root / f"LIDC-IDRI-{patient:04d}" / f"nodule-{nodule}"
    rng = np.random.default_rng([patient, nodule, number, tag])
    save(folder / "images" / f"slice-{number}.png", rng.integers(0, 256, (edge, edge), dtype=np.uint8))
    for reader, radius in enumerate(radii):
        save(folder / f"mask-{reader}" / f"slice-{number}.png", disc(radius, edge) * np.uint8(255))
    return folder


def write_data_set(root: Path, patients: Sequence[int] = range(1, 9)) -> Path:
    """Write two nodules per patient: one marked by four readers on three slices, one by a single reader on one."""
    for patient in patients:
        for number, grown in enumerate((0, 2, 1)):
            write_slice(root, patient, 0, number, [4 + grown, 5 + grown, 3 + grown, grown and 4 + grown])
        write_slice(root, patient, 1, 0, [5, 0, 0, 0])
    return root


def write_blurred_slice(root: Path, part: str, number: int, radii: Sequence[float]) -> Path:
    """Write a slice in CIMD's layout, whose JPEG masks hold grey levels near 0 and 255."""
    folder = root / part / str(number)
    rng = np.random.default_rng(number)
    save(folder / f"image_{number + 1}.jpg", rng.integers(0, 256, (EDGE, EDGE), dtype=np.uint8))
    for reader, radius in enumerate(radii):
        noise = rng.integers(0, 8, (EDGE, EDGE))
        save(folder / f"label{reader}_.jpg", np.where(disc(radius), 255 - noise, noise).astype(np.uint8))
    return folder


def save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Save a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))


def zipped(root: Path, path: Path, method: int = zipfile.ZIP_STORED, above: str = "LIDC-IDRI-slices") -> Path:
    """Put all files of a folder into an archive."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, f"{above}/{file.relative_to(root).as_posix()}")
    return path


def write_archive(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive with the given members."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
