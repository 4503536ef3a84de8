"""A callback that writes a method's predictions during a test, in the format that `prediction_folder` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from edue_lightning.data import Grid, RaterBatch, RaterDataModule, RaterSample
from edue_lightning.data.geometry import resample
from edue_lightning.data.source import Subset
from edue_lightning.errors import UserError
from edue_lightning.evaluation.prediction_folder import ARRAY, nifti_name


class PredictionWriter(pl.Callback):
    """Writes the member probabilities of each tested case.

    Volumes become NIfTI files on the grid of the case's own image file, one per member and structure, with 0 outside of
    the part that was read. Pictures and slices become `CASE_ID.npz`.

    Args:
        folder: folder for the files, created if necessary.
        data: data set of the tested cases.
        split: split that is tested.
    """

    def __init__(self, folder: Path, data: RaterDataModule, split: Subset) -> None:
        self.folder = folder
        self.data = data
        self.records = data.records(split)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: RaterBatch,
        *rest: int,  # noqa: ARG002
    ) -> None:
        """Write the cases of a batch from the member logits that the test step returned."""
        for logits, position in zip(outputs, batch.case_index.tolist(), strict=True):
            sample = self.data.source.load(self.records[position].case_id)
            write_prediction(self.folder, sample, torch.sigmoid(logits.float()).cpu(), self.data.source.structures)


def write_prediction(folder: Path, sample: RaterSample, probabilities: Tensor, structures: tuple[str, ...]) -> None:
    """Write the member probabilities of a case.

    Args:
        folder: folder for the files, created if necessary.
        sample: case that was predicted.
        probabilities: `[M, K, *S]` on the sample's grid.
        structures: names of the K structures.

    Raises:
        UserError: if a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if sample.affine is None:
            arrays = {ARRAY: probabilities.numpy()}
            np.savez_compressed(folder / f"{sample.case_id}.npz", **arrays)  # type: ignore[arg-type]
            return
        own = Grid(tuple(sample.image.shape[1:]), sample.affine)
        for member, of_member in enumerate(probabilities):
            for structure, volume in zip(structures, of_member, strict=True):
                target = sample.origin or own
                values = resample(volume.numpy(), own.affine.numpy(), target, fill=0.0)
                image = nibabel.Nifti1Image(values, target.affine.numpy())
                image.header.set_xyzt_units("mm")
                nibabel.save(image, folder / nifti_name(sample.case_id, member, structure))
    except OSError as error:
        raise UserError(f"{folder}: the prediction of {sample.case_id} cannot be written ({error.strerror})") from error
