"""Predictions of any model, in files: one `CASE_ID.npz` a case, or one NIfTI file a member.

- `CASE_ID.npz` with an array `members` `[M, K, *S]`, probabilities in [0, 1], structures in the data set's order.
- `CASE_ID__memberM__STRUCTURE.nii.gz` (or `.nii`), M counted from 0, each on the grid of the case's image file, or on
  the one that the case was brought onto; with a single structure `CASE_ID__memberM.nii.gz` will do.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data import CaseRecord, CaseSource, Grid, RaterSample
from edue_lightning.data.geometry import grid_of, resample, same_grid
from edue_lightning.data.images import ImageError, read_image
from edue_lightning.errors import UserError, counted

_NIFTI_NAME = re.compile(r"(?P<case>.+?)__member(?P<member>\d+)(?:__(?P<structure>.+))?\.nii(?:\.gz)?")
ARRAY = "members"
"""Name of the array in an archive."""

Member = tuple[int, str]
"""Number of a member and name of a structure."""


def nifti_name(case_id: str, member: int, structure: str) -> str:
    """Return the name of a member's file."""
    return f"{case_id}__member{member}__{structure}.nii.gz"


class PredictionFolder:
    """Member probabilities of cases, read one case at a time.

    Args:
        folder: with the files.
        structures: names of the K structures, in the data set's order.

    Raises:
        UserError: if there is no such folder, or it holds no prediction.
    """

    def __init__(self, folder: Path, structures: Sequence[str]) -> None:
        if not folder.is_dir():
            raise UserError(f"predictions={folder}: no such folder")
        self.folder = folder
        self.structures = tuple(structures)
        self._archives = {path.name.removesuffix(".npz"): path for path in sorted(folder.glob("*.npz"))}
        self._images: dict[str, dict[Member, Path]] = defaultdict(dict)
        self._unnamed: list[str] = []
        for path in sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")]):
            named = _NIFTI_NAME.fullmatch(path.name)
            if named is None:
                self._unnamed.append(path.name)
                continue
            structure = named["structure"] or (self.structures[0] if len(self.structures) == 1 else "")
            self._images[named["case"]][int(named["member"]), structure] = path
        if not self._archives and not self._images:
            raise UserError(f"{self}: holds no prediction; expected CASE_ID.npz or CASE_ID__member0.nii.gz")

    def __str__(self) -> str:
        return f"predictions={self.folder}"

    def check(self, records: Sequence[CaseRecord], all_records: Sequence[CaseRecord], source: CaseSource) -> None:
        """Check every prediction against its case, before anything is computed.

        Args:
            records: the cases to be measured.
            all_records: every case of the data set, to tell a case of another split from an unknown one.
            source: of the cases.

        Raises:
            UserError: a line for each missing case, surplus case, file of another shape or grid, and each NaN or value
                outside [0, 1].
        """
        wanted, known = ({record.case_id for record in part} for part in (records, all_records))
        found = set(self._archives) | set(self._images)
        problems = [f"{name}: is not named CASE_ID__memberM.nii.gz" for name in self._unnamed]
        for case_id in sorted(found - wanted):
            reason = "is of another split; take split=all or remove it" if case_id in known else "no case of the data"
            problems.append(f"{case_id}: surplus, {reason}")
        members: dict[str, int] = {}
        for record in records:
            if record.case_id not in found:
                problems.append(f"{record.case_id}: missing; add {record.case_id}.npz")
                continue
            try:
                members[record.case_id] = len(self.load(source.load(record.case_id)))
            except _PredictionError as error:
                problems.append(f"{record.case_id}: {error}")
        if members:
            usual = Counter(members.values()).most_common(1)[0][0]
            odd = [
                f"{case}: has {count} members, most cases have {usual}"
                for case, count in members.items()
                if count != usual
            ]
            problems += odd
        if problems:
            raise UserError("\n  ".join([f"{self}: {counted(problems)}", *problems]))

    def load(self, sample: RaterSample) -> Tensor:
        """Return the member probabilities of a case, `[M, K, *S]`."""
        size = tuple(sample.image.shape[1:])
        archive, images = self._archives.get(sample.case_id), self._images.get(sample.case_id, {})
        if archive is not None and images:
            raise _PredictionError(f"lies there as {archive.name} and as NIfTI; remove one")
        values = self._read_images(images, sample) if archive is None else self._read_archive(archive, size)
        if np.isnan(values).any():
            raise _PredictionError("holds NaN")
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise _PredictionError(f"holds values from {low:g} to {high:g}; probabilities lie in [0, 1]")
        return torch.from_numpy(values)

    def _read_archive(self, path: Path, size: tuple[int, ...]) -> NDArray[np.floating]:
        try:
            shape, dtype = _announced(path)
            if len(shape) < 2 or shape[0] < 1 or shape[1:] != (len(self.structures), *size):
                wanted = ", ".join(map(str, (len(self.structures), *size)))
                raise _PredictionError(f"{path.name}: {ARRAY} has shape {list(shape)}, wanted [M, {wanted}]")
            if dtype.kind not in "fbui":
                raise _PredictionError(f"{path.name}: {ARRAY} holds {dtype}, wanted floating-point numbers")
            with np.load(path, allow_pickle=False) as archive:
                values: NDArray[np.floating] = archive[ARRAY]
        except KeyError as error:
            raise _PredictionError(f"{path.name}: holds no array named {ARRAY!r}") from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _PredictionError(f"{path.name}: cannot be read ({error})") from error
        return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)

    def _read_images(self, files: dict[Member, Path], sample: RaterSample) -> NDArray[np.float32]:
        members = 1 + max(member for member, _ in files)
        wanted = [(member, structure) for member in range(members) for structure in self.structures]
        surplus = [path.name for key, path in files.items() if key not in wanted]
        if surplus:
            raise _PredictionError(f"{surplus[0]}: names no structure of {', '.join(self.structures)}")
        missing = [
            f"{structure} of member {member}" for member, structure in wanted if (member, structure) not in files
        ]
        if missing:
            raise _PredictionError(f"lacks a file for {missing[0]}")
        arrays = [_read_member(files[key], sample) for key in wanted]
        return np.stack(arrays).reshape(members, len(self.structures), *sample.image.shape[1:])


class _PredictionError(Exception):
    """What is wrong with one case's prediction."""


def _announced(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type that an archive's array claims to have, before anything of that size is made."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as file:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(file)
        if version not in read:
            raise ValueError(f"version {version} of the array format is not known")
        shape, _, dtype = read[version](file)
    return shape, dtype


def _read_member(path: Path, sample: RaterSample) -> NDArray[np.float32]:
    try:
        image = read_image(path)
    except ImageError as error:
        raise _PredictionError(f"{path.name}: {error}") from error
    values: NDArray[np.float32] = image.array[0].astype(np.float32)
    size = tuple(sample.image.shape[1:])
    own = None if sample.affine is None else Grid(size, sample.affine)
    found = None if image.affine is None or values.ndim < 3 else grid_of(values.shape, image.affine)
    if own is not None and found is not None and sample.origin is not None and same_grid(found, sample.origin):
        return resample(values, found.affine.numpy(), own, fill=0.0)
    if image.array.shape != (1, *size):
        raise _PredictionError(f"{path.name}: has shape {list(image.array.shape[1:])}, wanted {list(size)}")
    if own is not None and found is not None and not same_grid(found, own):
        raise _PredictionError(f"{path.name}: lies on another grid (affine) than the case")
    return values
