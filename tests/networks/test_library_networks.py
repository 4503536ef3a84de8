import copy
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from monai.networks import nets
from torch import nn

from edue_lightning.methods import parameter_count
from edue_lightning.networks import (
    AttentionUNet,
    DynUNet,
    EncoderUNet,
    HeadLayout,
    NnUNet,
    SegResNet,
    StagedNetwork,
    SwinUNETR,
)

Dims = Literal[2, 3]

# tiny ones, with their heads on the decoder and on all stages
MONAI: dict[str, tuple[type[StagedNetwork], dict[str, Any], int, int]] = {
    "dynunet": (DynUNet, {"features": (4, 6, 8)}, 2, 5),
    "dynunet residual": (DynUNet, {"features": (4, 6, 8), "residual": True}, 2, 5),
    "segresnet": (SegResNet, {"features": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, 2, 5),
    "swin_unetr": (SwinUNETR, {"features": 12, "window": 2, "depths": (1, 1, 1, 1)}, 5, 10),
    "attention_unet": (AttentionUNet, {"features": (4, 6, 8)}, 2, 5),
}
LIBRARIES = {
    "nnunet": (NnUNet, {"features": (4, 6, 8)}, 2, 5),
    "nnunet residual": (NnUNet, {"features": (4, 6, 8), "residual": True, "blocks": (1, 2, 2)}, 2, 5),
}
installed = importlib.util.find_spec("dynamic_network_architectures") is not None
needs_libraries = pytest.mark.skipif(not installed, reason="the networks extra is not installed (make test-networks)")
ALL = [
    *(pytest.param(*values, id=name) for name, values in MONAI.items()),
    *(pytest.param(*values, id=name, marks=needs_libraries) for name, values in LIBRARIES.items()),
]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("network", "options", "decoder", "everywhere"), ALL)
def test_every_head_of_a_library_network_predicts_at_the_input_size(
    network: Callable[..., StagedNetwork], options: dict[str, Any], decoder: int, everywhere: int, dims: Dims
) -> None:
    size = (36, 40) if dims == 2 else (20, 24, 40)
    image = torch.randn(2, 2, *size)
    for stages, members in (("last", 1), ("decoder", decoder), ("encoder+decoder", everywhere)):
        made = network(dims, 2, 3, HeadLayout(stages, per_stage=2), **options)  # type: ignore[arg-type]
        logits = made(image)
        assert logits.shape == (2, 2 * members, 3, *size)
        assert made.members == 2 * members
    # every head learns, and so does the body
    logits.square().mean().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in made.heads.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_last_stage_alone_is_the_network_of_its_library(dims: Dims) -> None:
    made = SegResNet(dims, 1, 2, HeadLayout("last"), features=8, blocks_down=(1, 1), blocks_up=(1,)).eval()
    library = nets.SegResNet(dims, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)).eval()
    library.load_state_dict({name.removeprefix("body."): value for name, value in made.state_dict().items()})
    image = torch.randn(1, 1, *[16] * dims)
    torch.testing.assert_close(made(image)[:, 0], library(image))


def test_heads_follow_the_run_of_the_stages() -> None:
    made = DynUNet(2, 1, 1, HeadLayout("encoder+decoder"), features=(4, 6, 8)).eval()
    assert [head.conv.in_channels for head in made.heads] == [4, 6, 8, 6]
    image = torch.randn(1, 1, 16, 16)
    before = made(image)
    with torch.no_grad():
        made.heads[3].conv.bias += 1
    changed = [bool((before[:, head] != made(image)[:, head]).any()) for head in range(5)]
    assert changed == [False, False, False, True, False]


@pytest.mark.parametrize(("network", "options", "decoder", "everywhere"), ALL)
def test_every_head_begins_with_the_foreground_prior(
    network: Callable[..., StagedNetwork], options: dict[str, Any], decoder: int, everywhere: int
) -> None:
    made = network(2, 1, 1, HeadLayout("decoder"), foreground_prior=0.02, **options)
    means = torch.sigmoid(made(torch.randn(2, 1, 64, 64))).mean(dim=(0, 2, 3, 4))
    assert (means < 0.2).all()


