"""The encoder of latent vectors: shapes, what it sees, and the closed forms of its distributions."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from edue_lightning.networks import DiagonalGaussian, GaussianEncoder
from edue_lightning.networks.gaussian_encoder import BEYOND, USUAL, bounded


def gaussian(*shape: int) -> DiagonalGaussian:
    return DiagonalGaussian(torch.randn(shape, dtype=torch.float64), 0.5 * torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("size", [(24, 24), (17, 30), (16, 9, 11)])
def test_an_image_of_any_size_gives_one_distribution(size: tuple[int, ...]) -> None:
    dims: Literal[2, 3] = 2 if len(size) == 2 else 3
    encoder = GaussianEncoder(dims, 2, (4, 6, 8), latent_dim=5)
    mean, log_deviation = encoder(torch.randn(3, 2, *size))
    assert mean.shape == log_deviation.shape == (3, 5)
    # the signal neither dies nor explodes before training
    assert 1e-3 < mean.std() < 10


def test_the_distribution_depends_on_the_brightness_of_the_image() -> None:
    torch.manual_seed(0)
    encoder = GaussianEncoder(2, 1, (4, 6, 8), latent_dim=5)
    image = torch.rand(1, 1, 16, 16)
    assert not torch.allclose(encoder(image).mean, encoder(image + 1).mean, rtol=0.05)


def test_draws_are_the_mean_plus_deviations() -> None:
    distribution, noise = gaussian(3, 2), torch.randn(1, 4, 2, dtype=torch.float64)
    draws = distribution.draws(noise)
    assert draws.shape == (3, 4, 2)
    for case in range(3):
        for draw in range(4):
            expected = distribution.mean[case] + distribution.log_deviation[case].exp() * noise[0, draw]
            torch.testing.assert_close(draws[case, draw], expected)


def test_the_divergence_is_that_of_normal_distributions() -> None:
    first, second = gaussian(4, 3), gaussian(4, 3)
    found = first.divergence_from(second)
    for case in range(4):
        for part in range(3):
            mean_1, mean_2 = (float(one.mean[case, part]) for one in (first, second))
            sigma_1, sigma_2 = (math.exp(float(one.log_deviation[case, part])) for one in (first, second))
            closed = math.log(sigma_2 / sigma_1) + (sigma_1**2 + (mean_1 - mean_2) ** 2) / (2 * sigma_2**2) - 0.5
            assert found[case, part].item() == pytest.approx(closed)
    assert torch.equal(first.divergence_from(first), torch.zeros(4, 3, dtype=torch.float64))
    one_apart = DiagonalGaussian(first.mean + first.log_deviation.exp(), first.log_deviation)
    torch.testing.assert_close(one_apart.divergence_from(first), torch.full_like(found, 0.5))


def test_the_divergence_equals_its_integral() -> None:
    first, second = gaussian(1, 1), gaussian(1, 1)
    at = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    densities = [
        torch.distributions.Normal(one.mean, one.log_deviation.exp()).log_prob(at)[0] for one in (first, second)
    ]
    integral = torch.trapezoid(densities[0].exp() * (densities[0] - densities[1]), at)
    assert first.divergence_from(second).item() == pytest.approx(integral.item())


def test_mixed_precision_ends_before_the_moments() -> None:
    encoder = GaussianEncoder(2, 1, (4, 6), latent_dim=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, log_deviation = encoder(torch.rand(2, 1, 8, 8))
    assert mean.dtype == log_deviation.dtype == torch.float32


def test_log_deviations_are_unchanged_where_they_are_usual_and_bounded_elsewhere() -> None:
    usual = torch.linspace(-USUAL, USUAL, 41)
    assert torch.equal(bounded(usual), usual)
    large = torch.tensor([-1e30, -1e3, -5.001, 5.001, 8.0, 1e3, 1e30])
    assert (bounded(large).abs() <= USUAL + BEYOND).all()
    assert torch.equal(bounded(large).sort().values, bounded(large))
    torch.testing.assert_close(bounded(large)[2:4], large[2:4], atol=1e-6, rtol=0)


def test_the_bound_has_a_gradient_everywhere() -> None:
    values = torch.tensor([-400.0, -20.0, -5.5, -1.0, 0.0, 4.9, 6.0, 400.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bounded, values)
    (gradient,) = torch.autograd.grad(bounded(values).sum(), values)
    assert (gradient > 0).all()
    assert torch.equal(gradient[3:6], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("moment", [-200.0, 200.0])
def test_the_divergence_of_encoders_that_ran_away_and_its_gradients_are_finite(moment: float) -> None:
    """As a large learning rate makes them: exp(200) is infinite in float32, and so was the divergence."""
    torch.manual_seed(0)
    prior, posterior = (GaussianEncoder(2, 1, (4, 6), latent_dim=3) for _ in range(2))
    with torch.no_grad():
        posterior.moments.bias[3:] = moment
    image = torch.rand(2, 1, 8, 8)
    divergence = posterior(image).divergence_from(prior(image)).sum()
    divergence.backward()
    assert torch.isfinite(divergence)
    parameters = [*prior.parameters(), *posterior.parameters()]
    assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in parameters)
    assert posterior.moments.bias.grad is not None
    assert posterior.moments.bias.grad[3:].abs().min() > 0
