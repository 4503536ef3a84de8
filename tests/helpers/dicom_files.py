"""Writes CT slices and segmentations as DICOM files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

STUDY = "1.3.6.1.4.1.14519.5.2.1.6279.6001.298806137288633453246975630178"
SERIES = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"


def ct_slice(
    pixels: NDArray[np.int16] | NDArray[np.uint16],
    z: float,
    series: str = SERIES,
    intercept: float = -1024,
    slope: float = 1,
    spacing: float = 0.703125,
    syntax: str = ExplicitVRLittleEndian,
) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "CT"
    dataset.PatientID = "LIDC-IDRI-0001"
    dataset.StudyInstanceUID = STUDY
    dataset.SeriesInstanceUID = series
    # text of up to 16 characters, as scanners write it
    dataset.ImagePositionPatient = ["-166.0", "-171.699997", f"{z:.6f}"]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [spacing, spacing]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.RescaleIntercept = intercept
    dataset.RescaleSlope = slope
    dataset.RescaleType = "HU"
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def write(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, dataset, enforce_file_format=True)
    return path


def segmentation(
    slices: list[Dataset], masks: NDArray, labels: list[str], kind: str = "BINARY", creator: str = "", **options: Any
) -> Dataset:
    """Return a SEG object by highdicom.

    Args:
        slices: slices of the series, k = 0, 1, ...
        masks: `[K, columns, rows, slices]`, boolean, or shares for fractional ones.
        labels: names of the K segments.
        kind: type of the segmentation.
        creator: name of the person who drew it.
        options: further arguments of highdicom.
    """
    described = [
        highdicom.seg.SegmentDescription(
            number, label, codes.SCT.SpatialAndRelationalConcept, codes.DCM.SelectedRegion, "MANUAL"
        )
        for number, label in enumerate(labels, 1)
    ]
    for dataset in slices:
        for name in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(dataset, name, dataset.get(name, ""))
        dataset.StudyDate, dataset.StudyTime = dataset.get("StudyDate", ""), dataset.get("StudyTime", "")
        dataset.SliceThickness = dataset.get("SliceThickness", "2.5")
    frames = np.ascontiguousarray(np.moveaxis(masks, (0, 1, 2, 3), (3, 2, 1, 0)))
    return highdicom.seg.Segmentation(
        slices,
        frames.astype(np.uint8) if kind != "FRACTIONAL" else frames.astype(float),
        kind,
        described,
        generate_uid(),
        9,
        generate_uid(),
        1,
        manufacturer="nobody",
        manufacturer_model_name="none",
        software_versions="0",
        device_serial_number="0",
        content_creator_name=creator or None,
        **options,
    )