def test_a_copy_keeps_its_own_features() -> None:
    made = DynUNet(2, 1, 1, HeadLayout("decoder"), features=(4, 6, 8)).eval()
    other = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in other.body.parameters():
            parameter.zero_()
    image = torch.randn(1, 1, 16, 16)
    before = made(image)
    assert not torch.equal(other(image), before)
    torch.testing.assert_close(made(image), before)


def test_padding_changes_nothing_where_none_is_needed_and_is_cropped() -> None:
    made = SegResNet(2, 1, 1, HeadLayout("decoder"), features=8, blocks_down=(1, 1), blocks_up=(1,)).eval()
    image = torch.randn(1, 1, 16, 17)
    padded = torch.cat([image, image[..., -1:]], dim=-1)
    torch.testing.assert_close(made(image), made(padded)[..., :17])


def test_too_small_an_image_is_refused() -> None:
    made = DynUNet(2, 1, 1, HeadLayout(), features=(4, 6, 8))
    with pytest.raises(ValueError, match="too small"):
        made(torch.zeros(1, 1, 4, 3))
    assert made(torch.zeros(1, 1, 4, 5)).shape == (1, 1, 1, 4, 5)


def test_heads_cost_few_parameters() -> None:
    for network in (DynUNet, SegResNet, SwinUNETR, AttentionUNet):
        plain = parameter_count(network(2, 1, 1, HeadLayout("last")))
        assert parameter_count(network(2, 1, 1, HeadLayout("decoder"))) <= 1.02 * plain, network.__name__


