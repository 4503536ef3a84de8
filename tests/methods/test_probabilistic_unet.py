"""The probabilistic U-Net: its bound, its latent vectors, and the members drawn from the prior."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from method_parts import loss_before_and_after, parts_of
from torch import Tensor, nn

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus
from edue_lightning.methods import Inference, ProbabilisticUNet
from edue_lightning.methods.probabilistic_unet import LatentCombination, divergence_cost
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import DiagonalGaussian, HeadLayout, MultiHeadUNet
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, save_method

STRUCTURES = ("disc", "cup")


def network(heads: HeadLayout) -> MultiHeadUNet:
    return MultiHeadUNet(2, 3, 2, heads, features=(4, 6, 8), foreground_prior=0.05)


def probabilistic(inference: Inference | None = None, **options: object) -> ProbabilisticUNet:
    options = {"latent_dim": 3, "width": 7, "samples": 4, **options}
    return ProbabilisticUNet(parts_of(network, inference=inference or Inference()), **options).eval()


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24, missing_rater_rate=0.3), batch_size=4)
    return next(iter(data.train_dataloader()))


def gaussian(*shape: int) -> DiagonalGaussian:
    return DiagonalGaussian(torch.randn(shape, dtype=torch.float64), 0.5 * torch.randn(shape, dtype=torch.float64))


def test_features_and_latent_vector_go_through_three_convolutions_at_each_voxel() -> None:
    """The sum of two convolutions is one convolution of both, as in the paper."""
    torch.manual_seed(0)
    combination = LatentCombination(2, width=5, latent_dim=3, structures=2)
    features, latents = torch.randn(2, 5, 4, 6), torch.randn(2, 4, 3)
    found = combination(features, latents)
    assert found.shape == (2, 4, 2, 4, 6)
    # the head has made the features already, so its weights are those of the identity
    weight = torch.cat([torch.eye(5), combination.latent.weight], dim=1)[..., None, None]
    for member in range(4):
        broadcast = latents[:, member, :, None, None].expand(-1, -1, 4, 6)
        hidden = F.relu(F.conv2d(torch.cat([features, broadcast], dim=1), weight, combination.latent.bias))
        expected = combination.last(F.relu(combination.second(hidden)))
        torch.testing.assert_close(found[:, member], expected)


def test_the_cost_of_the_divergence_is_summed_over_components_and_averaged_over_cases() -> None:
    posterior, prior = gaussian(4, 3), gaussian(4, 3)
    joint = [
        torch.distributions.MultivariateNormal(one.mean, torch.diag_embed(one.log_deviation.exp() ** 2))
        for one in (posterior, prior)
    ]
    expected = torch.distributions.kl_divergence(*joint).mean()
    torch.testing.assert_close(divergence_cost(posterior, prior), expected)


def test_free_bits_let_each_component_diverge_up_to_them() -> None:
    posterior, prior = gaussian(4, 3), gaussian(4, 3)
    each = posterior.divergence_from(prior).mean(dim=0).tolist()
    free = sorted(each)[1]
    expected = sum(max(value, free) for value in each)
    assert divergence_cost(posterior, prior, free).item() == pytest.approx(expected)
    assert divergence_cost(prior, prior, 0.25).item() == pytest.approx(3 * 0.25)


def test_gradients_of_the_divergence_are_right() -> None:
    torch.manual_seed(0)
    values = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def cost(*of: Tensor) -> Tensor:
        return divergence_cost(DiagonalGaussian(of[0], of[1]), DiagonalGaussian(of[2], of[3]))

    assert torch.autograd.gradcheck(cost, values)


def test_gradients_of_the_logits_reach_features_and_latent_vector_rightly() -> None:
    torch.manual_seed(0)
    combination = LatentCombination(2, width=4, latent_dim=2, structures=2).double()
    features = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    latents = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(combination, (features, latents))


def test_the_loss_is_the_negative_bound_of_one_drawn_rater_per_voxel(batch: RaterBatch) -> None:
    method = probabilistic(beta=2.5).train()
    torch.manual_seed(3)
    parts = method.training_loss(batch)
    torch.manual_seed(3)
    target = member_target(batch, "random_rater")
    assert set(target.unique().tolist()) == {0.0, 1.0}
    prior = method.prior(batch.image)
    posterior = method.posterior(torch.cat([batch.image, target[:, 0] - 0.5], dim=1))
    latents = posterior.mean + posterior.log_deviation.exp() * torch.randn(4, 3)
    logits = method.combination(method.network(batch.image).flatten(1, 2), latents[:, None])
    reconstruction = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 4
    divergence = posterior.divergence_from(prior).sum() / 4
    torch.testing.assert_close(parts["reconstruction"], reconstruction)
    torch.testing.assert_close(parts["kl"], divergence)
    torch.testing.assert_close(parts["loss"], (reconstruction + 2.5 * divergence) / (2 * 24 * 24))
    parts["loss"].backward()
    gradients = [parameter.grad for parameter in method.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_the_posterior_sees_the_drawn_mask_and_the_prior_does_not(batch: RaterBatch) -> None:
    method = probabilistic()
    seen: dict[str, Tensor] = {}
    for name in ("prior", "posterior"):
        getattr(method, name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    method.training_loss(batch)
    assert torch.equal(seen["prior"], batch.image)
    assert torch.equal(seen["posterior"][:, :3], batch.image)
    assert torch.equal(seen["posterior"][:, 3:] + 0.5, member_target(batch, "random_rater")[:, 0])


def test_the_prior_of_the_foreground_is_that_of_the_logits() -> None:
    method = probabilistic()
    bias = method.combination.last.bias
    assert bias.tolist() == pytest.approx([math.log(0.05 / 0.95)] * 2)
    (of_head,) = (value for name, value in method.network.heads.named_parameters() if name.endswith("bias"))
    assert not of_head.any()


def test_members_differ_and_a_prediction_is_the_same_each_time() -> None:
    method, image = probabilistic(), torch.rand(2, 3, 24, 24)
    state = torch.get_rng_state()
    first = method(image)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (2, 4, 2, 24, 24)
    torch.rand(7)
    assert torch.equal(method(image), first)
    assert len({tuple(member.flatten().tolist()) for member in first[0]}) == 4
    again, other_seed = probabilistic(), probabilistic(seed=1)
    for one in (again, other_seed):
        one.load_state_dict(method.state_dict())
    assert torch.equal(again(image), first)
    assert not torch.equal(other_seed(image), first)
    assert method.label == "probabilistic_unet"


def test_members_are_draws_from_the_prior() -> None:
    method, image = probabilistic(samples=20_000, latent_dim=2), torch.rand(1, 3, 8, 8)
    prior = method.prior(image)
    draws = prior.draws(method.noise)[0]
    torch.testing.assert_close(draws.mean(dim=0), prior.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(draws.std(dim=0), prior.log_deviation[0].exp(), atol=0, rtol=0.05)
    assert torch.corrcoef(draws.T)[0, 1].abs() < 0.05


def test_a_prediction_does_not_depend_on_the_batch() -> None:
    method, image = probabilistic(), torch.rand(3, 3, 24, 24)
    together = method(image)
    for case in range(3):
        torch.testing.assert_close(method(image[case : case + 1])[0], together[case])
    torch.testing.assert_close(method(image.flip(0)).flip(0), together)


def test_a_member_is_one_opinion_in_all_windows() -> None:
    class Flat(nn.Module):
        """Zero features everywhere, so that logits depend on the latent vector alone."""

        members = 4
        spatial_dims = 2
        in_channels = 3
        features = (4, 6)
        heads = nn.ModuleList()

        def forward(self, image: Tensor) -> Tensor:
            return image.new_zeros(len(image), 4, 2, *image.shape[2:])

    class Constant(nn.Module):
        """The same prior for every window."""

        def forward(self, image: Tensor) -> DiagonalGaussian:
            return DiagonalGaussian(torch.zeros(len(image), 1), torch.zeros(len(image), 1))

    parts = parts_of(lambda heads: Flat(), inference=Inference(window=(8, 8), overlap=0.5))
    method = ProbabilisticUNet(parts, latent_dim=1, width=8, samples=4)
    method.prior = Constant()
    small, windows = method(torch.rand(1, 3, 8, 8)), method.predict(torch.rand(1, 3, 20, 12))
    level = small[0, :, :, 0, 0]
    assert level[:, 0].unique().numel() == 4
    torch.testing.assert_close(windows[0], level[:, :, None, None].expand(-1, -1, 20, 12))


def test_a_member_of_a_window_is_that_of_the_window_as_an_image() -> None:
    method = probabilistic(Inference(window=(16, 16), overlap=0.0))
    image = torch.rand(1, 3, 16, 32)
    found = method.predict(image)
    for place in (slice(0, 16), slice(16, 32)):
        torch.testing.assert_close(found[..., place], method(image[..., place]))


def test_mixed_precision_gives_members_close_to_the_full_ones(batch: RaterBatch) -> None:
    torch.manual_seed(0)
    method = probabilistic()
    with torch.no_grad():
        full = method(batch.image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = method(batch.image)
            loss = method.training_loss(batch)["loss"]
    assert half.dtype == loss.dtype == torch.float32
    assert loss.isfinite()
    assert (half - full).abs().mean() < 2**-7 * full.abs().mean()


def test_training_lowers_the_loss(batch: RaterBatch) -> None:
    torch.manual_seed(0)
    before, after = loss_before_and_after(probabilistic(), batch)
    assert after < 0.98 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1, not 0"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"samples": 1}, "samples must be at least 2, not 1"),
        ({"beta": math.inf}, "beta must be finite and not negative: inf"),
        ({"free_bits": -0.5}, "free_bits must be finite and not negative: -0.5"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probabilistic(**options)


def test_a_network_that_does_not_describe_itself_is_refused() -> None:
    class Bare(nn.Module):
        members = 4

    with pytest.raises(ValueError, match="a network with the attributes spatial_dims, in_channels, features, heads"):
        ProbabilisticUNet(parts_of(lambda heads: Bare()))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_checkpoint_rebuilds_the_method(tmp_path: Path, dims: int) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        configuration = resolved(compose("train", ["method=probabilistic_unet", "network.features=[4,6,8]"]))
    image_format = ImageFormat(dims, 1, STRUCTURES)
    method = build_method(configuration, image_format).eval()
    save_method(method, tmp_path / "best.ckpt", checkpoint_entries(configuration, image_format))
    again = load_method(tmp_path / "best.ckpt").method
    assert isinstance(again, ProbabilisticUNet)
    image = torch.rand(1, 1, *[16] * dims)
    assert method(image).shape == (1, 16, 2, *[16] * dims)
    torch.testing.assert_close(again(image), method(image), rtol=0, atol=0)
