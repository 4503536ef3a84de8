"""Predictions of structures that exclude each other: masks on the voxels of files, and the Dice behind the flags."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_parts import parts_of, small_network
from torch import Tensor

from edue_lightning.data.preparation import PreparedImage
from edue_lightning.data.sample import RaterSample
from edue_lightning.evaluation.measure import mask_fingerprints
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods import SingleNetwork
from edue_lightning.metrics import MetricSettings
from edue_lightning.networks import HeadLayout
from edue_lightning.prediction.case_maps import case_maps
from edue_lightning.prediction.estimate import estimate
from edue_lightning.prediction.outputs import _masks
from edue_lightning.prediction.triage import _measure
from edue_lightning.uncertainty import MaskRule, reached


class Fixed(SingleNetwork):
    """A network with the logits of its constructor for all images."""

    def __init__(self, logits: Tensor) -> None:
        loss = SegmentationLoss(exclusive=True)
        super().__init__(parts_of(small_network, ("disc", "cup"), loss=loss, exclusive=True), HeadLayout("last"))
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.expand(len(image), -1, -1, -1, -1)


def plural_sample() -> RaterSample:
    """Return a case in whose left half no structure has half of the raters, and most of them say `disc`."""
    masks = torch.zeros(5, 2, 4, 6, dtype=torch.uint8)
    masks[:2, 0, :, :3] = 1
    masks[2, 1, :, :3] = 1
    # two raters say nothing; then the background has as many as the disc
    masks[3, 0, 0, 0] = 1
    return RaterSample(torch.rand(3, 4, 6), masks, torch.ones(5, dtype=torch.bool), "one")


def test_flags_rest_on_the_dice_with_the_class_of_most_raters() -> None:
    logits = torch.full((1, 1, 2, 4, 6), -5.0)
    logits[:, :, 0, :, :3] = 5.0
    method, sample = Fixed(logits).eval(), plural_sample()
    # as many raters for the background as for the disc, but in one pixel
    assert _measure(method, sample, MetricSettings()).dice.tolist() == [1.0, 1.0]
    strict = _measure(method, sample, MetricSettings(majority_tie="background"))
    assert strict.dice.tolist() == [pytest.approx(2 / 13), 1.0]


def test_cases_whose_majority_depends_on_exclusion_are_not_compared_with_others() -> None:
    sample = plural_sample()
    plain, exclusive = mask_fingerprints(sample), mask_fingerprints(sample, "foreground")
    assert plain[0] != exclusive[0]
    # no rater's cup is the majority in either way
    assert plain[1] == exclusive[1]
    # where every mask has half of the raters or none, runs of both kinds have the same majority
    agreed = replace(sample, masks=sample.masks[:1].expand(5, -1, -1, -1).contiguous())
    assert mask_fingerprints(agreed) == mask_fingerprints(agreed, "foreground")


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_masks_do_not_overlap_on_the_voxels_of_the_file_either(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    method = Fixed(torch.randn(1, 1, 2, 12, 12, generator=generator)).eval()
    rule = MaskRule("validation", thresholds={"disc": threshold, "cup": threshold})
    method.readout = replace(method.readout, mask=rule)
    image = torch.rand(3, 12, 12)
    found = estimate(method, image)
    assert found.exclusive
    assert found.mask.sum(dim=0).max() == 1
    prepared = PreparedImage(image, None, None, (24, 24), None)
    masks = np.stack(_masks(prepared, found))
    assert masks.shape == (2, 24, 24)
    assert masks.sum(axis=0).max() == 1
    assert masks.any(axis=(1, 2)).all()
    alone = np.stack([prepared.on_file(values) >= threshold for values in found.decision])
    assert (alone.sum(axis=0).max() > 1) == (threshold < 0.5)
    # between two structures, no gap opens
    assert (masks.any(axis=0) == alone.any(axis=0)).all()
    shown = case_maps(PreparedImage(image, None, None, (12, 12), None), found)
    for k, maps in enumerate(shown):
        np.testing.assert_array_equal(reached(maps.decision, maps.threshold), found.mask[k].numpy())
