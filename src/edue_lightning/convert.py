"""Write any data set as a folder with a manifest: what a loader makes of it, in files that every program opens.

python -m edue_lightning.convert data=NAME data.root=FOLDER output=DIR
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import hydra
import nibabel
import numpy as np
import pandas as pd
from omegaconf import DictConfig
from PIL import Image

from edue_lightning.build import build_data
from edue_lightning.command import command, quiet_libraries
from edue_lightning.configuration import check_configuration, configuration_folder, resolved
from edue_lightning.data import CaseRecord, RaterSample
from edue_lightning.data.source import Split
from edue_lightning.errors import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"


@dataclass
class ConvertConfiguration:
    """Top level of `conf/convert.yaml`."""

    seed: int
    output: str
    data: dict[str, Any] | None = None


def convert(configuration: Mapping[str, Any], folder: Path) -> int:
    """Write every case of a data set, one in memory at a time, and the manifest last.

    Images are written as the loader gives them (float32: TIFF, a file a channel, in 2D; NIfTI in 3D), masks as PNG or
    NIfTI. The manifest keeps patients, splits (as drawn, where they are drawn), spacings and missing raters; read it
    with `data=manifest data.source.standardise=false`, and it gives the same samples.

    Args:
        configuration: resolved and plain, as `conf/convert.yaml` composes it.
        folder: for the files, new or empty.

    Returns:
        the number of cases.

    Raises:
        UserError: for a configuration or data that cannot be used, before anything is written; if the folder holds
            something; or if a file cannot be written.
    """
    check_configuration(configuration, ConvertConfiguration)
    if configuration.get("data") is None:
        raise UserError("no data set to convert; give one with data=NAME")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"output={folder}: is not empty, and nothing is overwritten; choose another folder")
    data = build_data(configuration)
    split_of = {record.case_id: split for split in get_args(Split) for record in data.splits[split]}
    source = data.source
    rows: list[dict[str, str]] = []
    try:
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, record in enumerate(source.cases(), 1):
            sample = source.load(record.case_id)
            raters = source.raters or [f"slot {slot}" for slot in range(1, len(sample.valid) + 1)]
            rows += _write_case(folder, record, split_of[record.case_id], sample, raters, source.structures)
            log.info("%d of %d cases: %s", number, len(data.splits["all"]), record.case_id)
        pd.DataFrame(rows).to_csv(folder / MANIFEST, index=False)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
    return len(data.splits["all"])


def _write_case(
    folder: Path,
    record: CaseRecord,
    split: Split,
    sample: RaterSample,
    raters: tuple[str, ...] | list[str],
    structures: tuple[str, ...],
) -> Iterator[dict[str, str]]:
    """Write a case's files, and give its rows of the manifest."""
    row = {"case_id": record.case_id, "patient": record.group, "split": split}
    if sample.spacing is not None:
        row["spacing"] = "x".join(repr(float(size)) for size in sample.spacing)
    for channel, values in enumerate(sample.image.numpy(), 1):
        column = "image" if channel == 1 else f"image{channel}"
        row[column] = _save(folder, f"images/{record.case_id}__{channel}", values, sample)
    for slot, rater in enumerate(raters):
        for k, structure in enumerate(structures):
            if sample.valid[slot]:
                mask = sample.masks[slot, k].numpy()
                name = f"masks/{record.case_id}__{slot + 1}__{k + 1}"
                # an empty field says that the rater outlined nothing
                file = _save(folder, name, mask * np.uint8(255), sample) if mask.any() else ""
                yield {**row, "mask": file, "rater": rater, "structure": structure}


def _save(folder: Path, name: str, array: np.ndarray, sample: RaterSample) -> str:
    if array.ndim == 3:
        file = f"{name}.nii.gz"
        affine = np.diag([*(sample.spacing or (1, 1, 1)), 1]) if sample.affine is None else sample.affine.numpy()
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / file)
    else:
        file = f"{name}.tif" if array.dtype == np.float32 else f"{name}.png"
        Image.fromarray(array).save(folder / file)
    return file


@hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="convert")
@command
def main(config: DictConfig) -> None:
    """Run the command."""
    quiet_libraries()
    configuration = resolved(config)
    folder = Path(configuration["output"])
    cases = convert(configuration, folder)
    log.info(
        "%s: %d cases; read it with data=manifest data.root=%s data.source.standardise=false", folder, cases, folder
    )


if __name__ == "__main__":
    main()
