"""Predictions of any model in files: one `CASE_ID.npz` per case, or one NIfTI file per member and structure.

- `CASE_ID.npz` with an array `members` `[M, K, *S]`, probabilities in [0, 1], structures in the data set's order.
- `CASE_ID__memberM__STRUCTURE.nii.gz` (or `.nii`), M counted from 0, each on the grid of the case's image file or on
  the grid that the case was resampled to; with a single structure, `CASE_ID__memberM.nii.gz` is enough.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data import CaseRecord, CaseSource, Grid, RaterSample
from edue_lightning.data.geometry import closest_canonical, grid_of, resample, same_grid, slice_storage
from edue_lightning.data.images import MOST_INFLATION, ImageError, read_image, require_memory
from edue_lightning.errors import UserError
from edue_lightning.text import counted, one_line, reason_of

_NIFTI_NAME = re.compile(r"(?P<case>.+?)__member(?P<member>\d+)(?:__(?P<structure>.+))?\.nii(?:\.gz)?")
ARRAY = "members"
"""Name of the array in an archive."""

ROUNDING = 1e-5
"""Largest distance from [0, 1] that counts as rounding; such values become 0 or 1."""

_ENTRY = f"{ARRAY}.npy"
_MOST_HEADER_BYTES = 2**16

Member = tuple[int, str]
"""Number of a member and name of a structure."""


def nifti_name(case_id: str, member: int, structure: str) -> str:
    """Return the file name of a member's probabilities of one structure."""
    return f"{case_id}__member{member}__{structure}.nii.gz"


class PredictionFolder:
    """Member probabilities of cases, read one case at a time.

    Args:
        folder: folder with the files.
        structures: names of the K structures, in the data set's order.

    Raises:
        UserError: if the folder does not exist, or holds no prediction.
    """

    def __init__(self, folder: Path, structures: Sequence[str]) -> None:
        if not folder.is_dir():
            raise UserError(f"predictions={folder}: no such folder")
        self.folder = folder
        self._storage: str | None = None
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
            files, member = self._images[named["case"]], int(named["member"])
            if (member, structure) in files:
                raise UserError(
                    f"{self}: {files[member, structure].name} and {path.name} are both member {member} of case "
                    f"{named['case']}; remove one"
                )
            files[member, structure] = path
        if not self._archives and not self._images:
            raise UserError(f"{self}: holds no prediction; expected CASE_ID.npz or CASE_ID__member0.nii.gz")

    def __str__(self) -> str:
        return f"predictions={self.folder}"

    def check(self, records: Sequence[CaseRecord], all_records: Sequence[CaseRecord], source: CaseSource) -> None:
        """Check every prediction against its case, before anything is computed.

        Args:
            records: cases to be measured.
            all_records: all cases of the data set, to distinguish cases of another split from unknown ones.
            source: source of the cases.

        Raises:
            UserError: with one line per missing case, surplus case, file of another shape or grid, and file with NaN or
                values outside [0, 1].
        """
        self._storage = source.storage
        wanted, known = ({record.case_id for record in part} for part in (records, all_records))
        found = set(self._archives) | set(self._images)
        problems = [f"{name}: is not named CASE_ID__memberM.nii.gz; rename or remove it" for name in self._unnamed]
        for case_id in sorted(found - wanted):
            other = "belongs to another split; set split=all or remove its files"
            problems.append(
                f"{case_id}: {other if case_id in known else 'is no case of the data set; remove its files'}"
            )
        members: dict[str, int] = {}
        for record in records:
            if record.case_id not in found:
                problems.append(f"{record.case_id}: missing; add {record.case_id}.npz")
                continue
            try:
                members[record.case_id] = len(self._load(source.load(record.case_id)))
            except _PredictionError as error:
                problems.append(f"{record.case_id}: {error}")
        if members:
            usual = Counter(members.values()).most_common(1)[0][0]
            odd = [
                f"{case}: has {count} members, but most cases have {usual}; predict all with the same number"
                for case, count in members.items()
                if count != usual
            ]
            problems += odd
        if problems:
            raise UserError("\n  ".join([f"{self}: {counted(problems)}", *map(one_line, problems)]))

    def load(self, sample: RaterSample) -> Tensor:
        """Return the member probabilities of a case, `[M, K, *S]`.

        Raises:
            UserError: if a file was removed or damaged since the check.
        """
        try:
            return self._load(sample)
        except _PredictionError as error:
            raise UserError(one_line(f"{self}: {sample.case_id}: {error}")) from error

    def _load(self, sample: RaterSample) -> Tensor:
        size = tuple(sample.image.shape[1:])
        archive, images = self._archives.get(sample.case_id), self._images.get(sample.case_id, {})
        if archive is not None and images:
            raise _PredictionError(f"exists as {archive.name} and as NIfTI; remove one")
        if archive is not None and _is_turned(sample):
            raise _PredictionError(
                f"{archive.name}: the axes of the case's file were turned when it was read, and an array does not say "
                f"how its axes run; save NIfTI files, such as {nifti_name(sample.case_id, 0, self.structures[0])}"
            )
        values = self._read_images(images, sample) if archive is None else self._read_archive(archive, size)
        if np.isnan(values).any():
            raise _PredictionError("holds NaN; replace these values")
        low, high = float(values.min()), float(values.max())
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise _PredictionError(f"holds values from {low:.9g} to {high:.9g}; probabilities lie in [0, 1]")
        return torch.from_numpy(values if low >= 0 and high <= 1 else values.clip(0, 1))

    def _read_archive(self, path: Path, size: tuple[int, ...]) -> NDArray[np.floating]:
        # reading a pipe would block
        if not path.is_file():
            raise _PredictionError(f"{path.name}: is no regular file; put the archive itself there")
        try:
            shape, dtype, bytes_there = _announced(path)
            if len(shape) < 2 or shape[0] < 1 or shape[1:] != (len(self.structures), *size):
                expected = ", ".join(map(str, (len(self.structures), *size)))
                raise _PredictionError(f"{path.name}: {ARRAY} has shape {list(shape)}, expected [M, {expected}]")
            if dtype.kind not in "fbui":
                raise _PredictionError(f"{path.name}: {ARRAY} holds {dtype}, expected floating-point numbers")
            claimed = math.prod(shape) * dtype.itemsize
            if claimed != bytes_there:
                raise ValueError(f"it claims {claimed} bytes and holds {bytes_there}")
            require_memory(claimed)
            with np.load(path, allow_pickle=False) as archive:
                # the entry that was checked, whatever the names of others
                values: NDArray[np.floating] = archive[_ENTRY]
        except KeyError as error:
            raise _PredictionError(f"{path.name}: holds no array named {ARRAY!r}") from error
        except _PredictionError:
            raise
        except ImageError as error:
            raise _PredictionError(f"{path.name}: {error}") from error
        # decoders raise all kinds of errors on damaged files: BadZipFile, zlib.error, TokenError, ...
        except Exception as error:
            raise _PredictionError(f"{path.name}: cannot be read ({reason_of(error, path)}); save it again") from error
        # numbers beyond the range of float32 become infinite, which is reported later
        with np.errstate(all="ignore"):
            return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)

    def _read_images(self, files: dict[Member, Path], sample: RaterSample) -> NDArray[np.float32]:
        members = 1 + max(member for member, _ in files)
        surplus = [path.name for (_, structure), path in files.items() if structure not in self.structures]
        if surplus:
            raise _PredictionError(
                f"{surplus[0]}: its name holds none of the structures {', '.join(self.structures)}; rename it"
            )
        arrays = []
        # one by one: a file's name may claim any number of members
        for member in range(members):
            for structure in self.structures:
                if (member, structure) not in files:
                    raise _PredictionError(f"lacks a file for {structure} of member {member}")
                arrays.append(_read_member(files[member, structure], sample, self._storage))
        return np.stack(arrays).reshape(members, len(self.structures), *sample.image.shape[1:])