class Halves(nn.Module):
    """Network of somebody's own, whose output has half of the image's size."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 4, 3, stride=2, padding=1)
        self.out = nn.Conv2d(4, num_classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.out(self.stem(image).relu())


def test_a_network_of_ones_own_has_its_output_as_its_head() -> None:
    made = StagedNetwork(2, 3, 2, HeadLayout("last", per_stage=4), network=Halves)
    assert made(torch.randn(1, 3, 20, 30)).shape == (1, 4, 2, 20, 30)


def test_a_network_without_stages_says_so() -> None:
    with pytest.raises(ValueError, match=r"heads on the decoder's stages need a network with such stages"):
        StagedNetwork(2, 1, 1, HeadLayout("decoder"), network=Halves)
    with pytest.raises(ValueError, match=r"Halves has none.*network.decoder=up"):
        StagedNetwork(2, 1, 1, HeadLayout("decoder"), network=Halves, decoder="up")


def test_a_network_with_another_output_is_refused() -> None:
    with pytest.raises(ValueError, match="takes none of out_channels, classes, num_classes"):
        StagedNetwork(2, 1, 1, HeadLayout(), network=lambda in_channels: nn.Conv2d(in_channels, 1, 1))
    with pytest.raises(ValueError, match=r"returns \[1, 5, 32, 32\], but \[B, 1\]"):
        StagedNetwork(2, 1, 1, HeadLayout(), network=lambda in_channels, classes: nn.Conv2d(in_channels, 5, 1))


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ValueError, match="three stages"):
        DynUNet(2, 1, 1, HeadLayout(), features=(4, 8))
    with pytest.raises(ValueError, match="multiple of 8"):
        SegResNet(2, 1, 1, HeadLayout(), features=12)
    with pytest.raises(ValueError, match="one stage fewer"):
        SegResNet(2, 1, 1, HeadLayout(), blocks_up=(1,))
    with pytest.raises(ValueError, match="multiple of 12"):
        SwinUNETR(2, 1, 1, HeadLayout(), features=16)
    with pytest.raises(ValueError, match="between 0 and 1"):
        SegResNet(2, 1, 1, HeadLayout("decoder"), foreground_prior=0)
    with pytest.raises(ValueError, match="2D images"):
        EncoderUNet(3, 1, 1, HeadLayout())


@pytest.mark.skipif(installed, reason="the networks extra is installed")
@pytest.mark.parametrize("network", [NnUNet, EncoderUNet])
def test_a_missing_library_is_named_with_the_fix(network: Callable[..., StagedNetwork]) -> None:
    with pytest.raises(ValueError, match=r"not installed.*edue-lightning\[networks\]"):
        network(2, 1, 1, HeadLayout())


@needs_libraries
@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_an_encoder_gives_heads_on_its_decoder(encoder: str) -> None:
    made = EncoderUNet(2, 2, 3, HeadLayout("decoder"), encoder=encoder, features=(16, 8, 8))
    assert made(torch.randn(2, 2, 40, 48)).shape == (2, 3, 3, 40, 48)
    with pytest.raises(ValueError, match="encoder's stages"):
        EncoderUNet(2, 2, 3, HeadLayout("encoder+decoder"), encoder=encoder)
    with pytest.raises(ValueError, match="Wrong encoder name"):
        EncoderUNet(2, 2, 3, HeadLayout(), encoder="no_such")


@needs_libraries
def test_weights_of_an_encoder_come_from_a_file(tmp_path: Any) -> None:
    made = EncoderUNet(2, 3, 1, HeadLayout(), encoder="resnet18", features=(16, 8, 8))
    encoder = made.body.get_submodule("encoder")
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    again = EncoderUNet(
        2, 3, 1, HeadLayout(), encoder="resnet18", weights=str(tmp_path / "encoder.pt"), features=(16, 8, 8)
    )
    for name, value in again.body.get_submodule("encoder").state_dict().items():
        torch.testing.assert_close(value, encoder.state_dict()[name])


LOW_RESOLUTION = {
    "features": (4, 6, 8),
    "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
}


@pytest.mark.parametrize(
    "network",
    [pytest.param(DynUNet, id="dynunet"), pytest.param(NnUNet, id="nnunet", marks=needs_libraries)],
)
def test_strides_and_kernels_per_axis_keep_an_axis_of_low_resolution(network: Callable[..., StagedNetwork]) -> None:
    seen: list[tuple[int, ...]] = []
    made = network(3, 1, 1, HeadLayout("encoder+decoder"), **LOW_RESOLUTION)
    for module in made.body.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[2:])))
    # 5 slices are padded to 6, a multiple of 2, and not to 8
    assert made(torch.randn(1, 1, 16, 20, 5)).shape == (1, 5, 1, 16, 20, 5)
    assert (4, 5, 3) in seen
    assert {size[2] for size in seen} == {6, 3}
    kernels = {tuple(one.kernel_size) for one in made.body.modules() if isinstance(one, nn.Conv3d)}
    assert (3, 3, 1) in kernels
    assert made.multiples == (4, 4, 2)
    assert made.stride == 4


def test_strides_of_two_are_what_a_network_has_without_them() -> None:
    torch.manual_seed(0)
    plain = DynUNet(2, 1, 1, HeadLayout("decoder"), features=(4, 6, 8))
    torch.manual_seed(0)
    stated = DynUNet(
        *(2, 1, 1, HeadLayout("decoder")), features=(4, 6, 8), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3
    )
    image = torch.randn(1, 1, 20, 24)
    assert torch.equal(plain(image), stated(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": ((1, 1), (2, 2))}, "strides needs 3 stages of 2 numbers, one per axis"),
        ({"strides": ((1, 1), (2, 2), (2, 2, 2))}, "strides needs 3 stages of 2 numbers, one per axis"),
        ({"strides": ((2, 2), (2, 2), (2, 2))}, "strides must be 1 in the first stage"),
        ({"strides": ((1, 1), (2, 0), (2, 2))}, "strides must be at least 1"),
        ({"kernels": ((3, 3), (2, 3), (3, 3))}, "kernels must be odd"),
    ],
)
def test_strides_and_kernels_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynUNet(2, 1, 1, HeadLayout("last"), features=(4, 6, 8), **options)
