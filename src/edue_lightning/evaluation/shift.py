"""Scores of a method on distorted images: the measurement behind out-of-distribution detection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from edue_lightning.data import RaterBatch, RaterDataModule
from edue_lightning.data.source import Subset
from edue_lightning.distortions import Distortions
from edue_lightning.methods import Density, SegmentationMethod
from edue_lightning.metrics import MetricSettings, case_statistics
from edue_lightning.runs.files import (
    CLEAN,
    DENSITY,
    DETECTION_COLUMNS,
    DETECTION_FILE,
    DISTORTED_CASES_COLUMNS,
    DISTORTED_CASES_FILE,
    DISTORTION_SCORES,
    IDENTITY,
    POOLED_SEVERITY,
    VALIDATION_DETECTION_FILE,
    write_table,
)
from edue_lightning.runs.tables import detection_table
from edue_lightning.runtime.devices import on_device

# in the order of the table's columns
DISTORTED_SCORES = tuple(
    name
    for name in dict.fromkeys((*DISTORTED_CASES_COLUMNS, *DISTORTION_SCORES))
    if name in {*DISTORTION_SCORES, "dice"}
)

_POSITION = "position"


@dataclass(frozen=True)
class Shift:
    """Scores of the clean and the distorted cases of a split.

    Attributes:
        label: name of the method in tables.
        data: name of the data set.
        split: split whose cases were measured.
        cases: one row per case, structure and severity: `case_id`, `structure`, `distortion` (`none` for the clean
            image), `severity` (0 for it), `DISTORTED_SCORES` and, if known, `density`.
    """

    label: str
    data: str
    split: Subset
    cases: pd.DataFrame

    def cases_frame(self) -> pd.DataFrame:
        """Return the content of `distorted_cases.csv`."""
        return self._identified(self.cases)

    def detection_frame(self) -> pd.DataFrame:
        """Return the content of `detection.csv`, see `detection_table`."""
        return self._identified(detection_table(self.cases))

    @rank_zero_only
    def write(self, folder: Path) -> None:
        """Write both tables into a run's folder."""
        write_table(self.cases_frame(), DISTORTED_CASES_COLUMNS, folder / DISTORTED_CASES_FILE)
        write_table(self.detection_frame(), DETECTION_COLUMNS, folder / DETECTION_FILE)

    @rank_zero_only
    def write_validation(self, folder: Path) -> None:
        """Write how well validation cases are detected, by which a report chooses read-outs and baselines."""
        write_table(self.detection_frame(), DETECTION_COLUMNS, folder / VALIDATION_DETECTION_FILE)

    def _identified(self, frame: pd.DataFrame) -> pd.DataFrame:
        identity = dict(zip(IDENTITY, (self.label, self.data, self.split), strict=True))
        return pd.concat([pd.DataFrame(identity, index=frame.index), frame], axis=1)


def measure_shift(
    method: SegmentationMethod,
    data: RaterDataModule,
    distortions: Distortions,
    label: str,
    split: Subset,
    settings: MetricSettings,
    trainer: pl.Trainer | None = None,
    density: Density | None = None,
) -> Shift:
    """Score each case of a split once undistorted, and once at each severity under one kind of distortion.

    The kinds are assigned to the cases in turn, see `Distortions.kind_of`. Each process of a distributed run measures
    its share of the cases, and gets all scores.

    Args:
        method: trained method; left in evaluation mode.
        data: data module with the cases.
        distortions: applied to the images; the masks are unchanged.
        label: name of the method in tables.
        split: split whose cases are measured.
        settings: settings of the metrics.
        trainer: trainer whose device and precision the predictions are made in; None for the method's device and full
            precision.
        density: density of the method's training images, or None.
    """
    method.eval()
    ids = [record.case_id for record in data.records(split)]
    with on_device(method, method.device if trainer is None else trainer.strategy.root_device):
        parts = [
            _scores(method, batch, kinds, ids, severity, settings, trainer, density)
            for severity in (POOLED_SEVERITY, *distortions.severities)
            for batch, kinds in _distorted(data, split, distortions, severity)
        ]
    cases = _of_all_processes(pd.concat(parts, ignore_index=True)).drop(columns=_POSITION)
    return Shift(label, data.name, split, cases)


def _scores(
    method: SegmentationMethod,
    batch: RaterBatch,
    kinds: list[str],
    ids: list[str],
    severity: int,
    settings: MetricSettings,
    trainer: pl.Trainer | None,
    density: Density | None,
) -> pd.DataFrame:
    """Return the rows of `Shift.cases` of a batch, and the position of each case in `ids` as `_POSITION`."""
    precision = nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
    with torch.inference_mode(), precision:
        image = batch.image.to(method.device)
        members = method.predict(image).cpu()
    distances = {} if density is None else {DENSITY: density(method, image).numpy()}
    found = case_statistics(
        members,
        batch.masks,
        batch.valid,
        batch.spacing,
        method.structures,
        settings=settings,
        names=DISTORTED_SCORES,
        region=batch.region,
        readout=method.readout,
    )
    positions = batch.case_index.tolist()
    cases = {_POSITION: positions, "case_id": [ids[position] for position in positions]}
    parts = []
    for k, structure in enumerate(method.structures):
        scores = {name: found[name][:, k].numpy() for name in DISTORTED_SCORES}
        rows = {**cases, "structure": structure, "distortion": kinds, "severity": severity, **scores, **distances}
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def _of_all_processes(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the cases of all processes in a fixed order, each once per severity."""
    frames: list[Any] = [cases]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        frames = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(frames, cases)
    # stable, so that the structures of a case stay in their order
    ordered = pd.concat(frames, ignore_index=True).sort_values(["severity", _POSITION], kind="stable")
    return ordered.drop_duplicates(["severity", _POSITION, "structure"], ignore_index=True)


def _distorted(
    data: RaterDataModule, split: Subset, distortions: Distortions, severity: int
) -> Iterator[tuple[RaterBatch, list[str]]]:
    """Yield the batches of a split at a severity (0: undistorted), with the kind of distortion of each case."""
    for batch in data.evaluation_dataloader(split):
        positions = batch.case_index.tolist()
        if severity == POOLED_SEVERITY:
            yield batch, [CLEAN] * len(positions)
            continue
        kinds = [distortions.kind_of(position, severity) for position in positions]
        images = [
            distortions.apply(image, kind, severity, position)
            for image, kind, position in zip(batch.image, kinds, positions, strict=True)
        ]
        yield replace(batch, image=torch.stack(images)), kinds
