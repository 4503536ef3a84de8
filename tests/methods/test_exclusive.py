"""Methods on structures that exclude each other: targets, losses, probabilities of whole images, and temperature."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from method_parts import loss_before_and_after
from torch import Tensor, nn

from edue_lightning.data.preparation import Stacked
from edue_lightning.data.sample import RaterBatch
from edue_lightning.data.slices import SliceLayout
from edue_lightning.losses import Focal, SegmentationLoss, Tversky, VarianceGuidance
from edue_lightning.methods import (
    EDUE,
    DeepEnsemble,
    EDUELevels,
    Inference,
    LayerEnsemble,
    LevelEnsemble,
    MethodParts,
    MonteCarloDropout,
    OptimizerSettings,
    ProbabilisticUNet,
    SegmentationMethod,
    SingleNetwork,
    SliceBySlice,
    StochasticSegmentation,
    TestTimeAugmentation,
)
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import HeadLayout, MultiHeadUNet
from edue_lightning.training.temperature import _Searching
from edue_lightning.uncertainty import exclusive_log_odds

STRUCTURES = ("a", "b", "c")


def parts(dims: int = 2, window: tuple[int, ...] | None = None, **options: object) -> MethodParts:
    def network(heads: HeadLayout) -> MultiHeadUNet:
        return MultiHeadUNet(dims, 1, 3, heads, features=(4, 6), foreground_prior=0.5)

    settings = {"loss": SegmentationLoss(exclusive=True), "optimizer": OptimizerSettings(), **options}
    return MethodParts(network, STRUCTURES, inference=Inference(window, overlap=0.5), exclusive=True, **settings)


METHODS: dict[str, Callable[[MethodParts], SegmentationMethod]] = {
    "single": lambda made: SingleNetwork(made, HeadLayout("last")),
    "deep_ensemble": lambda made: DeepEnsemble(made, HeadLayout("last"), members=2, target="rater_per_member"),
    "layer_ensemble": lambda made: LayerEnsemble(made, HeadLayout("encoder+decoder"), target="soft_majority"),
    "mc_dropout": lambda made: MonteCarloDropout(made, HeadLayout("last"), samples=3),
    "test_time_augmentation": lambda made: TestTimeAugmentation(made, HeadLayout("last")),
    "edue": lambda made: EDUE(made, HeadLayout("decoder", per_stage=2), VarianceGuidance(5.0), mean_weight=2.0),
    "stochastic_segmentation": lambda made: StochasticSegmentation(made, 2, 3, training_samples=4, warm_up_epochs=0),
    "probabilistic_unet": lambda made: ProbabilisticUNet(made, samples=3, width=6),
    "edue_levels": lambda made: EDUELevels(made, levels=3),
    "edue_levels_mask": lambda made: EDUELevels(made, levels=3, mask_weight=1.0, dice_weight=0.0),
    "deep_ensemble_levels_mask": lambda made: LevelEnsemble(made, members=2, levels=3, mask_weight=1.0),
}


@pytest.fixture(autouse=True)
def _one_start() -> None:
    torch.manual_seed(0)


class Constant(nn.Module):
    """A network with the same logits for all images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits


