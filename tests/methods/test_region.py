"""The region of a case in the training and the measurement of every method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_parts import STRUCTURES, parts_of

from edue_lightning import methods
from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus
from edue_lightning.losses import VarianceGuidance
from edue_lightning.methods import (
    EDUE,
    DeepEnsemble,
    LayerEnsemble,
    Measuring,
    MonteCarloDropout,
    ProbabilisticUNet,
    SegmentationMethod,
    SingleNetwork,
    StochasticSegmentation,
)
from edue_lightning.metrics import CaseTable, case_statistics
from edue_lightning.networks import HeadLayout


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24), batch_size=4)
    whole = next(iter(data.train_dataloader()))
    region = torch.zeros(4, 24, 24, dtype=torch.bool)
    region[:, :, 4:16] = True
    return replace(whole, region=region)


METHODS: dict[str, SegmentationMethod] = {
    "edue": EDUE(parts_of(), HeadLayout("decoder", per_stage=2), VarianceGuidance(5.0), mean_weight=1.0),
    "layer_ensemble": LayerEnsemble(parts_of(), HeadLayout("encoder+decoder")),
    "deep_ensemble": DeepEnsemble(parts_of(), HeadLayout("last"), members=2),
    "mc_dropout": MonteCarloDropout(parts_of(), HeadLayout("last")),
    "single_soft_majority": SingleNetwork(parts_of(), HeadLayout("last"), target="soft_majority"),
    "probabilistic_unet": ProbabilisticUNet(parts_of()),
    "stochastic_segmentation": StochasticSegmentation(parts_of(), warm_up_epochs=0),
    "test_time_augmentation": methods.TestTimeAugmentation(parts_of(), HeadLayout("last")),
}


@pytest.mark.parametrize("name", METHODS)
def test_no_mask_outside_of_the_region_reaches_a_loss(name: str, batch: RaterBatch) -> None:
    assert batch.region is not None
    outside = ~batch.region[:, None, None]
    other = replace(batch, masks=torch.where(outside, 1 - batch.masks, batch.masks))
    for trainee in METHODS[name].trainees():
        losses = []
        for one in (batch, other, replace(other, region=None)):
            torch.manual_seed(0)
            losses.append({part: value.item() for part, value in trainee.training_loss(one).items()})
        within, changed, everywhere = losses
        assert changed == within
        assert everywhere["loss"] != within["loss"]


def test_measuring_passes_the_region_on(batch: RaterBatch) -> None:
    measuring = Measuring(SingleNetwork(parts_of(), HeadLayout("last")).eval(), CaseTable(STRUCTURES))
    with torch.inference_mode():
        logits = measuring.test_step(batch, 0)
    found = measuring.table.cases().statistics
    names = ("dice", "sv_star", "nll", "predicted_area")
    order = batch.case_index.argsort()
    parts = (part[order] for part in (logits, batch.masks, batch.valid, batch.spacing))
    expected = case_statistics(*parts, STRUCTURES, names=names, region=batch.region)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], equal_nan=True)
