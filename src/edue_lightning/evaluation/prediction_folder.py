"""Predictions of any model in files: one `CASE_ID.npz` per case, or one NIfTI file per member and structure.

- `CASE_ID.npz` with an array `members` `[M, K, *S]`, probabilities in [0, 1], structures in the data set's order, or in
  that of the array of their names, `structures` `[K]`.
- `CASE_ID.npz` of nnU-Net (`nnUNetv2_predict --save_probabilities`): one member, with an array `probabilities` of one
  channel per label, the background first, or one per region, along nnU-Net's axes (Z, Y, X of a volume). The
  segmentation `CASE_ID.nii.gz` beside it is skipped.
- `CASE_ID__memberM__STRUCTURE.nii.gz` (or `.nii`), M counted from 0, each on the grid of the case's image file or on
  the grid that the case was resampled to; with a single structure, `CASE_ID__memberM.nii.gz` is enough.

A file `readout.json` may say how probability, disagreement and decision are read from the members, with the attributes
of `Readout`, each optional: `{"levels": true}` for nested levels, `{"own_maps": ["decision"]}` for maps of the
prediction's own, `{"exclusive": true}` for structures that exclude each other. Each own map is an array `[K, *S]` of
its name in the archive, or files `CASE_ID__decision__STRUCTURE.nii.gz`. Without that file, members are opinions.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data import CaseRecord, CaseSource, Grid, RaterSample
from edue_lightning.data.geometry import (
    PICTURE,
    closest_canonical,
    grid_of,
    resample,
    same_grid,
    slice_directions,
    slice_storage,
    whole_steps,
)
from edue_lightning.data.images import MOST_INFLATION, ImageError, read_image, require_memory
from edue_lightning.errors import UserError
from edue_lightning.text import counted, one_line, reason_of
from edue_lightning.uncertainty import MAPS, MEMBERS, Readout
from edue_lightning.uncertainty.maps import member_mean

_CHANNEL = rf"__(?:member(?P<member>\d+)|(?P<map>{'|'.join(MAPS)}))"
_ENDING = r"\.nii(?:\.gz)?"
_NIFTI_NAME = re.compile(rf"(?P<case>.+){_CHANNEL}(?:__(?P<structure>.+))?{_ENDING}")
ARRAY = "members"
"""Name of the members' array in an archive."""
STRUCTURES = "structures"
"""Name of the array of the structures' names in an archive."""
READOUT_FILE = "readout.json"

ROUNDING = 1e-5
"""Largest distance from [0, 1] that counts as rounding; such values become 0 or 1."""

_NNUNET_ARRAYS = ("probabilities", "softmax")
"""Names of the array in archives of nnU-Net, versions 2 and 1."""

_MOST_DEVIATION = 0.02
"""Largest distance of a sum of probabilities in half precision from 1."""

_MOST_SHARED = 0.1
"""Largest share of a structure's voxels that may belong to another one as well, by mistakes along borders."""

_MOST_HEADER_BYTES = 2**16
_MOST_READOUT_BYTES = 2**12

Channel = tuple[int | str, str]
"""Number of a member, or name of a map, and name of a structure."""


def nifti_name(case_id: str, channel: int | str, structure: str) -> str:
    """Return the file name of one structure's probabilities, of a member by its number or of a map by its name."""
    return f"{case_id}__{channel if isinstance(channel, str) else f'member{channel}'}__{structure}.nii.gz"


