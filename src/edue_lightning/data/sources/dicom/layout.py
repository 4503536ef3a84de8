"""Patients' folders of DICOM files: the image series, and the RTSTRUCT and SEG objects that refer to it.

Names of files and folders below a patient's folder mean nothing; the headers decide. No pixels are read here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from pydicom import Dataset

from edue_lightning.data.dicom_masks import describe_masks, is_masks
from edue_lightning.data.dicom_objects import MasksHeader
from edue_lightning.data.dicom_series import described, is_dicom, is_image, is_localizer, read_header
from edue_lightning.data.image_limits import ImageError
from edue_lightning.data.listing import DEEPEST_OF_DICOM, ListingProblems, find_files
from edue_lightning.text import NO_FILE_NAME, is_plain_name, named

_MOST_LISTED = 4
_Members = list[tuple[Path, Dataset]]


@dataclass(frozen=True)
class DicomCase:
    """The files of a patient's folder.

    Attributes:
        case_id: name of the folder.
        patient: PatientID, empty if the series has none.
        slices: files of the image series.
        masks: RTSTRUCT and SEG files that belong to the series, with their headers.
    """

    case_id: str
    patient: str
    slices: tuple[Path, ...]
    masks: Mapping[Path, MasksHeader]


@dataclass
class DicomListing:
    """The patients below a folder.

    Attributes:
        cases: usable cases by their names.
        problems: one line per problem.
        warnings: what is left out, one line each.
    """

    cases: list[DicomCase] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def list_dicom(root: Path, modalities: Sequence[str], series: Sequence[str]) -> DicomListing:
    """Find the patients below a folder, each with its series and the objects that refer to it.

    Args:
        root: folder with one folder per patient.
        modalities: modalities of the image series, such as CT.
        series: UIDs or descriptions of the series to take, `*` for any characters; empty to take the only one.
    """
    problems = ListingProblems(root)
    listing = DicomListing(problems=problems.lines)
    folders: defaultdict[str, list[Path]] = defaultdict(list)
    others: list[str] = []
    for path in find_files(problems, lambda _: False, ("",), DEEPEST_OF_DICOM):
        parts = path.relative_to(root).parts
        if not is_dicom(path):
            others.append("/".join(parts))
        elif len(parts) == 1:
            problems.add(path, "lies beside the folders of the patients; put each patient's files into a folder")
        else:
            folders[parts[0]].append(path)
    if others:
        listing.warnings.append(f"files that are no DICOM files are skipped: {named(others, most=3)}")
    for name, files in folders.items():
        try:
            case = _case(root, name, files, modalities, series, listing.warnings)
        except ImageError as error:
            problems.add(root / name, str(error), name)
        else:
            listing.cases.append(case)
    without = [case.case_id for case in listing.cases if case.patient == ""]
    if without:
        listing.warnings.append(f"no PatientID, so each folder counts as a patient: {named(without)}")
    return listing


def _case(
    root: Path,
    name: str,
    files: Sequence[Path],
    modalities: Sequence[str],
    series: Sequence[str],
    warnings: list[str],
) -> DicomCase:
    """Return the files of a patient's folder.

    Raises:
        ImageError: if it does not hold one series with masks.
    """
    if not is_plain_name(name):
        raise ImageError(NO_FILE_NAME)
    images: defaultdict[str, _Members] = defaultdict(list)
    left_out: list[str] = []
    masks: dict[Path, MasksHeader] = {}
    for path in files:
        header = read_header(path)
        if is_masks(header.get("SOPClassUID")):
            masks[path] = _described_masks(path)
        elif is_image(header) and header.get("Modality") in modalities and not is_localizer(header):
            images[str(header.get("SeriesInstanceUID"))].append((path, header))
        else:
            kind = "localizer" if is_localizer(header) else header.get("Modality")
            left_out.append(f"{path.relative_to(root).as_posix()} ({kind})")
    if left_out:
        warnings.append(f"case {name!r}: left out: {named(left_out, most=_MOST_LISTED)}")
    members = _chosen(images, modalities, series)
    header = members[0][1]
    frame = header.get("FrameOfReferenceUID")
    own: dict[Path, MasksHeader] = {}
    for path, found in masks.items():
        if _belongs(found, str(header.get("SeriesInstanceUID")), None if frame is None else str(frame)):
            own[path] = found
        else:
            warnings.append(f"case {name!r}: left out, as it refers to another series: {path.relative_to(root)}")
    if not own:
        raise ImageError("has no RTSTRUCT or SEG of its series; add one, or move the folder away")
    patients = {str(one.get("PatientID") or "").strip() for _, one in members}
    if len(patients) > 1:
        raise ImageError(f"its slices are of several patients ({', '.join(sorted(patients))}); divide them")
    return DicomCase(name, patients.pop(), tuple(path for path, _ in members), own)


def _described_masks(path: Path) -> MasksHeader:
    try:
        return describe_masks(path)
    except ImageError as error:
        raise ImageError(f"{path.name}: {error}") from error


def _chosen(images: Mapping[str, _Members], modalities: Sequence[str], series: Sequence[str]) -> _Members:
    """Return the slices of the wanted series.

    Raises:
        ImageError: if there is not one such series.
    """
    if not images:
        raise ImageError(
            f"holds no series of modality {' or '.join(modalities)}; add it, or set data.source.modalities"
        )
    wanted = [uid for uid, members in images.items() if not series or _is_wanted(uid, members, series)]
    if len(wanted) != 1:
        listed = "; ".join(described(members) for members in list(images.values())[:_MOST_LISTED])
        more = "; ..." * (len(images) > _MOST_LISTED)
        fix = f"of these data.source.series={list(series)} takes {len(wanted)}" if series else "several"
        raise ImageError(
            f"holds {len(images)} series, {fix}: {listed}{more}; choose one by its description or UID with "
            "data.source.series"
        )
    return images[wanted[0]]


def _is_wanted(uid: str, members: _Members, series: Sequence[str]) -> bool:
    name = str(members[0][1].get("SeriesDescription") or "").strip().casefold()
    return any(text == uid or fnmatchcase(name, text.strip().casefold()) for text in series)


def _belongs(masks: MasksHeader, series: str, frame: str | None) -> bool:
    """Return whether masks refer to a series, by its UID or, without one, by its frame of reference."""
    return series in masks.series if masks.series else frame in masks.frames
