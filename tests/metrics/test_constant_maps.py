"""A map, or a series over cases, that is constant but for rounding has no correlation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edue_lightning.metrics import CaseStatistics, case_statistics, summarise
from edue_lightning.metrics.correlation import weighted_pearson, weighted_spearman
from edue_lightning.uncertainty import Readout

PIXEL = ("pixel_pearson", "pixel_pearson_total", "pixel_s_ncc")
SIZES = [(65, 65), (33, 31), (7, 9), (9, 11, 13), (64, 64), (127, 3)]


def raters(size: tuple[int, ...]) -> Tensor:
    return torch.rand(1, 4, 1, *size, generator=torch.Generator().manual_seed(0)) > 0.6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("contents", ["logits", "probabilities"])
def test_constant_members_have_no_correlation_over_voxels(
    size: tuple[int, ...], dtype: torch.dtype, contents: str
) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    for scale in (0.1, 1.0, 8.0):
        logits = scale * torch.randn(1, 4, 1, *[1] * len(size), dtype=torch.float64, generator=generator)
        values = torch.sigmoid(logits) if contents == "probabilities" else logits
        members = values.to(dtype).expand(-1, -1, -1, *size).contiguous()
        found = case_statistics(members, raters(size), torch.ones(1, 4) > 0, contents=contents, names=PIXEL)
        for name in PIXEL:
            assert found[name].isnan().all(), (name, scale)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("contents", ["logits", "probabilities"])
def test_members_constant_up_to_a_few_roundings_have_none_either(
    size: tuple[int, ...], dtype: torch.dtype, contents: str
) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    for spread in (0.0, 1e-3, 1.0):
        logits = 0.7 + spread * torch.randn(1, 4, 1, *[1] * len(size), dtype=dtype, generator=generator)
        values = torch.sigmoid(logits) if contents == "probabilities" else logits
        noise = torch.rand(1, 4, 1, *size, dtype=dtype, generator=generator) - 0.5
        members = values * (1 + 4 * torch.finfo(dtype).eps * noise)
        found = case_statistics(members, raters(size), torch.ones(1, 4) > 0, contents=contents, names=PIXEL)
        for name in PIXEL:
            assert found[name].isnan().all(), (name, spread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_a_small_variation_above_rounding_counts(dtype: torch.dtype, scale: float) -> None:
    # p about 1e-4, as where a structure is absent, and a map that is known to be the raters' own
    mask = raters((65, 65))
    share = mask.double().mean(dim=1, keepdim=True)
    spread = (share * (1 - share)).sqrt()
    members = scale * (0.5 + 0.5 * torch.cat([-spread, spread], dim=1))
    found = case_statistics(members.to(dtype), mask, torch.ones(1, 4) > 0, contents="probabilities", names=PIXEL)
    assert float(found["pixel_pearson"]) == pytest.approx(1, abs=1e-3)
    sure = case_statistics(
        (-14 + members[:, 1:]).to(dtype), mask, torch.ones(1, 4) > 0, contents="logits", names=("pixel_pearson_total",)
    )
    assert not sure["pixel_pearson_total"].isnan().any()


@pytest.mark.parametrize("correlation", [weighted_pearson, weighted_spearman])
@pytest.mark.parametrize("noise", [0.0, 1e-16, 1e-12])
def test_a_constant_series_has_no_correlation_over_cases(correlation: object, noise: float) -> None:
    rng = np.random.default_rng(0)
    constant, other = 0.3 * (1 + noise * rng.normal(size=20)), rng.random(20)
    weights = np.ones((2, 20))
    for series in ((constant, other), (other, constant), (-constant, other)):
        assert np.isnan(correlation(*series, weights)).all()  # type: ignore[operator]
    assert not np.isnan(correlation(0.3 * (1 + 1e-6 * rng.normal(size=20)), other, weights)).any()  # type: ignore[operator]
    assert not np.isnan(correlation(1e-9 * other, other, weights)).any()  # type: ignore[operator]


def test_a_constant_variance_over_images_of_several_sizes_has_no_correlation_by_size() -> None:
    parts = []
    for edge in (63, 64, 65, 66, 67, 68):
        members = torch.tensor([0.7, 0.9]).reshape(1, 2, 1, 1, 1).expand(-1, -1, -1, edge, edge).contiguous()
        mask = torch.rand(1, 4, 1, edge, edge, generator=torch.Generator().manual_seed(edge)) > edge / 140
        parts.append(case_statistics(members, mask, torch.ones(1, 4) > 0, contents="probabilities"))
    values = {row.metric: row.value for row in summarise(CaseStatistics.concatenate(parts), ["a"]).rows}
    assert np.isnan(values["image_pearson_normalised"])
    assert np.isnan(values["image_spearman_normalised"])
    assert not np.isnan(values["image_pearson"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("contents", ["logits", "probabilities"])
def test_members_equal_but_for_rounding_have_no_correlation_over_cases(dtype: torch.dtype, contents: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 1, 1, 6, 6, dtype=dtype, generator=generator)
    first = torch.sigmoid(logits) if contents == "probabilities" else logits
    members = torch.cat([first, torch.nextafter(first, torch.ones((), dtype=dtype)), first], dim=1)
    masks = torch.rand(12, 4, 1, 6, 6, generator=generator) < 0.4
    found = case_statistics(members, masks, torch.ones(12, 4) > 0, contents=contents)
    assert (found["sv"] == 0).all()
    assert (found["mutual_information"] == 0).all()
    rows = {row.metric: row.value for row in summarise(found, ["n"]).rows}
    for name in ("image_pearson", "image_spearman", "image_pearson_normalised", "image_spearman_normalised"):
        assert np.isnan(rows[name]), name
    # a spread that rounding does not explain counts
    apart = torch.cat([first, first * (1 - 1e-3), first], dim=1)
    rows = {
        row.metric: row.value for row in summarise(case_statistics(apart, masks, torch.ones(12, 4) > 0), ["n"]).rows
    }
    assert np.isfinite(rows["image_pearson"])


@pytest.mark.parametrize(
    "readout", [Readout(), Readout(levels=True), Readout(own_maps=("probability", "disagreement"))]
)
@pytest.mark.parametrize("members", [2, 3, 5, 7])
def test_equal_members_are_tied_by_their_mutual_information(members: int, readout: Readout) -> None:
    generator = torch.Generator().manual_seed(members)
    logits = 3 * torch.randn(12, 1, 1, 9, 7, generator=generator)
    own = torch.randn(12, len(readout.own_maps), 1, 9, 7, generator=generator)
    given = torch.cat([logits.expand(-1, members, -1, -1, -1), own], dim=1)
    masks = torch.rand(12, 4, 1, 9, 7, generator=generator) < torch.rand(12, 1, 1, 1, 1, generator=generator)
    for contents in ("logits", "probabilities"):
        values = torch.sigmoid(given) if contents == "probabilities" else given
        found = case_statistics(values, masks, torch.ones(12, 4) > 0, contents=contents, readout=readout)
        assert (found["mutual_information"] == 0).all()
        rows = {row.metric: row.value for row in summarise(found, ["n"]).rows}
        # a score that says nothing has the risk of all cases at every coverage
        assert rows["aurc_mutual_information"] == pytest.approx(1 - float(found["dice"].mean()), abs=1e-12)
