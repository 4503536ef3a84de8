"""The region of a case: voxels outside of it count in no loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edue_lightning.losses import SegmentationLoss, VarianceGuidance, map_distance, mean_prediction_nll, voxel_mean
from edue_lightning.methods.stochastic_segmentation import negative_log_likelihood

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
VALID = torch.ones(2, 3) > 0


def guided(distance: str) -> Loss:
    guidance = VarianceGuidance(1.0, distance)  # type: ignore[arg-type]
    return lambda logits, masks, region: guidance(logits, masks, VALID, region)


LOSSES: dict[str, Loss] = {
    "segmentation": lambda logits, masks, region: SegmentationLoss()(logits, masks[:, :2], region),
    "cross-entropy": lambda logits, masks, region: SegmentationLoss(dice=0)(logits, masks[:, :2], region),
    "dice": lambda logits, masks, region: SegmentationLoss(cross_entropy=0)(logits, masks[:, :2], region),
    "mean": lambda logits, masks, region: mean_prediction_nll(logits, masks, VALID, region),
    "likelihood": lambda logits, masks, region: negative_log_likelihood(logits, masks[:, :1], region),
    **{distance: guided(distance) for distance in ("mse", "l1", "mse+l1", "ncc", "relative")},
}


def drawn(*size: int) -> tuple[Tensor, Tensor]:
    """Return logits of two members and masks of three raters, for two cases and two structures."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2, 2, 2, *size, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(2, 3, 2, *size, generator=generator) > 0.5).double()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [(7, 9), (4, 6, 5)])
def test_a_loss_within_a_box_is_that_of_the_box_cut_out(name: str, size: tuple[int, ...]) -> None:
    logits, masks = drawn(*size)
    box = tuple(slice(1, length - 1) for length in size)
    region = torch.zeros(2, *size, dtype=torch.bool)
    region[:, *box] = True
    logits.requires_grad_()
    loss = LOSSES[name](logits, masks, region)
    expected = LOSSES[name](logits.detach()[:, :, :, *box], masks[:, :, :, *box], None)
    torch.testing.assert_close(loss.detach(), expected)
    loss.sum().backward()
    assert logits.grad is not None
    outside = ~region[:, None, None].expand_as(logits)
    assert (logits.grad[outside] == 0).all()
    assert (logits.grad[~outside] != 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_regions_differ_between_the_cases_of_a_batch(name: str) -> None:
    logits, masks = drawn(6, 6)
    region = torch.ones(2, 6, 6, dtype=torch.bool)
    region[1, 3:] = False
    everywhere = LOSSES[name](logits, masks, None)
    torch.testing.assert_close(LOSSES[name](logits, masks, torch.ones_like(region)), everywhere)
    cut = LOSSES[name](logits[:, :, :, :3], masks[:, :, :, :3], None)
    found = LOSSES[name](logits, masks, region)
    if found.ndim == 0:
        torch.testing.assert_close(2 * found, _alone(name, 0, 6) + _alone(name, 1, 3))
    else:
        torch.testing.assert_close(found[0], everywhere[0])
        torch.testing.assert_close(found[1], cut[1])


def _alone(name: str, case: int, rows: int) -> Tensor:
    """Return the guidance of a single case's first rows."""
    logits, masks = (part[case : case + 1, :, :, :rows] for part in drawn(6, 6))
    return VarianceGuidance(1.0, name)(logits, masks, VALID[:1])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
def test_a_patch_without_a_voxel_inside_counts_nothing(name: str) -> None:
    logits, masks = drawn(5, 5)
    region = torch.zeros(2, 5, 5, dtype=torch.bool)
    logits.requires_grad_()
    loss = LOSSES[name](logits, masks, region).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad == 0).all()


def test_the_mean_over_a_region() -> None:
    values = torch.arange(12.0).reshape(1, 2, 2, 3)
    region = torch.tensor([[[True, False, False], [False, False, True]]])
    assert voxel_mean(values, region).tolist() == [(0 + 5 + 6 + 11) / 4]
    assert voxel_mean(values, None).tolist() == [5.5]


def test_maps_of_one_structure_and_more_are_averaged_alike() -> None:
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    region = torch.rand(2, 4, 4) > 0.4
    together = map_distance(maps, maps.flip(1), "mse", region)
    single = [map_distance(maps[:, k : k + 1], maps.flip(1)[:, k : k + 1], "mse", region) for k in range(3)]
    torch.testing.assert_close(together, torch.stack(single).mean(dim=0))
