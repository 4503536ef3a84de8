"""Distortions of images: what they change, by how much, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edue_lightning.distortions import KINDS, SEVERITIES, Distortions

RANDOM = {"noise"}


def image(*size: int, seed: int = 0, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, *[max(2, round(length / 3.3)) for length in size], generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode=mode)[0]
    return smooth + 0.1 * torch.rand(channels, *size, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(24, 20), (12, 14, 10)])
def test_shape_type_and_the_callers_image_and_random_state_stay(kind: str, size: tuple[int, ...]) -> None:
    clean = image(*size)
    before, state = clean.clone(), torch.random.get_rng_state()
    for severity in SEVERITIES:
        distorted = Distortions().apply(clean, kind, severity, key=5)
        assert distorted.shape == clean.shape
        assert distorted.dtype == torch.float32
        assert torch.isfinite(distorted).all()
        assert not torch.equal(distorted, clean)
    assert torch.equal(clean, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 40), (24, 21, 27)])
def test_severity_leads_away_from_the_clean_image(kind: str, size: tuple[int, ...]) -> None:
    clean = image(*size)
    # the mean over cases: the axis of a ghost is drawn anew for each severity
    distances = [
        sum(float((Distortions().apply(clean, kind, s, key) - clean).square().mean()) for key in range(12))
        for s in SEVERITIES
    ]
    assert distances == sorted(distances)
    assert distances[0] > 0


@given(kind=st.sampled_from(KINDS), severity=st.sampled_from(SEVERITIES), key=st.integers(0, 10**6))
def test_what_is_drawn_follows_from_the_key(kind: str, severity: int, key: int) -> None:
    clean = image(10, 12)
    first, again = (Distortions().apply(clean, kind, severity, key) for _ in range(2))
    assert torch.equal(first, again)
    if kind in RANDOM:
        assert not torch.equal(first, Distortions().apply(clean, kind, severity, key + 1))
        assert not torch.equal(first, Distortions(seed=1).apply(clean, kind, severity, key))


@given(st.sampled_from(KINDS), st.floats(0.1, 50), st.floats(-20, 20))
def test_strength_does_not_depend_on_the_normalisation(kind: str, scale: float, offset: float) -> None:
    clean = image(14, 12).double()
    plain = Distortions().apply(clean, kind, 3, key=1)
    scaled = Distortions().apply(scale * clean + offset, kind, 3, key=1)
    torch.testing.assert_close(scaled, scale * plain + offset, rtol=1e-6, atol=1e-6 * (scale + abs(offset)))


def test_known_values() -> None:
    clean = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    contrast = Distortions().apply(clean, "contrast", 3, key=0)
    torch.testing.assert_close(contrast, 1.75 + 0.5 * (clean - 1.75))
    gamma = Distortions().apply(clean, "gamma", 3, key=0)
    torch.testing.assert_close(gamma, 4 * (clean / 4) ** 2)


def test_noise_has_the_stated_spread() -> None:
    clean = image(200, 200, channels=1)
    added = Distortions().apply(clean, "noise", 2, key=3) - clean
    assert float(added.std() / clean.std()) == pytest.approx(0.2, rel=0.03)
    assert float(added.mean() / clean.std()) == pytest.approx(0, abs=0.01)


def test_blur_spreads_a_point_like_a_gaussian_of_the_stated_width() -> None:
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    spread = Distortions().apply(point, "blur", 3, key=0)[0]
    for row, column in ((20, 21), (22, 20), (23, 21)):
        distance = (row - 20) ** 2 + (column - 20) ** 2
        assert float(spread[row, column] / spread[20, 20]) == pytest.approx(
            math.exp(-distance / (2 * 1.2**2)), rel=1e-4
        )
    assert float(spread.sum()) == pytest.approx(1, rel=1e-5)


def test_resolution_keeps_what_is_coarser_than_its_voxels() -> None:
    steps = torch.arange(4).repeat_interleave(12).float()
    clean = steps[None, :, None].expand(1, 48, 48).contiguous()
    found = Distortions().apply(clean, "resolution", 2, key=0)
    inner = [i for i in range(48) if i % 12 in range(3, 9)]
    torch.testing.assert_close(found[:, inner], clean[:, inner])


def test_ghosts_are_shifted_copies() -> None:
    point = torch.zeros(1, 30, 30)
    point[0, 4, 7] = 1
    distorted = Distortions().apply(point, "ghosting", 3, key=0)
    places = {tuple(place) for place in torch.nonzero(distorted[0] > 0.3).tolist()}
    along_rows, along_columns = {(4, 7), (14, 7), (24, 7)}, {(4, 7), (4, 17), (4, 27)}
    assert places in (along_rows, along_columns)


def test_kinds_are_dealt_in_turn_and_change_with_severity() -> None:
    distortions = Distortions()
    dealt = [distortions.kind_of(position, 2) for position in range(10)]
    assert sorted(dealt) == sorted(distortions.kinds * 2)
    assert len({distortions.kind_of(4, severity) for severity in SEVERITIES}) == 5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"kinds": ["noise", "fog"]}, "fog"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["blur", "blur"]}, "blur"),
        ({"severities": [0, 1]}, "severities"),
        ({"severities": [6]}, "6"),
        ({"severities": [1.0]}, "1.0"),
        ({"seed": -1}, "-1"),
        ({"seed": 0.5}, "0.5"),
    ],
)
def test_senseless_settings_are_refused(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Distortions(**options)


def test_a_constant_image_stays_finite() -> None:
    for kind in KINDS:
        distorted = Distortions().apply(torch.full((1, 8, 8), 3.0), kind, 5, key=0)
        torch.testing.assert_close(distorted, torch.full((1, 8, 8), 3.0))
