"""The Gaussian of feature vectors against scikit-learn, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from torch import Tensor

from edue_lightning.uncertainty.density import fit_gaussian, ledoit_wolf


def random_features(seed: int, count: int, features: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.randn(count, features, generator=generator, dtype=torch.float64) @ mixing + 3


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), count=st.integers(2, 40), features=st.integers(1, 12))
def test_covariance_equals_scikit_learns(seed: int, count: int, features: int) -> None:
    values = random_features(seed, count, features)
    expected = LedoitWolf().fit(values.numpy())
    found = ledoit_wolf(values - values.mean(dim=0))
    if features > 1:
        assert ledoit_wolf_shrinkage(values.numpy()) == pytest.approx(expected.shrinkage_)
    np.testing.assert_allclose(found, expected.covariance_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("count", "features"), [(200, 6), (10, 24)])
def test_distance_equals_scikit_learns_of_standardised_features(count: int, features: int) -> None:
    known, new = random_features(0, count, features), random_features(1, 9, features)
    mean, scale = known.mean(dim=0), known.std(dim=0, correction=0)
    reference = LedoitWolf().fit(((known - mean) / scale).numpy())
    expected = np.sqrt(reference.mahalanobis(((new - mean) / scale).numpy()))
    np.testing.assert_allclose(fit_gaussian(known).distance(new), expected, rtol=1e-9)


def test_units_of_the_features_do_not_matter() -> None:
    known, new = random_features(0, 30, 5), random_features(1, 4, 5)
    factor, shift = torch.tensor([1.0, 1e-3, 50.0, -2.0, 7.0]).double(), torch.tensor(4.0)
    expected = fit_gaussian(known).distance(new)
    found = fit_gaussian(known * factor + shift).distance(new * factor + shift)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_constant_feature_gives_finite_distances() -> None:
    known = random_features(0, 30, 3)
    known[:, 1] = 0.1 + 1e-9 * torch.rand(30, dtype=torch.float64)
    new = known.clone()
    new[:, 1] += 1
    gaussian = fit_gaussian(known)
    assert torch.isfinite(gaussian.distance(new)).all()
    assert (gaussian.distance(new) > gaussian.distance(known)).all()
    same = fit_gaussian(torch.ones(4, 3))
    assert not same.distance(torch.ones(2, 3)).any()
    assert torch.isfinite(same.distance(torch.zeros(2, 3))).all()
