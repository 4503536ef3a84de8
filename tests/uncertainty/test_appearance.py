"""Statistics of an image's appearance against a naive loop, and what they respond to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from edue_lightning.distortions import Distortions
from edue_lightning.uncertainty.appearance import appearance_statistics


def naive(image: np.ndarray) -> list[float]:
    """Return the statistics of one channel, `[*S]`, in the order of `appearance_statistics`."""

    def logarithm(value: float) -> float:
        return float(np.log(max(value, 1e-6)))

    values = [float(image.mean()), logarithm(image.std())]
    for step in (1, 2):
        spreads, sizes = [], []
        for axis, length in enumerate(image.shape):
            moved = np.moveaxis(image, axis, 0)
            if length > 2 * step:
                differences = np.stack(
                    [moved[i - step] - 2 * moved[i] + moved[i + step] for i in range(step, length - step)]
                )
                spreads.append(logarithm(differences.std()))
                sizes.append(logarithm(np.abs(differences).mean()))
        values += [float(np.mean(part)) if part else logarithm(0) for part in (spreads, sizes)]
    return values


@pytest.mark.parametrize("size", [(9, 7), (8, 6, 5), (4, 9), (2, 6, 3), (2, 2), (1, 1)])
def test_statistics_equal_those_of_a_loop(size: tuple[int, ...]) -> None:
    images = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(0))
    found = appearance_statistics(images)
    assert found.dtype == torch.float64
    for image, row in zip(images.numpy().astype(float), found, strict=True):
        expected = np.array([naive(channel) for channel in image]).T.flatten()
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_constant_and_coarse_images_have_finite_statistics() -> None:
    for image in (torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 1e5), torch.ones(1, 1, 8, 8, dtype=torch.float64)):
        assert torch.isfinite(appearance_statistics(image)).all()
    half = torch.rand(1, 1, 8, 8).half()
    assert torch.equal(appearance_statistics(half), appearance_statistics(half.float()))


@pytest.mark.parametrize(("kind", "column", "sign"), [("noise", 3, 1), ("blur", 3, -1), ("contrast", 1, -1)])
def test_each_severity_of_a_distortion_changes_the_statistic_more(kind: str, column: int, sign: int) -> None:
    # a smooth image with an edge
    row = torch.linspace(0, 6, 48).sin()
    image = (row[:, None] + row[None] > 0.5).float()[None] + 0.1 * row
    distortions = Distortions(kinds=[kind])
    values = [float(appearance_statistics(image[None])[0, column])]
    values += [
        float(appearance_statistics(distortions.apply(image, kind, severity, 0)[None])[0, column])
        for severity in (1, 3, 5)
    ]
    assert all(sign * (after - before) > 0 for before, after in itertools.pairwise(values))
