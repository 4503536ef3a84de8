"""Results on a DICOM series as DICOM objects that refer to it: masks as SEG, maps as Parametric Map.

Patient and study are those of the series; nothing about them is added. `docs/predict.md` names what is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from edue_lightning.data.dicom_series import read_series_header
from edue_lightning.data.images import ImageError
from edue_lightning.text import reason_of

if TYPE_CHECKING:
    import highdicom

PROJECT = "edue-lightning"
SCHEME = "99EDUE"
"""Coding scheme of the quantities that have no standard code; the standard reserves 99 for schemes of one's own."""

_COPIED_OR_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
_LONGEST_TEXT = 64
_LONGEST_SERIAL = 16
_FIRST_SERIES = 9000
"""Number of the series of masks; those of the maps follow."""

# code, meaning and largest value
_QUANTITIES = {
    "probability": ("PROBABILITY", "Probability of the structure", 1.0),
    "disagreement": ("VARIANCE", "Variance between the members", 0.25),
    "total_variance": ("TOTALVARIANCE", "Variance of the class, p (1 - p)", 0.25),
}


@dataclass(frozen=True)
class Maker:
    """Software and model behind a result.

    Attributes:
        version: version of this package.
        method: name of the method.
        checkpoint: digest of the checkpoint.
    """

    version: str
    method: str
    checkpoint: str


class DicomResults:
    """Writer of the results on one series.

    Args:
        folder: folder of the series.
        maker: what made the results.

    Raises:
        ImageError: if the series cannot be referred to.
    """

    def __init__(self, folder: Path, maker: Maker) -> None:
        self._maker = maker
        self._series = read_series_header(folder)
        self._slices = [_source(path) for path in self._series.files]
        for each in self._slices:
            # used for the measures of the frames alone
            each.SliceThickness = each.get("SliceThickness") or self._series.spacing[2]

    def segmentation(self, masks: NDArray[np.bool_], structures: Sequence[str], colours: Sequence[str]) -> bytes:
        """Return masks as a binary segmentation.

        Args:
            masks: `[K, I, J, k]` on the voxels of the series.
            structures: names of the K structures, which become the labels of the segments.
            colours: colours of the structures for viewers.

        Raises:
            ImageError: if the headers of the series do not allow it.
        """
        import highdicom

        described = [
            highdicom.seg.SegmentDescription(
                number,
                name[:_LONGEST_TEXT],
                # of a structure, the name alone is known
                codes.SCT.SpatialAndRelationalConcept,
                codes.DCM.SelectedRegion,
                highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                self._algorithm(),
                display_color=highdicom.color.CIELabColor.from_rgb(*(255 * part for part in to_rgb(colour))),
            )
            for number, (name, colour) in enumerate(zip(structures, colours, strict=True), 1)
        ]
        return self._written(
            highdicom.seg.Segmentation,
            np.moveaxis(masks, (0, 1, 2, 3), (3, 2, 1, 0)).astype(np.uint8),
            "Mask",
            0,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            # programs that ignore the places of frames then see the volume of the series
            omit_empty_frames=False,
            content_label="MASK",
        )

    def map(self, values: NDArray[np.float32], quantity: str, structure: str, member: int | None = None) -> bytes:
        """Return a map as a parametric map of floating-point numbers.

        Args:
            values: `[I, J, k]` on the voxels of the series.
            quantity: `probability`, `disagreement` or `total_variance`.
            structure: name of the structure.
            member: number of the member whose map it is, from 1; None for that of all members.

        Raises:
            ImageError: if the headers of the series do not allow it.
        """
        import highdicom

        code, meaning, most = _QUANTITIES[quantity]
        # viewers list series by this text
        text = f"{meaning}: {structure}" if member is None else f"Probability by member {member}: {structure}"
        mapping = highdicom.pm.RealWorldValueMapping(
            lut_label=code,
            lut_explanation=text[:_LONGEST_TEXT],
            unit=codes.UCUM.NoUnits,
            value_range=(0.0, most),
            slope=1.0,
            intercept=0.0,
            quantity_definition=Code(code, SCHEME, meaning),
        )
        return self._written(
            highdicom.pm.ParametricMap,
            np.ascontiguousarray(values.T, dtype=np.float32),
            text,
            1 + list(_QUANTITIES).index(quantity),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=most / 2, window_width=most)],
            content_label=code,
        )

    def _algorithm(self) -> highdicom.AlgorithmIdentificationSequence:
        import highdicom

        return highdicom.AlgorithmIdentificationSequence(
            name=f"{PROJECT} {self._maker.method}"[:_LONGEST_TEXT],
            family=codes.DCM.ArtificialIntelligence,
            version=self._maker.version,
            parameters={"checkpoint": self._maker.checkpoint},
        )

    def _written(self, make: Any, pixels: NDArray, text: str, number: int, **arguments: Any) -> bytes:
        """Return the content of a file of a new series."""
        import highdicom

        first = self._series.headers[0]
        step = self._series.spacing[2]
        thickness = float(self._slices[0].SliceThickness)
        try:
            made = make(
                source_images=self._slices,
                pixel_array=pixels,
                series_instance_uid=generate_uid(),
                series_number=_FIRST_SERIES + number,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer=PROJECT,
                manufacturer_model_name=self._maker.method,
                software_versions=self._maker.version,
                device_serial_number=self._maker.checkpoint[:_LONGEST_SERIAL],
                pixel_measures=highdicom.PixelMeasuresSequence(
                    [float(size) for size in first.PixelSpacing], thickness, step
                ),
                content_description=text[:_LONGEST_TEXT],
                series_description=f"{PROJECT}: {text}"[:_LONGEST_TEXT],
                **arguments,
            )
            _name_scheme(made)
            _order(made)
            content = BytesIO()
            made.save_as(content)
        # whatever the headers of the series hold that the standard does not allow
        except Exception as error:
            raise ImageError(
                f"its results cannot be written as DICOM ({reason_of(error)}); correct its headers, or set format=nifti"
            ) from error
        return content.getvalue()


