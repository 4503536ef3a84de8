"""Measurement of all methods alike: every metric over the cases of a split, and the maps of a few cases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from edue_lightning.data import CaseSource, RaterDataModule, RaterSample, collate_samples
from edue_lightning.data.identity import content_of
from edue_lightning.data.source import Subset
from edue_lightning.evaluation.prediction_folder import PredictionFolder
from edue_lightning.evaluation.result import Evaluation
from edue_lightning.losses import within
from edue_lightning.methods import Density, Measuring, SegmentationMethod
from edue_lightning.metrics import CaseTable, MetricSettings
from edue_lightning.metrics.thresholds import BestThresholds
from edue_lightning.reporting.data_overview import volume_unit
from edue_lightning.reporting.panels import (
    Panel,
    choose_panel_cases,
    displayable,
    most_disputed_slice,
    radiological,
    radiological_slice,
    view_window,
)
from edue_lightning.runtime.devices import on_device
from edue_lightning.runtime.processes import is_first_process, merged
from edue_lightning.uncertainty import (
    Readout,
    Tie,
    largest_alone,
    majority,
    map_sums,
    plurality,
    rater_mean,
    rater_variance,
    score_maps,
    sum_of_variances,
)

ProbabilitiesOf = Callable[[int], Tensor]
"""Probabilities `[M + n, K, *S]` of the case at a position of the split, see `Readout`."""


@dataclass(frozen=True)
class Measurement:
    """Settings of a measurement.

    Attributes:
        label: name of the method in tables.
        split: split whose cases are measured.
        settings: settings of the metrics.
        resamples: number of bootstrap resamples behind each interval.
        figures: whether to keep the maps of a few cases, and to draw figures of them and of all cases.
    """

    label: str
    split: Subset
    settings: MetricSettings
    resamples: int
    figures: bool = True


def measure_method(
    method: SegmentationMethod,
    data: RaterDataModule,
    measurement: Measurement,
    trainer: pl.Trainer,
    density: Density | None = None,
    thresholds: BestThresholds | None = None,
) -> Evaluation:
    """Measure a trained method on the trainer's devices; every process gets the values of all cases.

    Args:
        method: trained method.
        data: data module with the cases.
        measurement: settings of the measurement.
        trainer: trainer that runs the predictions.
        density: density of the method's training images, or None.
        thresholds: search for thresholds that receives the cases in the same pass, or None.
    """
    split = measurement.split
    table = CaseTable(method.structures, settings=measurement.settings, readout=method.readout)
    measuring = Measuring(method, table, density, thresholds)
    trainer.test(measuring, dataloaders=data.evaluation_dataloader(split), verbose=False)
    distances = None if density is None else merged(measuring.distances)

    @torch.inference_mode()
    def probabilities_of(position: int) -> Tensor:
        method.eval()
        image = data.single_batch(split, position).image.to(method.device)
        with trainer.precision_plugin.forward_context():
            logits = method.predict(image)
        return torch.sigmoid(logits.double())[0].cpu()

    samples = data.dataset(split).samples
    with on_device(method, trainer.strategy.root_device):
        return _evaluation(table, data, measurement, probabilities_of, lambda position: samples[position], distances)


def measure_predictions(predictions: PredictionFolder, data: RaterDataModule, measurement: Measurement) -> Evaluation:
    """Measure predictions of any model, read from a folder, with one case in memory at a time.

    Args:
        predictions: folder of predictions, checked by `PredictionFolder.check`.
        data: data module with the cases.
        measurement: settings of the measurement.
    """
    table = CaseTable(
        data.source.structures,
        settings=measurement.settings,
        contents="probabilities",
        readout=predictions.readout,
    )

    def probabilities_of(position: int) -> Tensor:
        return predictions.load(data.sample(measurement.split, position))

    for position in range(len(data.records(measurement.split))):
        sample = data.sample(measurement.split, position)
        batch = collate_samples([sample], [position], [0])
        members = predictions.load(sample)[None]
        table.update(members, batch.masks, batch.valid, batch.spacing, batch.case_index, batch.region)
    return _evaluation(
        table, data, measurement, probabilities_of, lambda position: data.sample(measurement.split, position)
    )


def _evaluation(
    table: CaseTable,
    data: RaterDataModule,
    measurement: Measurement,
    probabilities_of: ProbabilitiesOf,
    sample_of: Callable[[int], RaterSample],
    distances: Mapping[int, float] | None = None,
) -> Evaluation:
    positions, cases = table.cases()
    records = [data.records(measurement.split)[i] for i in positions.tolist()]
    groups = [record.group for record in records]
    summary = table.summary(measurement.resamples, groups)
    panels: list[Panel] = []
    found: list[tuple[list[str], str, str]] | None = None
    # only the first process writes them
    if is_first_process():
        samples = (sample_of(i) for i in positions.tolist())
        tie = measurement.settings.majority_tie if table.readout.exclusive else None
        found = [(mask_fingerprints(sample, tie), content_of(sample), unit_of(sample)) for sample in samples]
    if is_first_process() and measurement.figures:
        panels = _panels(data, measurement, positions, cases["sv_star"], probabilities_of, table.readout)
    return Evaluation(
        label=measurement.label,
        data=data.name,
        split=measurement.split,
        structures=table.structures,
        case_ids=[record.case_id for record in records],
        groups=groups,
        cases=cases,
        summary=summary,
        settings=measurement.settings,
        panels=panels,
        members=table.members,
        note=data.note,
        fingerprints=None if found is None else [masks for masks, _, _ in found],
        image_fingerprints=None if found is None else [image for _, image, _ in found],
        units=None if found is None else [unit for _, _, unit in found],
        figures=measurement.figures,
        density=None if distances is None else [distances[i] for i in positions.tolist()],
    )


def unit_of(sample: RaterSample) -> str:
    """Return the unit of a case's areas, volumes and sums over the image."""
    return volume_unit(sample.image.ndim - 1, sample.spacing is not None)


