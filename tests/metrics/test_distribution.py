"""The score of a volume against another package's closed form."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoringrules import crps_normal

from edue_lightning.metrics.distribution import gaussian_crps


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), raters=st.integers(2, 8))
def test_crps_equals_scoringrules(seed: int, raters: int) -> None:
    rng = np.random.default_rng(seed)
    value, samples = rng.normal(50, 20, size=2), rng.normal(50, 5, size=(raters, 2))
    expected = crps_normal(value, samples.mean(axis=0), samples.std(axis=0))
    found = gaussian_crps(torch.from_numpy(value), torch.from_numpy(samples))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_crps_of_raters_who_agree_is_the_distance() -> None:
    value = torch.tensor([7.0, 7.0], dtype=torch.float64)
    samples = torch.tensor([[5.0, 5.0], [5.0, 5.0]], dtype=torch.float64)
    assert gaussian_crps(value, samples).tolist() == [2, 2]
    assert gaussian_crps(value, samples[:1]).tolist() == [2, 2]
    assert gaussian_crps(value, samples[:0]).isnan().all()
    nearly = gaussian_crps(value, samples + torch.tensor([[1e-6], [-1e-6]]))
    torch.testing.assert_close(nearly, torch.full_like(nearly, 2), rtol=0, atol=1e-5)
