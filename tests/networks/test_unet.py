from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from edue_lightning.methods import parameter_count
from edue_lightning.networks import HeadLayout, MultiHeadUNet
from edue_lightning.networks.heads import stack_heads

Stages = Literal["last", "decoder", "encoder+decoder"]


@pytest.mark.parametrize(("stages", "members"), [("last", 1), ("decoder", 3), ("encoder+decoder", 7)])
@pytest.mark.parametrize("size", [(24, 24), (17, 30), (16, 9, 11)])
def test_every_head_predicts_at_the_input_size(stages: Stages, members: int, size: tuple[int, ...]) -> None:
    dims: Literal[2, 3] = 2 if len(size) == 2 else 3
    network = MultiHeadUNet(dims, 2, 3, HeadLayout(stages), features=(4, 6, 8, 10))
    assert network(torch.randn(2, 2, *size)).shape == (2, members, 3, *size)


def test_several_heads_a_stage_are_ordered_by_depth() -> None:
    network = MultiHeadUNet(2, 1, 2, HeadLayout("decoder", per_stage=2), features=(4, 6, 8)).eval()
    image = torch.randn(1, 1, 16, 16)
    before = network(image)
    assert before.shape == (1, 4, 2, 16, 16)
    with torch.no_grad():
        network.heads[0].conv.bias[2:] += 1  # the second head of the coarsest stage
    after = network(image)
    changed = [bool((before[:, head] != after[:, head]).any()) for head in range(4)]
    assert changed == [False, True, False, False]


def test_the_last_head_is_the_plain_networks_own() -> None:
    plain = MultiHeadUNet(2, 1, 1, HeadLayout("last"), features=(4, 6, 8)).eval()
    multi = MultiHeadUNet(2, 1, 1, HeadLayout("encoder+decoder"), features=(4, 6, 8)).eval()
    shared = {key: value for key, value in plain.state_dict().items() if not key.startswith("heads")}
    shared |= {
        f"heads.{len(multi.heads) - 1}{key.removeprefix('heads.0')}": value
        for key, value in plain.state_dict().items()
        if key.startswith("heads")
    }
    multi.load_state_dict(shared, strict=False)
    image = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(multi(image)[:, -1], plain(image)[:, 0])


def test_heads_cost_few_parameters() -> None:
    plain = MultiHeadUNet(2, 1, 1, HeadLayout("last"))
    edue = MultiHeadUNet(2, 1, 1, HeadLayout("decoder", per_stage=2))
    assert parameter_count(edue) <= 1.05 * parameter_count(plain)


@pytest.mark.parametrize("size", [(4, 64), (8, 8)])
def test_too_small_an_image_is_refused(size: tuple[int, int]) -> None:
    network = MultiHeadUNet(2, 1, 1, HeadLayout())
    with pytest.raises(ValueError, match="too small"):
        network(torch.zeros(1, 1, *size))


def test_senseless_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="two stages"):
        MultiHeadUNet(2, 1, 1, HeadLayout(), features=(8,))
    with pytest.raises(ValueError, match="at least 1"):
        HeadLayout(per_stage=0)


@pytest.mark.parametrize("size", [(16, 24, 8), (17, 9, 11)])
def test_coarse_logits_of_volumes_are_interpolated_as_by_torch(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.randn(2, 4, *of_stage, generator=generator) for of_stage in ((5, 3, 2), (8, 4, 5))]
    fine = torch.randn(2, 4, *size, generator=generator)
    weight = torch.randn(2, 4, *size, generator=generator)
    found = stack_heads([*coarse, fine], torch.Size(size), 2)
    assert torch.equal(found[:, 4:], fine.unflatten(1, (2, 2)))
    for number, given in enumerate(coarse):
        expected = F.interpolate(given, size=size, mode="trilinear", align_corners=False)
        torch.testing.assert_close(found[:, 2 * number : 2 * number + 2].flatten(1, 2), expected, rtol=0, atol=1e-5)
        gradients = []
        for interpolated in (
            lambda values: stack_heads([values], torch.Size(size), 2).flatten(1, 2),
            lambda values: F.interpolate(values, size=size, mode="trilinear", align_corners=False),
        ):
            values = given.clone().requires_grad_()
            (interpolated(values) * weight).sum().backward()
            gradients.append(values.grad)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-4)
    # heads that agree stay equal
    equal = stack_heads([torch.full_like(coarse[0], 0.3)], torch.Size(size), 2)
    assert (equal == equal.flatten()[0]).all()