def mask_fingerprints(sample: RaterSample, exclusive_tie: Tie | None = None) -> list[str]:
    """Return a digest of the valid raters' masks on their grid, and of the region, for each structure, `[K]`.

    Runs are compared case by case only if their cases have the same digests.

    Args:
        sample: the case.
        exclusive_tie: setting `majority_tie` for structures that exclude each other, whose soft-majority mask is part
            of the digest where it differs from that of structures that may overlap; None for those.
    """
    spacing = sample.spacing and [f"{length:.6g}" for length in sample.spacing]
    grid = f"{tuple(sample.masks.shape[2:])} {spacing} {sample.valid.tolist()}"
    masks = sample.masks[sample.valid].to(torch.uint8).cpu().numpy()
    shared = grid.encode() + (b"" if sample.region is None else sample.region.cpu().numpy().tobytes())
    agreed = [b""] * masks.shape[1]
    if exclusive_tie is not None:
        share = rater_mean(sample.masks[None], sample.valid[None])
        own = plurality(share, exclusive_tie, dim=1)[0]
        other = majority(share, exclusive_tie)[0]
        agreed = [b"" if torch.equal(*pair) else pair[0].numpy().tobytes() for pair in zip(own, other, strict=True)]
    digests = (hashlib.sha256(shared + masks[:, k].tobytes() + part) for k, part in enumerate(agreed))
    return [digest.hexdigest()[:12] for digest in digests]


def _panels(
    data: RaterDataModule,
    measurement: Measurement,
    positions: Tensor,
    sv_star: Tensor,
    probabilities_of: ProbabilitiesOf,
    readout: Readout,
) -> list[Panel]:
    """Return the panels of all structures, structure by structure; each case is predicted once."""
    chosen = [
        (structure, int(positions[case]))
        for structure in range(sv_star.shape[1])
        for case in choose_panel_cases(sv_star[:, structure].cpu().numpy())
    ]
    panels: dict[tuple[int, int], Panel] = {}
    for position in dict.fromkeys(position for _, position in chosen):
        sample = data.sample(measurement.split, position)
        probabilities = probabilities_of(position)
        for structure, of_case in chosen:
            if of_case == position:
                tie = measurement.settings.majority_tie
                panels[structure, position] = _panel(data.source, sample, structure, probabilities, readout, tie)
    return [panels[key] for key in chosen]


def _panel(
    source: CaseSource, sample: RaterSample, structure: int, probabilities: Tensor, readout: Readout, majority_tie: Tie
) -> Panel:
    batch = collate_samples([sample], [0], [0])
    of_structure = probabilities[None, :, structure : structure + 1]
    model = score_maps(of_structure, readout)
    decisions = readout.decision(probabilities[None].double())
    inside = within(decisions[:, structure : structure + 1], batch.region)[0]
    threshold = readout.mask.of_image(inside, (source.structures[structure],))
    if readout.exclusive:
        decisions = largest_alone(decisions, dim=1)
    decision = within(decisions[:, structure : structure + 1], batch.region)
    disagreement = within(readout.disagreement(of_structure.float()), batch.region)
    probability = within(readout.probability(of_structure.double()), batch.region)
    expert = rater_variance(batch.masks[:, :, structure : structure + 1], batch.valid)
    maps = {
        "image": batch.image[0].numpy(),
        "masks": batch.masks[0, batch.valid[0], structure].numpy(),
        "rater_variance": expert[0, 0].numpy(),
        "member_variance": disagreement[0, 0].numpy(),
        "mean_probability": probability[0, 0].float().numpy(),
        "decision": decision[0, 0].float().numpy(),
    }
    if readout.exclusive:
        share = rater_mean(batch.masks, batch.valid)
        maps["agreed"] = plurality(share, majority_tie, dim=1)[0, structure].numpy()
    if source.spatial_dims == 3:
        if sample.affine is not None:
            affine = sample.affine.numpy()
            maps = {name: radiological(values, affine) for name, values in maps.items()}
        shown = most_disputed_slice(maps["rater_variance"])
        maps = {name: np.take(values, shown, axis=values.ndim - 3) for name, values in maps.items()}
    else:
        maps = {name: radiological_slice(values, source.storage) for name, values in maps.items()}
    rows, columns = view_window(maps["masks"].max(axis=0))
    maps = {name: values[..., rows, columns] for name, values in maps.items()}
    voxel_size = batch.spacing.prod(dim=1)
    sums = {
        name: float(total) * float(voxel_size)
        for name, total in map_sums({name: within(part, batch.region) for name, part in model.items()}).items()
    }
    return Panel(
        case_id=sample.case_id,
        structure=source.structures[structure],
        # undefined for a single network
        sv=sums["sv"],
        sv_star=sum_of_variances(expert, voxel_size)[0, 0].item(),
        sv_total=sums["sv_total"],
        threshold=float(threshold),
        majority_tie=majority_tie,
        **{**maps, "image": displayable(maps["image"])},
    )