class PredictionFolder:
    """Probabilities of cases, of members and of the maps of `readout`, read one case at a time.

    Args:
        folder: folder with the files.
        structures: names of the K structures, in the data set's order.

    Attributes:
        readout: how the maps are read from the members.
        members: M, once `check` has counted them.

    Raises:
        UserError: if the folder does not exist, holds no prediction, or its `readout.json` is invalid.
    """

    def __init__(self, folder: Path, structures: Sequence[str]) -> None:
        if not folder.is_dir():
            raise UserError(f"predictions={folder}: no such folder")
        self.folder = folder
        self._source: CaseSource | None = None
        self.structures = tuple(structures)
        self.readout = _read_readout(folder / READOUT_FILE)
        self._archives = {path.name.removesuffix(".npz"): path for path in sorted(folder.glob("*.npz"))}
        self._images: dict[str, dict[Channel, Path]] = defaultdict(dict)
        self._unnamed: list[str] = []
        self.members = 0
        self._interpolated: set[str] = set()
        for path in sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")]):
            named = self._parts_of(path.name)
            if named is None or named["map"] not in (None, *self.readout.own_maps):
                # nnU-Net's segmentation beside its probabilities
                if path.name.removesuffix(".gz").removesuffix(".nii") not in self._archives:
                    self._unnamed.append(path.name)
                continue
            structure = named["structure"] or (self.structures[0] if len(self.structures) == 1 else "")
            files = self._images[named["case"]]
            channel: int | str = named["map"] or int(named["member"])
            if (channel, structure) in files:
                raise UserError(
                    f"{self}: {files[channel, structure].name} and {path.name} are both {_described(channel)} of case "
                    f"{named['case']}; remove one"
                )
            files[channel, structure] = path
        if not self._archives and not self._images:
            raise UserError(f"{self}: holds no prediction; expected CASE_ID.npz or CASE_ID__member0.nii.gz")

    def __str__(self) -> str:
        return f"predictions={self.folder}"

    def _parts_of(self, name: str) -> re.Match[str] | None:
        """Return the parts of a file's name; the names of cases and structures may themselves hold `__`."""
        known = "|".join(map(re.escape, self.structures))
        return re.fullmatch(rf"(?P<case>.+){_CHANNEL}__(?P<structure>{known}){_ENDING}", name) or _NIFTI_NAME.fullmatch(
            name
        )

    def set_exclusive(self, exclusive: bool) -> None:
        """Set whether the structures exclude each other, which is known of the data set.

        Raises:
            UserError: if `readout.json` says that they do, and those of the data set do not.
        """
        if self.readout.exclusive and not exclusive:
            raise UserError(
                f"{self}: {READOUT_FILE} says that the structures exclude each other; set data.source.exclusive=true, "
                "or predict with a model that was trained without it"
            )
        self.readout = replace(self.readout, exclusive=exclusive)

    def check(self, records: Sequence[CaseRecord], all_records: Sequence[CaseRecord], source: CaseSource) -> int:
        """Check every prediction against its case, before anything is computed.

        Args:
            records: cases to be measured.
            all_records: all cases of the data set, to distinguish cases of another split from unknown ones.
            source: source of the cases.

        Returns:
            number of cases whose predictions are interpolated onto their grids.

        Raises:
            UserError: with one line per missing case, surplus case, file of another shape or grid, and file with NaN or
                values outside [0, 1].
        """
        self._source = source
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
                count = self.readout.count(len(self._load(source.load(record.case_id))))
                if count < 1:
                    raise _PredictionError(
                        f"holds no member beside the maps that {READOUT_FILE} names; save {record.case_id}.npz with "
                        f"{ARRAY} and these maps"
                    )
                members[record.case_id] = count
            except _PredictionError as error:
                problems.append(f"{record.case_id}: {error}")
        if members:
            usual = self.members = Counter(members.values()).most_common(1)[0][0]
            odd = [
                f"{case}: has {count} members, but most cases have {usual}; predict all with the same number"
                for case, count in members.items()
                if count != usual
            ]
            problems += odd
        if problems:
            raise UserError("\n  ".join([f"{self}: {counted(len(problems), 'problem')}", *map(one_line, problems)]))
        return len(self._interpolated)

    def load(self, sample: RaterSample) -> Tensor:
        """Return the probabilities of a case, `[M + n, K, *S]`, as `readout` takes them.

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
        if archive is not None and (name := _nnunet_array(archive)) is not None:
            probabilities = torch.from_numpy(self._read_probabilities(archive, name, sample))
            self._check_sums(probabilities)
            return probabilities
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
        found = torch.from_numpy(values if low >= 0 and high <= 1 else values.clip(0, 1))
        self._check_sums(found)
        return self._descending(found) if self.readout.levels else found

    def _check_sums(self, channels: Tensor) -> None:
        """Check that probabilities of structures that exclude each other add up to at most 1.

        Raises:
            _PredictionError: if they do not.
        """
        if not self.readout.exclusive:
            return
        members = self.readout.members(channels[None])
        maps = [member_mean(members) if self.readout.levels else members[0]]
        names = [name for name in self.readout.own_maps if name != "disagreement"]
        maps += [own for name in names if (own := self.readout.own_map(channels[None], name)) is not None]
        highest = max(float(part.sum(dim=1).max()) for part in maps)
        if highest > 1 + _MOST_DEVIATION:
            raise _PredictionError(
                f"the probabilities of the structures add up to {highest:.3g} at a voxel, but they exclude each other "
                "(data.source.exclusive=true); save those of a softmax, or set data.source.exclusive=false"
            )

    def _descending(self, channels: Tensor) -> Tensor:
        """Return the channels with levels that descend exactly.

        Raises:
            _PredictionError: if they ascend by more than rounding.
        """
        count = self.readout.count(len(channels))
        levels = channels[:count]
        if count > 1 and float(levels.diff(dim=0).max()) > ROUNDING:
            raise _PredictionError(
                f"its members must descend from member 0 to member {count - 1} at every voxel, since {READOUT_FILE} "
                "says that they are levels; sort them"
            )
        return torch.cat([levels.sort(dim=0, descending=True).values, channels[count:]])

    def _read_archive(self, path: Path, size: tuple[int, ...]) -> NDArray[np.floating]:
        one = (len(self.structures), *size)
        members = self._read_array(path, ARRAY, one)
        maps = [self._read_array(path, name, one)[None] for name in self.readout.own_maps]
        found = np.concatenate([members, *maps]) if maps else members
        named = _structures_of(path)
        if named is None or named == list(self.structures):
            return found
        if sorted(named) != sorted(self.structures):
            raise _PredictionError(
                f"{path.name}: holds the structures {', '.join(named)}, expected {', '.join(self.structures)}"
            )
        return found[:, [named.index(name) for name in self.structures]]

    def _read_array(self, path: Path, name: str, one: tuple[int, ...]) -> NDArray[np.floating]:
        """Read an array of an archive: the members `[M, K, *S]`, or a map `[K, *S]`.

        Args:
            path: archive.
            name: name of the array.
            one: `(K, *S)`.
        """

        def check(shape: tuple[int, ...]) -> None:
            fits = shape == one if name != ARRAY else len(shape) >= 2 and shape[0] >= 1 and shape[1:] == one
            if not fits:
                expected = ", ".join(map(str, one if name != ARRAY else ("M", *one)))
                raise _PredictionError(f"{path.name}: {name} has shape {list(shape)}, expected [{expected}]")

        return _read_array(path, name, check)

    def _read_probabilities(self, path: Path, array: str, sample: RaterSample) -> NDArray[np.float32]:
        """Read an archive of nnU-Net as the probabilities of one member, `[1, K, *S]`."""
        source, name, size = self._source, path.name, tuple(sample.image.shape[1:])
        if source is None or source.turned_probabilities:
            raise _PredictionError(
                f"{name}: nnU-Net turned the axes of these probabilities (NibabelIOWithReorient); save NIfTI files, "
                f"such as {nifti_name(sample.case_id, 0, self.structures[0])}"
            )
        storage = source.storage_of(sample.case_id)
        pictures = storage == PICTURE
        if len(size) == 2 and not pictures and slice_directions(storage) is None:
            raise _PredictionError(
                f"{name}: it is unknown how nnU-Net read the axes of the image; save {ARRAY} with the image's own axes"
            )
        file = size if sample.origin is None else sample.origin.shape
        stored = (1, *file) if len(file) == 2 else file
        expected = stored if pictures else ((1, *file[::-1]) if len(file) == 2 else file[::-1])

        def check(shape: tuple[int, ...]) -> None:
            if shape[1:] != expected or source.probability_channels(shape[0]) is None:
                wanted = ", ".join(map(str, expected))
                raise _PredictionError(
                    f"{name}: {array} has shape {list(shape)}, expected [C, {wanted}], with one channel per label and "
                    f"the background, or one per region, for {', '.join(self.structures)}"
                )

        values = _read_array(path, array, check).astype(np.float32)
        found = source.probability_channels(len(values))
        assert found is not None, "checked"
        if not np.isfinite(values).all() or values.min() < -ROUNDING or values.max() > 1 + _MOST_DEVIATION:
            raise _PredictionError(f"{name}: {array} holds values outside of [0, 1], or NaN; save probabilities")
        if found.exclusive:
            _check_labels(name, values, found.parts, sample)
        maps = []
        for part in found.parts:
            values_of = values[list(part)].sum(axis=0).clip(0, 1)
            values_of = values_of.reshape(values_of.shape[-len(file) :])
            placed = values_of if pictures else values_of.transpose()
            if sample.origin is not None and sample.affine is not None:
                placed = self._on_own_grid(placed, sample.origin, Grid(size, sample.affine), sample.case_id)
            maps.append(np.ascontiguousarray(placed))
        return np.stack(maps)[None]

    def _read_images(self, files: dict[Channel, Path], sample: RaterSample) -> NDArray[np.float32]:
        members = 1 + max((channel for channel, _ in files if isinstance(channel, int)), default=0)
        surplus = [path.name for (_, structure), path in files.items() if structure not in self.structures]
        if surplus:
            raise _PredictionError(
                f"{surplus[0]}: its name holds none of the structures {', '.join(self.structures)}; rename it"
            )
        arrays = []
        storage = None if self._source is None else self._source.storage_of(sample.case_id)
        # one by one: a file's name may claim any number of members
        channels: list[int | str] = [*self.readout.own_maps]
        for channel in itertools.chain(range(members), channels):
            for structure in self.structures:
                if (channel, structure) not in files:
                    raise _PredictionError(f"lacks a file for {structure} of {_described(channel)}")
                arrays.append(self._read_member(files[channel, structure], sample, storage))
        return np.stack(arrays).reshape(-1, len(self.structures), *sample.image.shape[1:])

    def _read_member(self, path: Path, sample: RaterSample, storage: str | None) -> NDArray[np.float32]:
        """Read the map of one structure, of a member or the prediction's own, on the grid of the sample.

        Args:
            path: NIfTI file.
            sample: case of the prediction.
            storage: how the case's own file stores the axes of a 2D image, see `geometry.slice_storage`; None if it is
                unknown.

        Raises:
            _PredictionError: if it cannot be read, or lies on another grid.
        """
        try:
            image = read_image(path)
        except ImageError as error:
            raise _PredictionError(f"{path.name}: {error}") from error
        if len(image.array) != 1:
            raise _PredictionError(
                f"{path.name}: holds {len(image.array)} channels, expected one probability per voxel; save the "
                "structure's own channel alone"
            )
        values: NDArray[np.float32] = image.array[0].astype(np.float32)
        size = tuple(sample.image.shape[1:])
        if len(size) == 2 and slice_storage(image.affine) != storage:
            stored = f"is stored as {slice_storage(image.affine)}, but the images as {storage}, with other axes"
            reason = "it is unknown how the axes of the images run" if storage is None else stored
            raise _PredictionError(f"{path.name}: {reason}; save {sample.case_id}.npz instead")
        own = None if sample.affine is None else Grid(size, sample.affine)
        found = None if image.affine is None or values.ndim < 3 else grid_of(values.shape, image.affine)
        if own is not None and found is not None and sample.origin is not None and same_grid(found, sample.origin):
            return self._on_own_grid(values, found, own, sample.case_id)
        if image.array.shape != (1, *size):
            raise _PredictionError(f"{path.name}: has shape {list(image.array.shape[1:])}, expected {list(size)}")
        if own is not None and found is not None and not same_grid(found, own):
            raise _PredictionError(f"{path.name}: lies on another grid (affine) than the case")
        return values

    def _on_own_grid(self, values: NDArray[np.float32], origin: Grid, own: Grid, case_id: str) -> NDArray[np.float32]:
        """Bring the values of a case from the grid of its file to its own, and note whether they are interpolated."""
        affine = origin.affine.numpy()
        if whole_steps(affine, own) is None:
            self._interpolated.add(case_id)
        return resample(values, affine, own, fill=0.0)


def _described(channel: int | str) -> str:
    return channel if isinstance(channel, str) else f"member {channel}"


def _read_readout(path: Path) -> Readout:
    """Return the read-out of a folder; that of members without the file.

    Raises:
        UserError: if the file is invalid.
    """
    if not path.exists():
        return MEMBERS
    known = MEMBERS.as_dict()
    try:
        # a pipe would block, and a large file is not one of our files
        if not path.is_file() or path.stat().st_size > _MOST_READOUT_BYTES:
            raise ValueError("is no small file")
        stored = json.loads(path.read_text())
        if not isinstance(stored, dict) or set(stored) - set(known):
            raise ValueError(f"expected an object with some of {', '.join(known)}")
        return Readout.from_dict({**known, **stored})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(str(error))}); write for example {json.dumps(known)}, or remove it"
        ) from error


class _PredictionError(Exception):
    """A problem of one case's prediction."""


