"""A callback that writes a method's predictions during a test, in the format that `prediction_folder` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from edue_lightning.atomic import write_arrays, write_whole
from edue_lightning.data import Grid, RaterBatch, RaterDataModule, RaterSample
from edue_lightning.data.geometry import resample
from edue_lightning.data.source import Subset
from edue_lightning.errors import UserError
from edue_lightning.evaluation.prediction_folder import ARRAY, READOUT_FILE, STRUCTURES, nifti_name
from edue_lightning.uncertainty import MEMBERS, Readout


class PredictionWriter(pl.Callback):
    """Writes the probabilities of each tested case: those of the members, and of the method's own maps.

    Volumes become NIfTI files on the grid of the case's own image file, one per member and structure, with 0 outside of
    the part that was read. Pictures and slices become `CASE_ID.npz`.

    Args:
        folder: folder for the files, created if necessary.
        data: data set of the tested cases.
        split: split that is tested.
        readout: the method's; `readout.json` says it, unless the maps are the members' mean and variance and structures
            may overlap.
    """

    def __init__(self, folder: Path, data: RaterDataModule, split: Subset, readout: Readout = MEMBERS) -> None:
        self.folder = folder
        self.data = data
        self.readout = readout
        self.records = data.records(split)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Write the read-out."""
        if trainer.is_global_zero:
            write_readout(self.folder, self.readout)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: RaterBatch,
        *rest: int,  # noqa: ARG002
    ) -> None:
        """Write the cases of a batch from the logits that the test step returned."""
        for logits, position in zip(outputs, batch.case_index.tolist(), strict=True):
            sample = self.data.source.load(self.records[position].case_id)
            probabilities = torch.sigmoid(logits.float()).cpu()
            write_prediction(self.folder, sample, probabilities, self.data.source.structures, self.readout)


def write_readout(folder: Path, readout: Readout) -> None:
    """Write the `readout.json` of a folder of predictions; none where nothing differs from the default.

    Args:
        folder: folder for the file, created if necessary.
        readout: read-out of the predictions.

    Raises:
        UserError: if the file cannot be written.
    """
    if not (readout.levels or readout.own_maps or readout.exclusive):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / READOUT_FILE, lambda path: path.write_text(json.dumps(readout.as_dict()) + "\n"))
    except OSError as error:
        raise UserError(f"{folder / READOUT_FILE}: cannot be written ({error.strerror}); free some space") from error


def write_prediction(
    folder: Path, sample: RaterSample, probabilities: Tensor, structures: tuple[str, ...], readout: Readout = MEMBERS
) -> None:
    """Write the probabilities of a case.

    Args:
        folder: folder for the files, created if necessary.
        sample: case that was predicted.
        probabilities: `[M + n, K, *S]` on the sample's grid, see `Readout`.
        structures: names of the K structures.
        readout: names of the maps behind the members.

    Raises:
        UserError: if a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if sample.affine is None:
            members = readout.count(len(probabilities))
            own = zip(readout.own_maps, probabilities[members:].numpy(), strict=True)
            arrays = {ARRAY: probabilities[:members].numpy(), **dict(own), STRUCTURES: np.array(structures, np.str_)}
            write_arrays(folder / f"{sample.case_id}.npz", arrays)
            return
        grid = Grid(tuple(sample.image.shape[1:]), sample.affine)
        channels = [*range(readout.count(len(probabilities))), *readout.own_maps]
        for channel, of_channel in zip(channels, probabilities, strict=True):
            for structure, volume in zip(structures, of_channel, strict=True):
                target = sample.origin or grid
                values = resample(volume.numpy(), grid.affine.numpy(), target, fill=0.0)
                image = nibabel.Nifti1Image(values, target.affine.numpy())
                image.header.set_xyzt_units("mm")
                nibabel.save(image, folder / nifti_name(sample.case_id, channel, structure))
    except OSError as error:
        raise UserError(f"{folder}: the prediction of {sample.case_id} cannot be written ({error.strerror})") from error
