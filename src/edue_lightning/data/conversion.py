"""Conversion of any data set to a folder with a manifest, in files that every program opens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import nibabel
import numpy as np
import pandas as pd
import torch
from PIL import Image

from edue_lightning.data.module import RaterDataModule
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, Split
from edue_lightning.errors import UserError
from edue_lightning.text import natural_key

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"


def write_manifest(data: RaterDataModule, folder: Path) -> int:
    """Write every case of a data set, one in memory at a time, and the manifest last.

    Images are written as the loader returns them (float32; TIFF with one file per channel in 2D, NIfTI in 3D), masks as
    PNG or NIfTI, votes as their numbers. The manifest keeps patients, splits (as drawn, where they are drawn),
    spacings, regions, missing raters and the order of the raters. Read it with
    `data=manifest data.source.standardise=false` to get the same
    samples.

    Args:
        data: data set to write.
        folder: folder for the files, new or empty.

    Returns:
        the number of cases.

    Raises:
        UserError: if the folder is not empty, the data are volumes of unknown voxel size, or a file cannot be written.
    """
    require_empty(folder)
    first = data.source.load(data.source.cases()[0].case_id)
    if data.source.spatial_dims == 3 and first.spacing is None:
        raise UserError(
            f"data={data.name}: the voxel size of its volumes is unknown, but NIfTI files always store one: areas "
            "would assume voxels of 1 mm; convert slices instead (data.source.volumes=false of lidc_slices)"
        )
    split_of = {record.case_id: split for split in get_args(Split) for record in data.splits[split]}
    source = data.source
    rows: list[dict[str, str]] = []
    try:
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, record in enumerate(source.cases(), 1):
            sample = source.load(record.case_id)
            raters = source.raters or [f"slot {slot}" for slot in range(1, len(sample.valid) + 1)]
            names = None if source.votes else raters
            rows += _write_case(folder, record, split_of[record.case_id], sample, names, source.structures)
            log.info("%d of %d cases: %s", number, len(data.splits["all"]), record.case_id)
        pd.DataFrame(rows).to_csv(folder / MANIFEST, index=False)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
    return len(data.splits["all"])


def require_empty(folder: Path) -> None:
    """Check that a folder for a converted data set is new or empty.

    Raises:
        UserError: if it is not.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"output={folder}: is not empty; choose another folder")


def _write_case(
    folder: Path,
    record: CaseRecord,
    split: Split,
    sample: RaterSample,
    raters: tuple[str, ...] | list[str] | None,
    structures: tuple[str, ...],
) -> Iterator[dict[str, str]]:
    """Write the files of a case, and yield its rows of the manifest: masks of named raters, or votes without."""
    # the order that a manifest without positions has
    in_natural_order = raters is None or list(raters) == sorted(raters, key=natural_key)
    row = {"case_id": record.case_id, "patient": record.group, "split": split}
    if sample.spacing is not None:
        row["spacing"] = "x".join(repr(float(size)) for size in sample.spacing)
    if sample.region is not None:
        (folder / "regions").mkdir(exist_ok=True)
        row["region"] = _save(folder, f"regions/{record.case_id}", _as_picture(sample.region.numpy()), sample)
    for channel, values in enumerate(sample.image.numpy(), 1):
        column = "image" if channel == 1 else f"image{channel}"
        row[column] = _save(folder, f"images/{record.case_id}__{channel}", values, sample)
    if raters is None:
        for k, structure in enumerate(structures):
            votes = sample.masks[sample.valid, k].sum(dim=0, dtype=torch.uint8).numpy()
            file = _save(folder, f"masks/{record.case_id}__votes__{k + 1}", votes, sample)
            yield {**row, "votes": file, "n_raters": str(int(sample.valid.sum())), "structure": structure}
        return
    for slot, rater in enumerate(raters):
        for k, structure in enumerate(structures):
            if sample.valid[slot]:
                mask = _as_picture(sample.masks[slot, k].numpy())
                name = f"masks/{record.case_id}__{slot + 1}__{k + 1}"
                # an empty field: the rater outlined nothing
                file = _save(folder, name, mask, sample) if mask.any() else ""
                position = {} if in_natural_order else {"rater_position": str(slot + 1)}
                yield {**row, "mask": file, "rater": rater, "structure": structure, **position}


def _as_picture(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, np.uint8(255), np.uint8(0))


def _save(folder: Path, name: str, array: np.ndarray, sample: RaterSample) -> str:
    if array.ndim == 3:
        file = f"{name}.nii.gz"
        affine = np.diag([*(sample.spacing or (1, 1, 1)), 1]) if sample.affine is None else sample.affine.numpy()
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / file)
    else:
        file = f"{name}.tif" if array.dtype == np.float32 else f"{name}.png"
        Image.fromarray(array).save(folder / file)
    return file