def _source(path: Path) -> Dataset:
    """Read the header of a slice; what it does not say of patient and study stays empty.

    Raises:
        ImageError: if another object cannot refer to it.
    """
    header = dcmread(path, stop_before_pixels=True)
    missing = [name for name in _REQUIRED if not header.get(name)]
    if missing:
        raise ImageError(
            f"{path.name}: has no {', '.join(missing)}, so no DICOM object can refer to it; add it, or set format=nifti"
        )
    for name in _COPIED_OR_EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header


def _name_scheme(made: Dataset) -> None:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = f"Quantities of {PROJECT}"
    made.CodingSchemeIdentificationSequence = [scheme]


def _order(made: Dataset) -> None:
    """Put the frames of each segment in the order of the slices of the series.

    highdicom begins at the other end. Its order is allowed too, but programs such as ITK take the place of the first
    frame and count on from there along the normal of the rows and columns.
    """
    frames = made.PerFrameFunctionalGroupsSequence
    directions = np.array(
        made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient, dtype=np.float64
    ).reshape(2, 3)
    normal = np.cross(*directions)

    def place(number: int) -> tuple[int, float]:
        frame = frames[number]
        segment = frame.get("SegmentIdentificationSequence")
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        return (int(segment[0].ReferencedSegmentNumber) if segment else 0, float(normal @ position))

    order = sorted(range(len(frames)), key=place)
    slices = len({round(place(number)[1], 3) for number in order})
    made.PerFrameFunctionalGroupsSequence = [frames[number] for number in order]
    for frame in made.PerFrameFunctionalGroupsSequence:
        described = frame.FrameContentSequence[0]
        # the last index counts the positions, from 1
        *others, position = np.atleast_1d(described.DimensionIndexValues).tolist()
        described.DimensionIndexValues = [*others, slices + 1 - position]
    name = "FloatPixelData" if "FloatPixelData" in made else "PixelData"
    size = int(made.Rows) * int(made.Columns)
    stored = np.frombuffer(made[name].value, dtype=np.uint8)
    if name == "PixelData" and size % 8:
        bits = np.unpackbits(stored, bitorder="little")[: len(frames) * size].reshape(len(frames), size)
        packed = np.packbits(bits[order].ravel(), bitorder="little").tobytes()
        made.PixelData = packed + b"\0" * (len(packed) % 2)
    else:
        content = stored[: stored.size // len(frames) * len(frames)].reshape(len(frames), -1)[order].tobytes()
        setattr(made, name, content + b"\0" * (len(content) % 2))
