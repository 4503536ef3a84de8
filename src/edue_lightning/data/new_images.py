"""New images without raters: one file, a folder of them, or a table that names them."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edue_lightning.data.channel_names import FIRST_NUMBER, NUMBERED, channel_of
from edue_lightning.data.dicom_series import files_in, has_image, is_dicom
from edue_lightning.data.file_source import unoriented_text
from edue_lightning.data.geometry import slice_storage
from edue_lightning.data.images import PICTURES, VOLUMES, ImageError, ImageFile, is_oriented, parts_of, read_image
from edue_lightning.data.itk_volumes import SEGMENTATION
from edue_lightning.data.listing import ListingProblems, find_files, is_prediction, stem_of
from edue_lightning.data.preparation import Preparation, PreparedImage, agreed_spacing, as_slice, require_channels
from edue_lightning.data.slices import HOW_TO_SLICE
from edue_lightning.data.sources.manifest.files import NamedFiles
from edue_lightning.data.sources.manifest.table import TABLES, read_images
from edue_lightning.errors import UserError
from edue_lightning.text import ambiguous_names, can_be_in_file_name, name_in_files, named, one_line

log = logging.getLogger(__name__)

_IMAGES = PICTURES + VOLUMES
# formats of images that are not read
_OTHER_PICTURES = (".jp2", ".jpe", ".jfif", ".pgm", ".pnm", ".svs")
OTHER_IMAGES = (
    *_OTHER_PICTURES,
    *(".dcm", ".dicom", ".ima", ".img", ".img.gz", ".mgh", ".mgz", ".mnc", ".npy"),
)
"""Endings of images that are reported, but not read."""

_DEEPEST = 32
_MOST_NAMED = 3
_DIGITS = 12


@dataclass(frozen=True)
class ImageCase:
    """A case with images alone.

    Attributes:
        case_id: name of the case, unique among the cases.
        files: image files, or folders of DICOM series, in the order of the channels.
        spacing: voxel size in mm along each axis from a table, or None to take the files'.
    """

    case_id: str
    files: tuple[Path, ...]
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImageCases:
    """The cases below a path.

    Attributes:
        cases: usable cases in the order of their names, or of the table.
        problems: pairs of a file's or case's name and its problem; none of these is among the cases.
    """

    cases: Sequence[ImageCase]
    problems: Sequence[tuple[str, str]]


def find_images(place: Path, channels: int, leave_out: Path | None = None) -> ImageCases:
    """List the cases of an image file, a folder or a table.

    In a folder each file is a case, named by its stem, without nnU-Net's `_0000` if all of several files have it; each
    folder with slices of a DICOM series is a case of the folder's name. If the network expects several channels, files
    that are named like those of a data set (`CASE__CT` and `CASE__PT`, of volumes `CASE_0000` and `CASE_0001`,
    `CASE__1` and `CASE__2`) are one case, and other files beside them, such as labels, are skipped with a warning.
    Images of other formats are problems; segmentations and files that are no images are skipped with a warning, as are
    output folders of `predict`. A table has the columns `case_id, image[, image2...]` and optionally `spacing`; further
    columns, such as those of a manifest, are not read.

    Args:
        place: path of an image, a folder or a table (CSV, Parquet).
        channels: number of channels that the network expects.
        leave_out: folder whose files are skipped, or None.

    Raises:
        UserError: if there is no image, or a table cannot be read.
    """
    if is_prediction(place):
        raise UserError(f"input={place}: contains predictions; choose the folder of the images")
    if place.is_dir():
        found = _in_folder(place, channels, leave_out)
    elif not place.is_file():
        raise UserError(f"input={place}: no such file or folder")
    elif place.name.lower().endswith(TABLES):
        found = _in_table(place)
    elif _is_image(place):
        found = _of_file(place, channels)
    elif is_dicom(place):
        raise UserError(f"input={place}: is one file of a DICOM series; choose the folder of the series")
    else:
        endings = ", ".join((*PICTURES, *VOLUMES, *TABLES))
        raise UserError(f"input={place}: has none of the endings {endings}; choose an image, a folder or a table")
    if not found.cases and not found.problems:
        raise UserError(f"input={place}: holds no image with one of the endings {', '.join(_IMAGES)}")
    refused = {case.case_id: reason for case in found.cases if (reason := _refusal(case)) is not None}
    shown = [(one_line(name), one_line(reason)) for name, reason in (*found.problems, *refused.items())]
    return ImageCases([case for case in found.cases if case.case_id not in refused], shown)


def warn_of_unoriented(cases: Sequence[ImageCase], place: str) -> None:
    """Warn once if headers of volumes do not say which way their axes run, see `images.is_oriented`."""
    found = [(case.case_id, next((file for file in case.files if not is_oriented(file)), None)) for case in cases]
    unoriented = [(case_id, file.name) for case_id, file in found if file is not None]
    if unoriented:
        log.warning("%s: %s", place, unoriented_text(len(unoriented), len(cases), *unoriented[0]))


def read_case(
    case: ImageCase,
    preparation: Preparation,
    spatial_dims: int,
    channels: int,
    require_storage: Callable[[str], None] | None = None,
) -> PreparedImage:
    """Read and prepare the images of a case.

    Args:
        case: case with its files.
        preparation: preparation of the images of the training.
        spatial_dims: number of axes that the network expects, 2 or 3.
        channels: number of channels that it expects.
        require_storage: check of how the file of a 2D image stores its axes, see `geometry.slice_storage`; it raises
            `ImageError`.

    Raises:
        ImageError: naming the file, if one of them cannot be used.
    """
    files: list[ImageFile] = []
    for path in case.files:
        try:
            files.append(read_image(path))
        except ImageError as error:
            raise ImageError(one_line(f"{path.name}: {error}")) from error
    first = case.files[0].name
    try:
        prepared = preparation.prepare(files, spatial_dims)
        if spatial_dims == 2:
            prepared = replace(prepared, storage=slice_storage(files[0].affine))
            if require_storage is not None:
                require_storage(str(prepared.storage))
        require_channels(prepared, channels)
    except ImageError as error:
        hint = f"; {HOW_TO_SLICE}" if spatial_dims == 2 and any(len(file.shape) > 2 for file in files) else ""
        raise ImageError(f"{first}: {error}{hint}") from error
    # resampled to another grid it may have any size
    except MemoryError as error:
        raise ImageError(f"{first}: does not fit into memory after resampling; correct its affine") from error
    try:
        spacing = agreed_spacing([as_slice(file) for file in files] if spatial_dims == 2 else files, case.spacing)
    except ImageError as error:
        raise ImageError(f"{first}: {error}") from error
    # the header's, which the preparation may have changed along with the grid, goes before
    return prepared.with_spacing(spacing)


def _refusal(case: ImageCase) -> str | None:
    """Return why the files of a case must not be opened, or None if they can be."""
    if not can_be_in_file_name(case.case_id):
        return "cannot be the name of a result; rename it, with fewer and plainer characters"
    # reading a pipe would block, and a device may have no end
    if not all(path.is_file() or path.is_dir() for path in case.files):
        return "is no regular file; put the image itself there"
    return None


def _of_file(path: Path, channels: int) -> ImageCases:
    named = channel_of(path) if channels > 1 else None
    beside = [other for other in sorted(path.parent.iterdir()) if _is_image(other)]
    if named is None:
        return ImageCases([ImageCase(_single_names([path], beside)[0], (path,))], [])
    parts = [other for other in beside if (found := channel_of(other)) is not None and found[0] == named[0]]
    grouped = _grouped(parts, path.parent, channels)
    return ImageCases([case for case in grouped.cases if path in case.files], grouped.problems)


def _in_folder(folder: Path, channels: int, leave_out: Path | None) -> ImageCases:
    problems = ListingProblems(folder.resolve())
    outside = None if leave_out is None else leave_out.resolve()
    found_files = [
        path
        for path in find_files(problems, lambda _: False, ("",), _DEEPEST)
        if outside is None or not path.is_relative_to(outside)
    ]
    files = [path for path in found_files if _is_image(path)]
    parts = {part for path in files for part in parts_of(path)}
    others = []
    series: dict[Path, bool] = {}
    for path in found_files:
        if path in parts:
            continue
        if is_dicom(path):
            if path.parent not in series:
                series[path.parent] = has_image(files_in(path.parent))
            if not series[path.parent]:
                others.append(path.relative_to(problems.root).as_posix())
        elif path.name.lower().endswith(OTHER_IMAGES):
            problems.add(path, f"is of a format that is not read; convert it to {_converted(path)}, or move it away")
        else:
            others.append(path.relative_to(problems.root).as_posix())
    if others:
        log.warning("%s: files that are no images are skipped: %s", folder, _first(others))
    volumes = [((place,), place.name) for place, is_volume in series.items() if is_volume]
    listed = [(line.partition(": ")[0], line.partition(": ")[2]) for line in problems.lines]
    if channels > 1 and any(channel_of(path) is not None for path in files):
        channel_files = [path for path in files if channel_of(path) is not None]
        if len(channel_files) < len(files):
            others = [path.name for path in files if path not in set(channel_files)]
            log.warning("%s: files without a channel in their names are skipped: %s", folder, _first(others))
        found = _grouped(channel_files, folder.resolve(), channels)
        return ImageCases([*found.cases, *_named(volumes, folder.resolve())], [*listed, *found.problems])
    singles = [((path,), name) for path, name in zip(files, _single_names(files, files), strict=True)]
    return ImageCases(_named([*singles, *volumes], folder.resolve()), listed)


def _single_names(paths: Sequence[Path], beside: Sequence[Path]) -> list[str]:
    """Return the names of cases of one file each, without nnU-Net's `_0000` where all of several files have it.

    Args:
        paths: files of the cases.
        beside: all images of the folder. Other numbers among them count the cases.
    """
    named = [NUMBERED.fullmatch(stem_of(path, _IMAGES)) for path in beside]
    # a single image may be the first of numbered ones
    are_first = len(named) > 1 and all(match is not None and match["channel"] == FIRST_NUMBER for match in named)
    return [stem_of(path, _IMAGES).removesuffix(f"_{FIRST_NUMBER}" if are_first else "") for path in paths]


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(_IMAGES) and not name.endswith(SEGMENTATION)


def _first(names: Sequence[str]) -> str:
    return one_line(named(names, _MOST_NAMED))


def _converted(path: Path) -> str:
    return "PNG" if path.name.lower().endswith(_OTHER_PICTURES) else "NIfTI"


def _grouped(parts: Sequence[Path], root: Path, channels: int) -> ImageCases:
    """Return the cases whose files have a channel in their names; files of one case lie in one folder."""
    groups: defaultdict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    problems: list[tuple[str, str]] = []
    broken: set[tuple[Path, str]] = set()
    for path in parts:
        named = channel_of(path)
        assert named is not None
        group = groups[path.parent, named[0]]
        if named[1] in group:
            twice = f"{path.name} and {group[named[1]].name} are the same channel; remove one"
            problems.append((_place(path, named[0], root), twice))
            broken.add((path.parent, named[0]))
        group[named[1]] = path
    cases: list[tuple[tuple[Path, ...], str]] = []
    for (folder, case_id), files in groups.items():
        if (folder, case_id) in broken:
            continue
        if sorted(files) != list(range(channels)):
            if all(NUMBERED.fullmatch(stem_of(path, _IMAGES)) for path in files.values()):
                # numbers of cases, not of channels
                cases += [((path,), stem_of(path, _IMAGES)) for path in files.values()]
                continue
            listed = ", ".join(path.name for path in files.values())
            name = _place(next(iter(files.values())), case_id, root)
            problems.append((name, f"lacks a channel: only {listed} exists; add the other files"))
        else:
            cases.append((tuple(files[number] for number in sorted(files)), case_id))
    return ImageCases(_named(cases, root), problems)


def _place(path: Path, case_id: str, root: Path) -> str:
    """Return a case's name in problems: with the folder of its files, if it is another than the input."""
    return (path.parent.relative_to(root) / case_id).as_posix()