def batch_of(dims: int, raters: int = 3) -> RaterBatch:
    """Return two cases of blocks of three classes, drawn in the image, with raters who differ along one axis."""
    size = (16, 12, 8)[:dims]
    drawn = torch.zeros(2, raters, *size, dtype=torch.int64)
    for case in range(2):
        for rater in range(raters):
            edge = 4 + rater + case
            drawn[case, rater, :edge, :6] = 1
            drawn[case, rater, edge:, :6] = 2
            drawn[case, rater, 2:6, 8:] = 3
    masks = torch.stack([drawn == k for k in (1, 2, 3)], dim=2).to(torch.uint8)
    image = drawn.float().mean(dim=1, keepdim=True) + 0.1 * torch.randn(2, 1, *size)
    return RaterBatch(
        image,
        masks,
        torch.tensor([[True] * raters, [True] * (raters - 1) + [False]]),
        torch.ones(2, dims),
        torch.arange(2),
        torch.tensor([11, 12]),
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_predicts_one_class_per_voxel(name: str, dims: int) -> None:
    method, batch = METHODS[name](parts(dims, window=(8,) * dims)), batch_of(dims)
    method.eval()
    with torch.no_grad():
        logits = method.predict(batch.image)
        # as a file is predicted
        slabs = torch.cat(list(method.slabs(batch.image)), dim=3)
    torch.testing.assert_close(logits, slabs)
    channels = logits.double().sigmoid()
    readout = method.readout
    members = readout.members(channels)
    shares = members.mean(dim=1, keepdim=True) if readout.levels else members
    assert shares.sum(dim=2).max() <= 1 + 1e-5
    decision = readout.decision(channels)
    masks = decision.float() >= 0.5
    assert masks.sum(dim=1).max() == 1
    assert masks.float().mean() > 0.02
    if not readout.own_maps:
        probability = readout.probability(channels)
        classes = torch.cat([probability, 1 - probability.sum(dim=1, keepdim=True)], dim=1).argmax(dim=1)
        agreement = torch.stack([classes == k for k in range(3)], dim=1) == masks
        # but for ties
        assert agreement.float().mean() > 0.999
    if not readout.levels:
        assert readout.member_masks(members).sum(dim=2).max() == 1
    for trainee in method.trainees():
        before, after = loss_before_and_after(trainee, batch)
        assert after < before


def test_windows_average_the_logits_of_the_softmax() -> None:
    method = METHODS["single"](parts(2, window=(8, 8))).eval()
    image = torch.randn(1, 1, 12, 8)
    with torch.no_grad():
        raw = Inference((8, 8), overlap=0.5)(method.network, image)
        torch.testing.assert_close(method.predict(image), exclusive_log_odds(raw, dim=2))


def test_the_members_of_an_ensemble_of_levels_are_averaged_as_probabilities() -> None:
    method, batch = METHODS["deep_ensemble_levels_mask"](parts()).eval(), batch_of(2)
    with torch.no_grad():
        raw = [member(batch.image) for member in method.members]
        found = method.predict(batch.image).sigmoid()
    levels = torch.stack([one[:, :3].sigmoid() for one in raw]).mean(dim=0)
    torch.testing.assert_close(found[:, :3], levels / levels.mean(dim=1).sum(dim=1).clamp_min(1)[:, None, None])
    masks = torch.stack([exclusive_log_odds(one[:, 3:], dim=2).sigmoid() for one in raw]).mean(dim=0)
    torch.testing.assert_close(found[:, 3:], masks)
    torch.testing.assert_close(method.readout.own_map(found, "decision"), masks[:, 0])


@pytest.mark.parametrize("target", ["majority", "soft_majority", "random_rater", "rater_per_member"])
def test_targets_give_each_voxel_to_one_class(target: str) -> None:
    batch = batch_of(2, raters=4)
    found = member_target(batch, target, member=1, exclusive=True)
    assert found.sum(dim=2).max() <= 1
    if target != "soft_majority":
        assert set(found.unique().tolist()) == {0.0, 1.0}


def test_the_majority_is_the_class_of_most_raters() -> None:
    # two raters say a, one b, one c, one nothing; then two a and two b of four
    votes = torch.tensor(
        [[[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]] * 2 + [[0] * 3]]
    )
    batch = RaterBatch(
        torch.zeros(2, 1, 1, 1),
        votes[..., None, None].to(torch.uint8),
        torch.tensor([[True] * 5, [True] * 4 + [False]]),
        torch.ones(2, 2),
        torch.arange(2),
        torch.arange(2),
    )
    assert member_target(batch, "majority", exclusive=True).flatten(1).tolist() == [[1, 0, 0], [1, 0, 0]]
    # each for itself: no structure has half of the raters; and both have it
    assert member_target(batch, "majority").flatten(1).tolist() == [[0, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("loss", [Tversky, Focal])
def test_losses_of_the_library_train_exclusive_structures(loss: type[nn.Module]) -> None:
    method, batch = METHODS["single"](parts(loss=loss(exclusive=True))), batch_of(2)
    before, after = loss_before_and_after(method, batch)
    assert after < before


def test_one_temperature_divides_the_logits_of_the_softmax() -> None:
    method, batch = METHODS["single"](parts()).eval(), batch_of(2)
    with torch.no_grad():
        raw = method.raw_logits(batch.image)
        method.set_temperature([2.0, 2.0, 2.0])
        torch.testing.assert_close(method.predict(batch.image), exclusive_log_odds(raw / 2, dim=2))


def test_the_fitted_temperature_is_the_one_that_made_the_logits_too_sure() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 3, 120, 120, generator=generator) * 1.5
    weights = torch.cat([torch.zeros(1, 1, 120, 120), logits[:, 0]], dim=1).softmax(dim=1)
    drawn = torch.multinomial(weights[0].flatten(1).T, 8, replacement=True, generator=generator).T.reshape(8, 120, 120)
    masks = torch.stack([drawn == k for k in (1, 2, 3)], dim=1).to(torch.uint8)[None]
    valid = torch.ones(1, 8, dtype=torch.bool)
    batch = RaterBatch(torch.zeros(1, 1, 120, 120), masks, valid, torch.ones(1, 2), torch.arange(1), torch.arange(1))
    method = METHODS["single"](parts())
    method.network = Constant(3 * logits)
    searching = _Searching(method)
    searching.test_step(batch, 0)
    found = searching.search.compute()
    assert found == [pytest.approx(3.0, rel=0.03)] * 3
    assert len(set(found)) == 1


def test_slices_of_a_volume_have_one_softmax() -> None:
    method = METHODS["edue"](parts(2)).eval()
    volume = torch.randn(1, 1, 5, 12, 8)
    sliced = SliceBySlice(method, Stacked(), SliceLayout("RAS"), batch_size=2).eval()
    with torch.no_grad():
        expected = torch.stack([method.predict(volume[:, :, at]) for at in range(5)], dim=3)
        torch.testing.assert_close(sliced.predict(volume), expected)
    assert sliced.exclusive
    assert sliced.readout.exclusive
