"""Writes patients as DICOM files: a series, and the outlines of observers on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from dicom_files import ct_slice, write
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First voxel of a box, and the one behind its last (i, j, k)."""


@dataclass
class Scan:
    """A CT series.

    Attributes:
        pixels: `[columns, rows, slices]`.
        axes: directions of columns, rows and slices as the columns of an orthogonal matrix, LPS.
        spacing: voxel size, mm.
        patient: PatientID.
    """

    pixels: NDArray[np.int16]
    axes: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    spacing: tuple[float, float, float] = (0.703125, 0.703125, 2.5)
    patient: str = "P1"
    description: str = "thorax"
    series: str = field(default_factory=generate_uid)
    frame: str = field(default_factory=generate_uid)
    study: str = field(default_factory=generate_uid)

    def place(self, i: float, j: float, k: float) -> list[float]:
        """Return the place of a voxel, mm to the left, posterior and superior."""
        return list(np.array([-30.0, -20.0, 55.0]) + self.axes @ (np.array([i, j, k]) * self.spacing))

    def slices(self) -> list[Dataset]:
        """Return the slices, k = 0, 1, ..."""
        made = []
        for k in range(self.pixels.shape[2]):
            dataset = ct_slice(np.ascontiguousarray(self.pixels[:, :, k].T), 0.0, series=self.series)
            dataset.ImagePositionPatient = [f"{value:.9f}"[:16] for value in self.place(0, 0, k)]
            dataset.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in self.axes[:, :2].T.ravel()]
            dataset.FrameOfReferenceUID, dataset.StudyInstanceUID = self.frame, self.study
            dataset.PatientID, dataset.SeriesDescription = self.patient, self.description
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            made.append(dataset)
        return made

    def save(self, folder: Path) -> list[Dataset]:
        """Write the slices with names that do not follow their positions, and return them."""
        made = self.slices()
        for dataset, name in zip(made, np.random.default_rng(1).permutation(len(made)), strict=True):
            write(dataset, folder / f"IM{name:05d}")
        return made

    def outlines(
        self, structures: Mapping[str, Sequence[Box]], label: str = "", operator: str = "", refers: bool = True
    ) -> Dataset:
        """Return an RTSTRUCT object with the outlines of boxes.

        Args:
            structures: boxes of each structure.
            label: label of the object.
            operator: name of the person.
            refers: whether the object names the series.
        """
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", generate_uid()
        dataset.PatientID, dataset.StudyInstanceUID = self.patient, self.study
        dataset.StructureSetLabel, dataset.OperatorsName = label, operator
        if refers:
            series, study, frame = Dataset(), Dataset(), Dataset()
            series.SeriesInstanceUID = self.series
            study.RTReferencedSeriesSequence = [series]
            frame.RTReferencedStudySequence = [study]
            dataset.ReferencedFrameOfReferenceSequence = [frame]
        dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
        for number, (name, boxes) in enumerate(structures.items(), 1):
            region, drawn = Dataset(), Dataset()
            region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = number, name, self.frame
            drawn.ReferencedROINumber = number
            drawn.ContourSequence = [self._outline(low, high, k) for low, high in boxes for k in range(low[2], high[2])]
            dataset.StructureSetROISequence.append(region)
            dataset.ROIContourSequence.append(drawn)
        return dataset

    def _outline(self, low: Sequence[int], high: Sequence[int], k: int) -> Dataset:
        (left, top), (right, bottom) = (np.array(corner[:2]) - 0.5 for corner in (low, high))
        item = Dataset()
        item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", 4
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        item.ContourData = [f"{value:.6f}" for i, j in corners for value in self.place(i, j, k)]
        return item

    def mask(self, box: Box) -> NDArray[np.bool_]:
        """Return a box as a mask on the voxels of the series."""
        found = np.zeros(self.pixels.shape, dtype=bool)
        found[tuple(slice(start, stop) for start, stop in zip(*box, strict=True))] = True
        return found
