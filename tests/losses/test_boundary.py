"""The boundary loss: distances by brute force, the paper's meaning, known values, gradients, schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from method_parts import parts_of
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data import SyntheticFundus, collate_samples
from edue_lightning.errors import UserError
from edue_lightning.losses import Boundary, SegmentationLoss, VarianceGuidance, signed_distance
from edue_lightning.methods import EDUE, DeepEnsemble, EDUELevels, SingleNetwork
from edue_lightning.networks import HeadLayout
from edue_lightning.training.checks import check_loss


def by_brute_force(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the distance to the nearest voxel of the other class, negative inside, from all pairs of voxels."""
    places = np.argwhere(np.ones_like(mask)) * spacing
    flat = mask.ravel()
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    apart[flat[:, None] == flat[None]] = np.inf
    return (np.where(flat, -1, 1) * apart.min(axis=1)).reshape(mask.shape)


@pytest.mark.parametrize(
    ("size", "spacing"), [((9, 7), (1.0, 1.0)), ((9, 7), (0.5, 2.0)), ((5, 4, 6), (0.7, 0.7, 3.0))]
)
def test_signed_distances_are_those_of_all_pairs_of_voxels(size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    mask = np.random.default_rng(0).random(size) > 0.7
    np.testing.assert_allclose(signed_distance(mask, spacing), by_brute_force(mask, spacing), rtol=1e-6)
    for flat in (np.zeros(size, bool), np.ones(size, bool)):
        assert not signed_distance(flat, spacing).any()


def test_the_loss_is_the_mean_of_the_distance_times_the_error() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 2, 6, 5, generator=generator, dtype=torch.float64)
    target = (torch.rand(logits.shape, generator=generator) > 0.6).double()
    spacing = torch.tensor([[1.0, 2.0], [0.5, 0.5]])
    region = torch.rand(2, 6, 5, generator=generator) > 0.3
    loss = Boundary(start=0.25, structure_weights=[1, 3])
    found = loss(logits, target, region, spacing, epoch=0)
    regions = SegmentationLoss(structure_weights=[1, 3])(logits, target, region)
    for case in range(2):
        for member in range(3):
            parts = []
            for k in range(2):
                truth = target[case, member, k]
                phi = by_brute_force(truth.numpy() > 0, tuple(spacing[case].tolist()))
                error = torch.sigmoid(logits[case, member, k]) - truth
                parts.append((torch.from_numpy(phi) * error)[region[case]].mean())
            expected = 0.75 * regions[case, member] + 0.25 * (parts[0] + 3 * parts[1]) / 4
            torch.testing.assert_close(found[case, member], expected, rtol=1e-6, atol=1e-6)


def test_a_shifted_bar_has_a_known_value_in_mm() -> None:
    # columns 2 to 5 of 12, predicted one column to the right: column 2 is missed, column 6 is too much
    target, predicted = torch.zeros(2, 1, 1, 1, 4, 12)
    target[..., 2:6], predicted[..., 3:7] = 1, 1
    logits = (predicted - 0.5) * 80
    for spacing, size in ((None, 1.0), (torch.tensor([[1.0, 2.5]]), 2.5)):
        found = Boundary(weight=1.0, start=1.0)(logits, target, None, spacing)
        # both columns are one step from the other class
        assert float(found) == pytest.approx(2 * size / 12, rel=1e-5)
    assert float(Boundary(weight=1.0, start=1.0)((target - 0.5) * 80, target)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [(4, 4), (3, 3, 3)])
def test_gradients_are_right(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 2, 1, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(logits.shape, generator=generator) > 0.5).double()
    spacing = torch.tensor([[1.0, 2.0, 3.0][: len(size)]])
    loss = Boundary(weight=0.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, None, spacing), logits)
    # farther errors count more: the slope of a voxel is its distance times that of the sigmoid
    (slope,) = torch.autograd.grad(loss.distances(logits, target, None, spacing).sum(), logits)
    p = torch.sigmoid(logits)
    for member in range(2):
        phi = by_brute_force(target[0, member, 0].numpy() > 0, tuple(spacing[0].tolist()))
        expected = torch.from_numpy(phi) * (p * (1 - p))[0, member, 0] / p[0, member, 0].numel()
        torch.testing.assert_close(slope[0, member, 0], expected, rtol=1e-6, atol=1e-9)


def test_the_weight_grows_from_epoch_to_epoch_as_in_the_paper() -> None:
    loss = Boundary()
    assert [loss.current_weight(epoch) for epoch in (0, 1, 50, 99, 300)] == pytest.approx([0, 0.01, 0.5, 0.99, 0.99])
    logits, target = torch.randn(1, 1, 1, 5, 5), (torch.rand(1, 1, 1, 5, 5) > 0.5).float()
    regions, distances = SegmentationLoss()(logits, target), loss.distances(logits, target, None, None)
    assert torch.equal(loss(logits, target, epoch=0), regions)
    torch.testing.assert_close(loss(logits, target, epoch=50), 0.5 * regions + 0.5 * distances)
    kept = Boundary(weight=2.0, start=2.0, per_epoch=0.0, rebalance=False)
    torch.testing.assert_close(kept(logits, target, epoch=7), regions + 2 * distances)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.5}, "weight must be above 0 and at most 1 with rebalance, not 1.5"),
        ({"weight": 0.0, "rebalance": False}, "weight must be above 0, not 0.0"),
        ({"start": 1.0}, "start must be at least 0 and at most weight=0.99"),
        ({"per_epoch": -0.1}, "per_epoch must be at least 0"),
        ({"per_epoch": 0.0}, "the boundary loss never counts"),
        ({"structure_weights": [0.0, 1.0]}, "structure_weights must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Boundary(**settings)


def test_shares_of_raters_are_refused() -> None:
    with pytest.raises(ValueError, match="needs masks as targets"):
        Boundary(start=0.5)(torch.zeros(1, 1, 1, 4, 4), torch.full((1, 1, 1, 4, 4), 0.5))
    method = SingleNetwork(parts_of(loss=Boundary()), HeadLayout("last"), target="soft_majority")
    with pytest.raises(UserError, match="soft_majority: the loss Boundary is defined for masks"):
        check_loss(method)


@pytest.mark.parametrize("made", ["edue", "single", "levels", "ensemble"])
def test_a_training_step_takes_the_spacing_and_the_epoch_of_its_batch(made: str, monkeypatch: Any) -> None:
    source = SyntheticFundus(n_cases=2, size=32)
    batch = collate_samples([source.load(case.case_id) for case in source.cases()], [0, 1], [3, 4])
    parts = parts_of(loss=Boundary(start=0.5))
    method = {
        "edue": lambda: EDUE(parts, HeadLayout("decoder"), VarianceGuidance(1.0)),
        "single": lambda: SingleNetwork(parts, HeadLayout("last")),
        "levels": lambda: EDUELevels(parts, levels=3, mask_weight=1.0),
        "ensemble": lambda: DeepEnsemble(parts, HeadLayout("last"), members=2).trainees()[0],
    }[made]()
    monkeypatch.setattr(type(method), "current_epoch", 3, raising=False)

    def loss(of: Any) -> Tensor:
        torch.manual_seed(0)
        found: Tensor = method.training_loss(of)["loss"]
        return found

    first = loss(replace(batch, spacing=torch.ones(2, 2)))
    method.loss.start, method.loss.per_epoch = 0.53, 0.0
    torch.testing.assert_close(loss(replace(batch, spacing=torch.ones(2, 2))), first)
    assert float((loss(replace(batch, spacing=torch.full((2, 2), 3.0))) - first).abs()) > 1e-3
