"""Stochastic segmentation networks: the distribution of the logits, its likelihood, and the members drawn from it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from method_parts import loss_before_and_after, parts_of
from torch import Tensor, nn

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus
from edue_lightning.methods import Inference, StochasticSegmentation
from edue_lightning.methods.stochastic_segmentation import LogitDistribution, negative_log_likelihood
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import HeadLayout, MultiHeadUNet
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, save_method

STRUCTURES = ("disc", "cup")


def network(heads: HeadLayout) -> MultiHeadUNet:
    return MultiHeadUNet(2, 3, 2, heads, features=(4, 6, 8), foreground_prior=0.05)


def ssn(**options: object) -> StochasticSegmentation:
    options = {"rank": 3, "samples": 4, "training_samples": 6, "warm_up_epochs": 0, **options}
    return StochasticSegmentation(parts_of(network), **options).eval()


def noise(distribution: LogitDistribution, draws: int) -> tuple[Tensor, Tensor]:
    mean, rank = distribution.mean, distribution.factors.shape[1]
    return torch.randn(len(mean), draws, rank).to(mean), torch.randn(len(mean), draws, *mean.shape[1:]).to(mean)


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24, missing_rater_rate=0.3), batch_size=4)
    return next(iter(data.train_dataloader()))


def test_the_networks_output_is_mean_logarithm_of_variance_and_factors() -> None:
    output = torch.randn(2, 5, 2, 4, 4)
    mean, variance, factors = LogitDistribution.of(output)
    assert torch.equal(mean, output[:, 0])
    torch.testing.assert_close(variance, output[:, 1].exp() + 1e-5)
    assert torch.equal(factors, output[:, 2:])


def test_draws_have_the_mean_and_the_covariance_of_the_distribution() -> None:
    torch.manual_seed(0)
    cases, rank, structures, size, draws = 2, 3, 2, 2, 200_000
    output = torch.randn(cases, rank + 2, structures, size, size, dtype=torch.float64)
    distribution = LogitDistribution.of(output)
    logits = distribution.logits(*noise(distribution, draws)).flatten(2)
    for case in range(cases):
        factors, variance = distribution.factors[case].flatten(1), distribution.variance[case].flatten()
        expected = factors.T @ factors + torch.diag(variance)
        found = torch.cov(logits[case].T)
        # the standard error of a covariance of normal numbers, five times
        diagonal = expected.diagonal()
        error = ((expected**2 + diagonal[:, None] * diagonal) / draws).sqrt()
        assert ((found - expected).abs() < 5 * error).all()
        offset = logits[case].mean(dim=0) - distribution.mean[case].flatten()
        assert (offset.abs() < 5 * (diagonal / draws).sqrt()).all()


def test_each_draw_is_mean_factors_and_own_noise_added_up() -> None:
    distribution = LogitDistribution.of(torch.randn(2, 5, 2, 3, 4))
    shared, own = noise(distribution, 6)
    logits = distribution.logits(shared, own)
    for case in range(2):
        for draw in range(6):
            expected = distribution.mean[case] + distribution.variance[case].sqrt() * own[case, draw]
            for factor in range(3):
                expected = expected + shared[case, draw, factor] * distribution.factors[case, factor]
            torch.testing.assert_close(logits[case, draw], expected)
    # noise of one case serves all
    one = distribution.logits(shared[:1], own[:1])
    torch.testing.assert_close(one[1], distribution.logits(shared[[0, 0]], own[[0, 0]])[1])


def test_the_likelihood_equals_a_loop_over_draws_and_voxels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 2, 3, 3, dtype=torch.float64)
    target = (torch.rand(2, 1, 2, 3, 3) > 0.5).float()
    found = negative_log_likelihood(logits, target)
    for case in range(2):
        likelihood = 0.0
        for draw in range(5):
            product = 1.0
            for logit, label in zip(logits[case, draw].flatten(), target[case, 0].flatten(), strict=True):
                p = 1 / (1 + math.exp(-float(logit)))
                product *= p if label else 1 - p
            likelihood += product / 5
        assert found[case].item() == pytest.approx(-math.log(likelihood) / 18)


def test_draws_that_all_agree_leave_the_cross_entropy() -> None:
    mean = torch.randn(3, 1, 2, 4, 4)
    target = (torch.rand(3, 1, 2, 4, 4) > 0.5).float()
    expected = F.binary_cross_entropy_with_logits(mean, target, reduction="none").flatten(1).mean(dim=1)
    torch.testing.assert_close(negative_log_likelihood(mean.expand(-1, 7, -1, -1, -1), target), expected)
    # a distribution without factors and hardly any variance
    output = torch.cat([mean, torch.full_like(mean, -100.0), torch.zeros_like(mean)], dim=1)
    distribution = LogitDistribution.of(output)
    logits = distribution.logits(*noise(distribution, 50))
    torch.testing.assert_close(negative_log_likelihood(logits, target), expected, atol=2e-3, rtol=0)


def test_voxels_that_vary_together_are_judged_together() -> None:
    """The likelihood of two voxels under one factor is an integral over one normal number."""
    torch.manual_seed(0)
    factors, mean = np.array([2.0, 1.5]), np.array([-0.5, 0.25])
    output = torch.tensor(np.stack([mean, [-100.0, -100.0], factors]))[None, :, None]
    distribution = LogitDistribution.of(output)
    logits = distribution.logits(*noise(distribution, 400_000))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    likelihood = {}
    for label in ((1, 1), (1, 0)):
        signs = 2 * np.array(label) - 1
        p = (1 / (1 + np.exp(-signs * (mean + nodes[:, None] * factors)))).prod(axis=1)
        likelihood[label] = (weights * p).sum() / weights.sum()
        found = negative_log_likelihood(logits, torch.tensor(label)[None, None, None])
        assert found.item() == pytest.approx(-math.log(likelihood[label]) / 2, rel=5e-3)
    assert likelihood[1, 1] > 2 * likelihood[1, 0]


def test_gradients_of_the_likelihood_are_right() -> None:
    torch.manual_seed(0)
    output = torch.randn(2, 4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 1, 2, 2, 2) > 0.5).double()
    draws = noise(LogitDistribution.of(output.detach()), 3)

    def loss(values: Tensor) -> Tensor:
        return negative_log_likelihood(LogitDistribution.of(values).logits(*draws), target)

    assert torch.autograd.gradcheck(loss, (output,))


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_large_images_and_sure_logits_keep_loss_and_gradients_finite(scale: float) -> None:
    output = torch.zeros(1, 4, 1, 64, 64)
    output[:, 0] = scale
    output.requires_grad_()
    distribution = LogitDistribution.of(output)
    loss = negative_log_likelihood(distribution.logits(*noise(distribution, 4)), torch.zeros(1, 1, 1, 64, 64)).sum()
    loss.backward()
    assert loss.isfinite()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert output.grad.abs().sum() > 0


def test_the_prior_of_the_foreground_is_the_means_alone_and_the_covariance_starts_small() -> None:
    method = ssn()
    (bias,) = (value for name, value in method.network.heads.named_parameters() if name.endswith("bias"))
    assert bias.tolist() == pytest.approx([math.log(0.05 / 0.95)] * 2 + [-5.0] * 2 + [0.0] * 6)
    with torch.no_grad():
        distribution = LogitDistribution.of(method.network(torch.rand(2, 3, 24, 24)))
    assert distribution.variance.max() < 0.02
    assert distribution.factors.std() < 0.3 * distribution.mean.std()


@pytest.mark.parametrize(
    ("warm_up_epochs", "last", "later"),
    [
        (2, {"current_epoch": 1, "global_step": 9}, {"current_epoch": 2, "global_step": 10}),
        # half of the eleven steps of a training
        (None, {"current_epoch": 1, "global_step": 4}, {"current_epoch": 1, "global_step": 5}),
    ],
)
def test_the_mean_alone_is_trained_at_first(
    batch: RaterBatch, warm_up_epochs: int | None, last: dict[str, int], later: dict[str, int]
) -> None:
    method = ssn(warm_up_epochs=warm_up_epochs).train()
    method.trainer = SimpleNamespace(estimated_stepping_batches=11, **last)  # type: ignore[assignment]
    distribution = LogitDistribution.of(method.network(batch.image))
    target = member_target(batch, "random_rater").expand_as(distribution.mean[:, None])
    expected = F.binary_cross_entropy_with_logits(distribution.mean[:, None], target)
    torch.testing.assert_close(method.training_loss(batch)["loss"], expected)
    assert not method.complete
    method.trainer = SimpleNamespace(estimated_stepping_batches=11, **later)  # type: ignore[assignment]
    assert not torch.isclose(method.training_loss(batch)["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ends_at_the_network(batch: RaterBatch, dtype: torch.dtype) -> None:
    class Half(nn.Module):
        members = 5
        heads = nn.ModuleList()

        def forward(self, image: Tensor) -> Tensor:
            return torch.linspace(-9, 9, 5, dtype=dtype)[:, None, None, None].expand(len(image), 5, 2, 24, 24)

    method = StochasticSegmentation(parts_of(lambda heads: Half()), rank=3, samples=4, warm_up_epochs=0)
    full = LogitDistribution.of(method.network(batch.image).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = method(batch.image)
        loss = method.training_loss(batch)["loss"]
    assert logits.dtype == loss.dtype == torch.float32
    assert loss.isfinite()
    assert torch.equal(logits, method(batch.image))
    assert full.mean.dtype == torch.float32


def test_a_network_in_half_precision_gives_members_close_to_the_full_ones(batch: RaterBatch) -> None:
    torch.manual_seed(0)
    method = ssn()
    with torch.no_grad():
        full = method(batch.image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = method(batch.image)
    assert half.dtype == torch.float32
    # 8 bits of the network's own numbers are worth so much; none of it adds up over voxels or draws
    assert (half - full).abs().mean() < 2**-8 * full.abs().mean()


def test_members_differ_and_a_prediction_is_the_same_each_time() -> None:
    method, image = ssn(), torch.rand(2, 3, 24, 24)
    state = torch.get_rng_state()
    first = method(image)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (2, 4, 2, 24, 24)
    torch.rand(7)
    assert torch.equal(method(image), first)
    assert len({tuple(member.flatten().tolist()) for member in first[0]}) == 4
    other_seed = ssn(seed=1)
    other_seed.load_state_dict(method.state_dict())
    assert not torch.equal(other_seed(image), first)
    assert method.label == "stochastic_segmentation"


def test_a_prediction_does_not_depend_on_the_batch() -> None:
    method, image = ssn(), torch.rand(3, 3, 24, 24)
    together = method(image)
    for case in range(3):
        torch.testing.assert_close(method(image[case : case + 1])[0], together[case])
    torch.testing.assert_close(method(image.flip(0)).flip(0), together)


def test_a_member_moves_along_the_factors_alike_whatever_the_size_and_the_window() -> None:
    class Flat(nn.Module):
        """Mean zero, hardly any variance and one factor of one everywhere."""

        members = 3
        heads = nn.ModuleList()

        def forward(self, image: Tensor) -> Tensor:
            values = torch.tensor([0.0, -100.0, 1.0])[:, None, None, None]
            return values.expand(len(image), 3, 2, *image.shape[2:])

    parts = parts_of(lambda heads: Flat(), inference=Inference(window=(8, 8), overlap=0.5))
    method = StochasticSegmentation(parts, rank=1, samples=4)
    small, large = method(torch.rand(1, 3, 8, 8)), method(torch.rand(1, 3, 30, 12))
    shift = small[0].mean(dim=(1, 2, 3))
    assert shift.unique().numel() == 4
    torch.testing.assert_close(large[0].mean(dim=(1, 2, 3)), shift, atol=2e-3, rtol=0)
    windows = method.predict(torch.rand(1, 3, 20, 20))[0]
    torch.testing.assert_close(windows, shift[:, None, None, None].expand_as(windows), atol=0.03, rtol=0)


def test_the_loss_is_the_likelihood_of_one_drawn_rater(batch: RaterBatch) -> None:
    method = ssn().train()
    torch.manual_seed(3)
    parts = method.training_loss(batch)
    torch.manual_seed(3)
    distribution = LogitDistribution.of(method.network(batch.image))
    shared, own = torch.randn(4, 3, 3), torch.randn(4, 3, 2, 24, 24)
    target = member_target(batch, "random_rater")
    assert set(target.unique().tolist()) == {0.0, 1.0}
    draws = torch.cat([distribution.logits(sign * shared, sign * own) for sign in (1, -1)], dim=1)
    torch.testing.assert_close(draws.mean(dim=1), distribution.mean, atol=1e-5, rtol=1e-5)  # pairs around the mean
    assert set(parts) == {"loss"}
    torch.testing.assert_close(parts["loss"], negative_log_likelihood(draws, target).mean())
    parts["loss"].backward()
    gradients = [parameter.grad for parameter in method.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_training_lowers_the_loss(batch: RaterBatch) -> None:
    torch.manual_seed(0)
    before, after = loss_before_and_after(ssn(), batch)
    assert after < 0.98 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"warm_up_epochs": -1}, "warm_up_epochs must not be negative: -1"),
        ({"samples": 1}, "samples must be at least 2, not 1"),
        ({"training_samples": 0}, "even number of at least 2, not 0"),
        ({"training_samples": 5}, "even number of at least 2, not 5"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ssn(**options)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_checkpoint_rebuilds_the_method(tmp_path: Path, dims: int) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = ["method=stochastic_segmentation", "network.features=[4,6,8]", "method.rank=2"]
        configuration = resolved(compose("train", overrides))
    image_format = ImageFormat(dims, 1, STRUCTURES)
    method = build_method(configuration, image_format).eval()
    save_method(method, tmp_path / "best.ckpt", checkpoint_entries(configuration, image_format))
    again = load_method(tmp_path / "best.ckpt").method
    assert isinstance(again, StochasticSegmentation)
    image = torch.rand(1, 1, *[16] * dims)
    assert method(image).shape == (1, 16, 2, *[16] * dims)
    torch.testing.assert_close(again(image), method(image), rtol=0, atol=0)