def _named(cases: Sequence[tuple[tuple[Path, ...], str]], root: Path) -> list[ImageCase]:
    """Return the cases; if several have the same name, on any file system, each is named by its path."""
    stems = [name for _, name in cases]
    paths = [files[0].relative_to(root) for files, _ in cases]
    count = Counter(map(name_in_files, stems))
    names = [
        stem if count[name_in_files(stem)] == 1 else "_".join(path.parts)
        for stem, path in zip(stems, paths, strict=True)
    ]
    # paths may differ in a separator alone, such as a/b_c.png and a_b/c.png, or in upper and lower case; and the path
    # of one file must not be the name of another
    count = Counter(map(name_in_files, names))
    of_files = {name_in_files(path.name) for path in paths}
    for at, (stem, path) in enumerate(zip(stems, paths, strict=True)):
        key = name_in_files(names[at])
        if count[key] > 1 or (names[at] not in (stem, path.name) and key in of_files):
            names[at] = f"{'_'.join(path.parts)}-{hashlib.sha256(bytes(path)).hexdigest()[:_DIGITS]}"
    return [ImageCase(name, files) for name, (files, _) in zip(names, cases, strict=True)]


def _in_table(path: Path) -> ImageCases:
    try:
        rows = read_images(path)
    except ValueError as error:
        raise UserError(one_line(f"input={path}: {error}")) from error
    cases: list[ImageCase] = []
    problems: list[tuple[str, str]] = [*rows.problems]
    named = NamedFiles(path.parent)
    shared = {name: names for names in ambiguous_names(rows.cases) for name in names}
    for case_id, (names, spacing) in rows.cases.items():
        if case_id in shared:
            others = ", ".join(repr(name) for name in shared[case_id] if name != case_id)
            problems.append((case_id, f"some file systems take its name for that of {others}; rename one"))
            continue
        try:
            files = tuple(named.locate(name) for name in names)
        except ImageError as error:
            problems.append((case_id, f"{', '.join(names)}: {error}"))
        else:
            cases.append(ImageCase(case_id, files, spacing))
    return ImageCases(cases, problems)