class _PredictionError(Exception):
    """A problem of one case's prediction."""


def _is_turned(sample: RaterSample) -> bool:
    """Return whether a sample has the voxels of its file, but along other axes."""
    if sample.affine is None or sample.origin is None:
        return False
    return same_grid(closest_canonical(sample.origin), Grid(tuple(sample.image.shape[1:]), sample.affine))


def _announced(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape and type that an archive's array claims to have, and the number of bytes that it can hold.

    Nothing of the claimed size is allocated.
    """
    with zipfile.ZipFile(path) as archive, archive.open(_ENTRY) as member:
        entry = archive.getinfo(_ENTRY)
        most = path.stat().st_size * MOST_INFLATION
        # the header itself may claim, and unpack to, any size
        file = io.BytesIO(member.read(_MOST_HEADER_BYTES))
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(file)
        if version not in read:
            raise ValueError(f"version {version} of the array format is unknown")
        shape, _, dtype = read[version](file)
        # read to its last byte, the archive's checksum is verified
        there = min(entry.file_size - file.tell(), most)
    return shape, dtype, there


def _read_member(path: Path, sample: RaterSample, storage: str | None) -> NDArray[np.float32]:
    """Read a member's map of one structure on the grid of the sample.

    Args:
        path: NIfTI file.
        sample: case of the prediction.
        storage: how the case's own file stores the axes of a 2D image, see `geometry.slice_storage`; None if unknown.

    Raises:
        _PredictionError: if it cannot be read, or lies on another grid.
    """
    try:
        image = read_image(path)
    except ImageError as error:
        raise _PredictionError(f"{path.name}: {error}") from error
    if len(image.array) != 1:
        raise _PredictionError(
            f"{path.name}: holds {len(image.array)} channels, expected one probability per voxel; save the structure's "
            "own channel alone"
        )
    values: NDArray[np.float32] = image.array[0].astype(np.float32)
    size = tuple(sample.image.shape[1:])
    if len(size) == 2 and storage is not None and slice_storage(image.affine) != storage:
        raise _PredictionError(
            f"{path.name}: is stored as {slice_storage(image.affine)}, but the images as {storage}, with other "
            f"axes; save {sample.case_id}.npz instead"
        )
    own = None if sample.affine is None else Grid(size, sample.affine)
    found = None if image.affine is None or values.ndim < 3 else grid_of(values.shape, image.affine)
    if own is not None and found is not None and sample.origin is not None and same_grid(found, sample.origin):
        return resample(values, found.affine.numpy(), own, fill=0.0)
    if image.array.shape != (1, *size):
        raise _PredictionError(f"{path.name}: has shape {list(image.array.shape[1:])}, expected {list(size)}")
    if own is not None and found is not None and not same_grid(found, own):
        raise _PredictionError(f"{path.name}: lies on another grid (affine) than the case")
    return values
