"""Monte Carlo dropout: what its passes drop, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from method_parts import loss_before_and_after, parts_of
from torch import Tensor, nn

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods import Inference, MonteCarloDropout
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import HeadLayout, MultiHeadUNet
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, save_method

STRUCTURES = ("disc", "cup")


def network(heads: HeadLayout, dropout: float = 0.0) -> MultiHeadUNet:
    return MultiHeadUNet(2, 3, 2, heads, features=(4, 6, 8), dropout=dropout)


def method_of(make: object, window: tuple[int, int] | None = None, **options: object) -> MonteCarloDropout:
    inference = Inference(window, overlap=0.0)
    return MonteCarloDropout(parts_of(make, inference=inference), HeadLayout("last"), **options).eval()


def mc_dropout(**options: object) -> MonteCarloDropout:
    return method_of(network, **{"samples": 4, "dropout": 0.3, **options})


class Dropping(nn.Module):
    """The image, with a dropout layer on it; the reference of what is kept."""

    members = 1

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)[:, None]


def hooks_of(method: MonteCarloDropout) -> int:
    return sum(len(module._forward_hooks) for module in method.modules())


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24), batch_size=4)
    return next(iter(data.train_dataloader()))


def test_members_differ_and_a_prediction_is_the_same_each_time() -> None:
    method, image = mc_dropout(), torch.rand(2, 3, 24, 24)
    state = torch.get_rng_state()
    first = method(image)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (2, 4, 2, 24, 24)
    torch.rand(7)
    assert torch.equal(method(image), first)
    for one in range(4):
        for other in range(one):
            assert not torch.equal(first[:, one], first[:, other])
    other_seed = mc_dropout(seed=1)
    other_seed.load_state_dict(method.state_dict())
    assert not torch.equal(other_seed(image), first)
    assert method.label == "mc_dropout"
    assert mc_dropout(target="random_rater").label == "mc_dropout_random_rater"


def test_more_passes_add_members_and_change_none() -> None:
    few, many, image = mc_dropout(samples=2), mc_dropout(samples=5), torch.rand(1, 3, 24, 24)
    many.load_state_dict(few.state_dict())
    torch.testing.assert_close(many(image)[:, :2], few(image), rtol=0, atol=0)


def test_a_prediction_does_not_depend_on_the_batch() -> None:
    method, image = mc_dropout(), torch.rand(3, 3, 24, 24)
    together = method(image)
    for case in range(3):
        torch.testing.assert_close(method(image[case : case + 1])[0], together[case])
    torch.testing.assert_close(method(image.flip(0)).flip(0), together)


def test_a_member_is_one_network_in_every_window() -> None:
    method, window = mc_dropout(window=(16, 16)), torch.rand(1, 3, 16, 16)
    tiled = method.predict(window.repeat(1, 1, 2, 2))
    torch.testing.assert_close(tiled, method(window).repeat(1, 1, 1, 2, 2))


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d, None], ids=["units", "channels", "unet"])
def test_passes_are_those_of_torchs_own_dropout(layer: type[nn.Module] | None) -> None:
    if layer is None:
        method = mc_dropout(seed=5)
    else:
        method = method_of(lambda heads: Dropping(layer(0.5)), dropout=0.3, samples=4, seed=5)
    image = torch.rand(1, 3, 24, 24)
    passes = method(image)
    for part in method.network.modules():
        if isinstance(part, (nn.Dropout, nn.Dropout2d)):
            part.train()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = torch.cat([method.network(image) for _ in range(4)], dim=1)
    torch.testing.assert_close(passes, expected, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_kept_is_scaled_so_that_the_expectation_stays(layer: type[nn.Module], dtype: torch.dtype) -> None:
    axes = {nn.Dropout1d: 1, nn.Dropout3d: 3}.get(layer, 2)
    method = method_of(lambda heads: Dropping(layer()), dropout=0.25, samples=40)
    passes = method(torch.ones(2, 200, *[4] * axes, dtype=dtype))
    assert passes.dtype == dtype
    assert set(passes.unique().tolist()) == {0.0, torch.tensor(1 / 0.75, dtype=dtype).item()}
    # 8000 draws of channels at least: six standard errors
    assert passes.double().mean().item() == pytest.approx(1, abs=6 * (0.25 / 0.75 / 8000) ** 0.5)
    whole = (passes == passes[(..., *[slice(0, 1)] * axes)]).all()
    assert bool(whole) == (layer is not nn.Dropout)
    assert torch.equal(passes[0], passes[1])


def test_layers_that_drop_nothing_cost_no_draw() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.busy = nn.Dropout(0.0), nn.Dropout(0.5)

        def forward(self, image: Tensor) -> Tensor:
            return self.busy(self.idle(image))[:, None]

    image = torch.rand(1, 3, 8, 8)
    with_idle = method_of(lambda heads: Two(), dropout=None, samples=2)
    alone = method_of(lambda heads: Dropping(nn.Dropout(0.5)), dropout=None, samples=2)
    assert torch.equal(with_idle(image), alone(image))


def test_training_takes_a_single_pass_with_torchs_dropout(batch: RaterBatch) -> None:
    method = mc_dropout().train()
    first, second = method(batch.image), method(batch.image)
    assert first.shape == (4, 1, 2, 24, 24)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    loss = method.training_loss(batch)["loss"]
    torch.manual_seed(3)
    logits = method.network(batch.image)
    torch.testing.assert_close(loss, SegmentationLoss()(logits, member_target(batch, "majority")).mean())
    assert hooks_of(method) == 0


def test_nothing_is_left_on_the_network_even_after_an_error() -> None:
    method = mc_dropout()
    method(torch.rand(1, 3, 24, 24))
    assert hooks_of(method) == 0
    with pytest.raises(ValueError, match="too small"):
        method(torch.rand(1, 3, 2, 2))
    assert hooks_of(method) == 0
    image = torch.rand(1, 3, 24, 24)
    # outside of a prediction the network drops nothing
    assert torch.equal(method.network(image), method.network(image))


def test_dropout_is_set_in_every_layer_or_left_as_the_network_has_it() -> None:
    def rates(method: MonteCarloDropout) -> set[float]:
        return {part.p for part in method.modules() if isinstance(part, nn.Dropout)}

    assert rates(mc_dropout(dropout=0.2)) == {0.2}
    assert rates(method_of(lambda heads: network(heads, dropout=0.4), dropout=None)) == {0.4}
    assert rates(method_of(lambda heads: network(heads, dropout=0.4), dropout=0.1)) == {0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.0}, r"set method\.dropout above 0"),
        ({"dropout": None}, r"network\.dropout"),
        ({"dropout": 1.0}, "between 0 and 1, not 1"),
        ({"dropout": -0.5}, "between 0 and 1, not -0.5"),
        ({"samples": 1}, "at least 2, not 1"),
        ({"target": "rater_per_member"}, "rater_per_member does not apply"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mc_dropout(**options)


def test_a_network_without_dropout_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a network with dropout layers"):
        method_of(lambda heads: Dropping(nn.Identity()), dropout=0.5)


def test_training_lowers_the_loss(batch: RaterBatch) -> None:
    torch.manual_seed(0)
    before, after = loss_before_and_after(mc_dropout(dropout=0.1), batch)
    assert after < 0.98 * before


@pytest.mark.parametrize("options", [[], ["method.dropout=null", "network.dropout=0.2", "method.target=soft_majority"]])
def test_a_checkpoint_rebuilds_the_method(tmp_path: Path, options: list[str]) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        configuration = resolved(compose("train", ["method=mc_dropout", "network.features=[4,6,8]", *options]))
    image_format = ImageFormat(2, 3, STRUCTURES)
    method = build_method(configuration, image_format).eval()
    save_method(method, tmp_path / "best.ckpt", checkpoint_entries(configuration, image_format))
    again = load_method(tmp_path / "best.ckpt").method
    image = torch.rand(1, 3, 24, 24)
    assert isinstance(again, MonteCarloDropout)
    assert again.label == method.label
    assert method(image).shape[1] == again.samples == 10
    torch.testing.assert_close(again(image), method(image), rtol=0, atol=0)
