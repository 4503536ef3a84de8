"""Maps and scores of one image, against those that the metrics take from all members at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from method_parts import parts_of
from torch import Tensor

from edue_lightning.exporting.graph import ImageEstimate, MemberMaps
from edue_lightning.methods import Inference, SegmentationMethod
from edue_lightning.metrics import case_statistics
from edue_lightning.prediction.estimate import estimate
from edue_lightning.uncertainty import (
    CASE_SCORES,
    MAPS,
    MASK_SCORES,
    MaskRule,
    Readout,
    foreground,
    member_variance,
    total_variance,
)


class Given(SegmentationMethod):
    """A method whose members' logits are given multiples of the image's first channel."""

    def __init__(self, factors: Tensor, inference: Inference | None = None) -> None:
        structures = tuple(map(str, range(factors.shape[1])))
        super().__init__(parts_of(structures=structures, inference=inference or Inference()))
        self.factors = factors

    label = "given"

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :1, None] * self.factors.reshape(*self.factors.shape, *[1] * (image.ndim - 2))

    def training_loss(self, batch: object) -> dict[str, Tensor]:
        raise NotImplementedError


def random_method(members: int, structures: int, inference: Inference) -> Given:
    generator = torch.Generator().manual_seed(members)
    return Given(torch.randn(members, structures, generator=generator) * 2, inference)


@pytest.mark.parametrize("window", [None, (5, 6, 4)])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_maps_and_scores_are_those_of_the_metrics(members: int, window: Sequence[int] | None) -> None:
    method = random_method(members, 2, Inference(window, overlap=0.5, batch_size=2))
    image = torch.randn(1, 1, 11, 9, 7, generator=torch.Generator().manual_seed(0))
    found = estimate(method, image[0], voxel_size=1.5 * 0.7 * 3)
    logits = method(image)
    masks = torch.zeros(1, 2, 2, 11, 9, 7, dtype=torch.uint8)
    expected = case_statistics(logits, masks, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1.5, 0.7, 3.0]]))
    for name, values in found.scores.items():
        torch.testing.assert_close(
            values,
            expected[name][0].double(),
            rtol=1e-4,
            atol=1e-5,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    probabilities = logits.sigmoid()
    torch.testing.assert_close(found.probability, probabilities.mean(dim=1)[0])
    variance = member_variance(probabilities) if members > 1 else total_variance(probabilities)
    torch.testing.assert_close(found.disagreement, variance[0], rtol=1e-4, atol=1e-6)
    own = (probabilities[0] >= 0.5).flatten(2).sum(dim=2) * 1.5 * 0.7 * 3
    torch.testing.assert_close(found.member_areas, own.double(), rtol=1e-5, atol=0)
    assert found.members == members
    assert torch.equal(found.mask, found.probability >= 0.5)


@pytest.mark.parametrize("window", [None, (5, 6)])
def test_equal_members_have_exactly_no_mutual_information(window: Sequence[int] | None) -> None:
    method = Given(torch.full((3, 2), 0.7), Inference(window, overlap=0.5, batch_size=2))
    image = torch.randn(1, 1, 11, 9, generator=torch.Generator().manual_seed(0))
    for scores in (estimate(method, image[0]).scores, ImageEstimate(method)(image)):
        for name in ("mutual_information", "sv"):
            assert scores[name].flatten().tolist() == [0, 0]


def test_an_empty_mask_has_no_score_by_size() -> None:
    found = estimate(Given(torch.tensor([[-1.0], [-2.0]])), torch.ones(1, 6, 6))
    assert not found.mask.any()
    assert float(found.scores["predicted_area"]) == 0
    assert found.scores["sv_normalised"].isnan().all()
    assert found.scores["sv"] > 0


@pytest.mark.parametrize("logits", [(20.0, -22.0), (20.0, -20.5), (1.3, -1.3), (-1e-7, -1e-7), (0.4, 0.1, -0.50037)])
def test_masks_are_those_of_tables_and_exported_graphs(logits: tuple[float, ...]) -> None:
    method = Given(torch.tensor(logits)[:, None])
    # many values near one half, which each rounding would put on another side
    image = 1 + 1e-7 * torch.arange(-50, 50).reshape(1, 10, 10)
    members = method(image[None])
    table = case_statistics(members, torch.ones(1, 1, 1, 10, 10), torch.ones(1, 1) > 0)
    found = estimate(method, image)
    graph = ImageEstimate(method)(image[None])
    parts = MemberMaps(1)(members.flatten(1, 2))
    assert torch.equal(graph["probability"][0], found.probability)
    assert torch.equal(parts["probability"][0], found.probability)
    for name in MASK_SCORES:
        expected = table[name][0]
        if name in ("sv_total_normalised", "soft_dice_confidence"):
            # sums of probabilities, in float32 and in float64
            for part in (found.scores[name], graph[name][0]):
                torch.testing.assert_close(part, expected, rtol=1e-6, atol=0, equal_nan=True)
        elif name != "sv_normalised":
            torch.testing.assert_close(found.scores[name], expected, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(graph[name][0], expected, rtol=0, atol=0, equal_nan=True)
    assert float(found.mask.sum()) == float(table["predicted_area"])
    assert torch.equal(foreground(found.probability), found.probability >= 0.5)
    assert found.probability.dtype == torch.float32


@pytest.mark.parametrize("window", [None, (5, 6, 4)])
@pytest.mark.parametrize("own_maps", [(), ("decision",), MAPS])
def test_other_read_outs_are_the_same_everywhere(own_maps: tuple[str, ...], window: Sequence[int] | None) -> None:
    method = random_method(4 + len(own_maps), 2, Inference(window, overlap=0.5, batch_size=2))
    method.factors[:4] = method.factors[:4].sort(dim=0, descending=True).values
    method.readout = readout = Readout(levels=True, own_maps=own_maps)
    # positive, so that the levels descend
    image = torch.rand(1, 1, 11, 9, 7, generator=torch.Generator().manual_seed(0))
    found = estimate(method, image[0])
    logits = method(image)
    table = case_statistics(logits, torch.zeros(1, 2, 2, 11, 9, 7), torch.ones(1, 2, dtype=torch.bool), readout=readout)
    graph, parts = ImageEstimate(method)(image), MemberMaps(2, readout)(logits.flatten(1, 2))
    channels = logits.double().sigmoid()
    assert found.members == 4
    assert found.has_disagreement
    for name in MAPS:
        own = getattr(found, name)
        torch.testing.assert_close(own, getattr(readout, name)(channels)[0].float(), rtol=1e-4, atol=1e-6)
        for exported in (graph[name], parts[name]):
            torch.testing.assert_close(own, exported[0], rtol=1e-4, atol=1e-6)
    # windows are averaged with rounding, so only voxels that it cannot move are compared
    decision = readout.decision(channels)[0]
    decided = (decision - 0.5).abs() > 1e-5
    assert torch.equal(found.mask[decided], foreground(decision)[decided])
    for name in CASE_SCORES:
        for other in (table[name][0], graph[name][0]):
            torch.testing.assert_close(found.scores[name], other, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("rule", [MaskRule("validation", thresholds={"0": 0.3, "1": 0.7}), MaskRule("expected_dice")])
def test_scores_of_a_mask_by_another_rule_are_those_of_tables(rule: MaskRule, exclusive: bool) -> None:
    method = random_method(3, 2, Inference())
    method.readout = readout = Readout(exclusive=exclusive, mask=rule)
    image = torch.randn(1, 1, 12, 10, generator=torch.Generator().manual_seed(0))
    found = estimate(method, image[0])
    masks, valid = torch.zeros(1, 2, 2, 12, 10), torch.ones(1, 2, dtype=torch.bool)
    table = case_statistics(readout.log_odds(method(image)), masks, valid, readout=readout)
    exported = ImageEstimate(method)(image) if rule.rule == "validation" else {}
    for name in CASE_SCORES:
        torch.testing.assert_close(found.scores[name], table[name][0], rtol=1e-5, atol=1e-6, equal_nan=True)
        if exported:
            torch.testing.assert_close(exported[name][0], table[name][0], rtol=1e-5, atol=1e-6, equal_nan=True)