def _is_turned(sample: RaterSample) -> bool:
    """Return whether the axes of a sample run along others than its file's, whether or not it was also resampled."""
    return sample.origin is not None and not same_grid(closest_canonical(sample.origin), sample.origin)


def _nnunet_array(path: Path) -> str | None:
    """Return the name of the array in an archive of nnU-Net, or None for other archives and broken files."""
    try:
        # reading a pipe would block
        with zipfile.ZipFile(path if path.is_file() else io.BytesIO()) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None
    found = [array for array in _NNUNET_ARRAYS if f"{array}.npy" in names]
    return found[0] if found and f"{ARRAY}.npy" not in names else None


def _structures_of(path: Path) -> list[str] | None:
    """Return the names of the structures in an archive, in its order; None in one without names.

    Raises:
        _PredictionError: if they cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{STRUCTURES}.npy" not in archive.namelist():
                return None
        shape, dtype, bytes_there = _announced(path, STRUCTURES)
        if len(shape) != 1 or dtype.kind != "U" or math.prod(shape) * dtype.itemsize != bytes_there:
            raise ValueError(f"{STRUCTURES} is not a list of names")
        require_memory(bytes_there)
        with np.load(path, allow_pickle=False) as archive:
            return [one_line(name) for name in archive[f"{STRUCTURES}.npy"].tolist()]
    # decoders raise all kinds of errors on damaged files: BadZipFile, zlib.error, TokenError, ...
    except Exception as error:
        raise _PredictionError(f"{path.name}: cannot be read ({reason_of(error, path)}); save it again") from error


def _read_array(path: Path, array: str, check: Callable[[tuple[int, ...]], None]) -> NDArray[np.floating]:
    """Read an array of an archive, after a check of the shape that it claims.

    Raises:
        _PredictionError: if it cannot be read, or is no array of numbers; and what `check` raises.
    """
    # reading a pipe would block
    if not path.is_file():
        raise _PredictionError(f"{path.name}: is no regular file; put the archive itself there")
    try:
        shape, dtype, bytes_there = _announced(path, array)
        check(shape)
        if dtype.kind not in "fbui":
            raise _PredictionError(f"{path.name}: {array} holds {dtype}, expected floating-point numbers")
        claimed = math.prod(shape) * dtype.itemsize
        if claimed != bytes_there:
            raise ValueError(f"it claims {claimed} bytes and holds {bytes_there}")
        require_memory(claimed)
        with np.load(path, allow_pickle=False) as archive:
            # the entry that was checked, whatever the names of others
            values: NDArray[np.floating] = archive[f"{array}.npy"]
    except KeyError as error:
        raise _PredictionError(f"{path.name}: holds no array named {array!r}") from error
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


def _check_labels(name: str, values: NDArray, parts: Sequence[Sequence[int]], sample: RaterSample) -> None:
    """Check that channels of labels `[C, ...]` add up to 1, and that the structures exclude each other as labels do."""
    # nnU-Net leaves 0 where it cropped the image
    total = values.sum(axis=0)
    if not ((np.abs(total - 1) <= _MOST_DEVIATION) | (total == 0)).all():
        raise _PredictionError(
            f"{name}: its channels do not add up to 1 in each voxel; expected one per label, the background first"
        )
    taken = [channel for part in parts for channel in part]
    if len(taken) > len(set(taken)):
        return
    sizes = sample.masks.flatten(2).sum(dim=2).unsqueeze(1)
    shared = torch.einsum("rkv,rjv->rkj", *[sample.masks.flatten(2).float()] * 2)
    smaller = torch.minimum(sizes, sizes.transpose(1, 2)).clamp_min(1)
    if bool((torch.triu(shared / smaller, diagonal=1) > _MOST_SHARED).any()):
        raise _PredictionError(
            f"{name}: structures of the data set overlap, and labels of nnU-Net do not; read the data set's label maps "
            "(data=nnunet, or data.source.labels in a manifest), which say which labels a structure has"
        )


def _announced(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape and type that an array of an archive claims to have, and the number of bytes that it can hold.

    Nothing of the claimed size is allocated.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        entry = archive.getinfo(f"{name}.npy")
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
