"""Outputs of the first normalised convolutions, found in networks of any architecture."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from edue_lightning.networks import HeadLayout, MultiHeadUNet
from edue_lightning.networks.first_features import ChannelMoments, first_features


class Never(nn.Module):
    """A layer that must not run."""

    def forward(self, features: Tensor) -> Tensor:
        raise AssertionError("ran")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stages", ["last", "encoder+decoder"])
def test_of_the_u_net_they_are_those_of_its_first_block(dims: int, stages: str) -> None:
    network = MultiHeadUNet(dims, 2, 1, HeadLayout(stages), features=(4, 6, 8)).eval()
    image = torch.randn(3, 2, *[16] * dims)
    found = first_features(network, image)
    assert found is not None
    block = network.encoder[0]
    expected = block.conv_0.conv(image)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], block.conv_1.conv(block.conv_0.adn(expected)))


def norms() -> list[nn.Module]:
    return [nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)]


@pytest.mark.parametrize("norm", norms(), ids=lambda norm: type(norm).__name__)
def test_no_layer_behind_them_runs(norm: nn.Module) -> None:
    first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)
    network = nn.Sequential(first, norm, nn.ReLU(), second, norm, Never()).eval()
    image = torch.randn(2, 1, 8, 8)
    found = first_features(network, image)
    assert found is not None
    torch.testing.assert_close(found[0], first(image))
    torch.testing.assert_close(found[1], second(torch.relu(norm(first(image)))))
    with pytest.raises(AssertionError, match="ran"):
        network(image)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)],
        [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)],
        [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)],
    ],
    ids=["no norm", "activation before the norm", "one"],
)
def test_networks_without_two_of_them_have_none(layers: Sequence[nn.Module]) -> None:
    network = nn.Sequential(*layers).eval()
    assert first_features(network, torch.randn(2, 1, 8, 8)) is None


def test_the_network_is_left_as_it_was() -> None:
    network = MultiHeadUNet(2, 1, 1, HeadLayout("last"), features=(4, 6)).eval()
    first_features(network, torch.randn(1, 1, 8, 8))
    assert not network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_compiled_network_is_run_as_written() -> None:
    network = MultiHeadUNet(2, 1, 1, HeadLayout("last"), features=(4, 6)).eval()
    image = torch.randn(2, 1, 8, 8)
    expected = first_features(network, image)
    network.compile()
    found = first_features(network, image)
    assert expected is not None
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    features = [3 + torch.randn(2, 4, 12, 10), 5 * torch.randn(2, 3, 12, 10)]
    whole, parts = ChannelMoments(), ChannelMoments()
    whole.add(features)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 12)):
        parts.add([values[:, :, rows] for values in features])
    flat = torch.cat([values.flatten(2) for values in features], dim=1).double()
    expected = torch.cat([flat.mean(dim=2), flat.std(dim=2, correction=0).log()], dim=1)
    for found in (whole, parts):
        torch.testing.assert_close(found.statistics(), expected, rtol=1e-5, atol=1e-6)


def test_a_constant_channel_has_a_finite_spread() -> None:
    moments = ChannelMoments()
    moments.add([torch.full((1, 2, 4, 4), 7.0)])
    assert torch.isfinite(moments.statistics()).all()
