"""The changes of nnU-Net to training cases: image, raters and region move together, by draws of the case alone."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from edue_lightning.config.build import build
from edue_lightning.config.schema import configuration_folder
from edue_lightning.data import Augmentation, RaterSample
from edue_lightning.data.augmentation import augment

SHAPES = [(24, 24), (20, 33), (12, 20, 16)]
IMAGE_ONLY = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
EVERYTHING = Augmentation(flip=0.5, rotation=0.6, scaling=0.3, elastic=1.0, **dict.fromkeys(IMAGE_ONLY, 1.0))


def case(shape: tuple[int, ...]) -> RaterSample:
    """Return two channels, and the bright half of the first as the masks of two of three raters and the region."""
    places = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    smooth = torch.stack([torch.sin(2 * place + i) for i, place in enumerate(places)]).sum(0)
    bright = smooth > 0
    masks = torch.stack([bright, torch.zeros_like(bright), bright])[:, None].to(torch.uint8)
    spacing = tuple(1.0 + i for i in range(len(shape)))
    image = torch.stack([smooth, 100 + 50 * smooth])
    return RaterSample(image, masks, torch.tensor([True, False, True]), "a", spacing=spacing, region=bright)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "changes",
    [
        Augmentation(flip=0.0, elastic=1.0),
        Augmentation(flip=0.0, rotation=0.6, scaling=0.3),
        Augmentation(flip=0.5, rotation=0.6, scaling=0.3, elastic=0.8, affine=0.8),
    ],
    ids=["elastic", "affine", "all"],
)
def test_image_raters_and_region_move_together(shape: tuple[int, ...], changes: Augmentation) -> None:
    transform = changes.transform(len(shape))
    sample = case(shape)
    moved = 0
    for key in range(8):
        changed = augment(replace(sample, region=None), transform, key)
        first, missing, last = changed.masks[:, 0] > 0
        assert torch.equal(first, last)
        assert not missing.any()
        assert ((changed.image[0] > 0) == first).float().mean() > 0.95
        moved += (first != (sample.masks[0, 0] > 0)).any()
        within = augment(sample, transform, key)
        # nothing beyond the border of the image lies in the region, and nothing is marked there
        assert within.region is not None
        assert within.region.any()
        assert not (within.region & ~first).any()
        assert torch.equal(within.masks[0, 0] > 0, within.region)
        assert torch.equal(within.image, changed.image)
    assert moved >= 7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", IMAGE_ONLY)
def test_a_change_of_the_image_leaves_the_masks(name: str, shape: tuple[int, ...]) -> None:
    sample = case(shape)
    changed = augment(sample, Augmentation(flip=0.0, **{name: 1.0}).transform(len(shape)), 3)
    assert torch.equal(changed.masks, sample.masks)
    assert not torch.equal(changed.image, sample.image)
    for before, after in zip(sample.image, changed.image, strict=True):
        # in units of the channel: the second one is 50 times as wide, and far from zero
        distance = (after - before).square().mean().sqrt()
        assert 0 < distance < 0.8 * before.std() + 0.25 * before.abs().mean()


def test_every_draw_depends_on_the_key_alone() -> None:
    sample, other = case((24, 24)), case((20, 33))
    transform = EVERYTHING.transform(2)
    expected = [augment(sample, transform, key).image for key in range(4)]
    torch.manual_seed(9)
    again = EVERYTHING.transform(2)
    for key in (3, 1, 0, 2):
        augment(other, again, key + 100)
        assert torch.equal(augment(sample, again, key).image, expected[key])
    assert not any(torch.equal(expected[0], image) for image in expected[1:])


@pytest.mark.parametrize("shape", SHAPES)
def test_constant_and_wide_images_stay_finite(shape: tuple[int, ...]) -> None:
    transform = EVERYTHING.transform(len(shape))
    for image in (torch.zeros(2, *shape), torch.full((2, *shape), -3.0), case(shape).image * 1e4):
        sample = replace(case(shape), image=image)
        for key in range(3):
            changed = augment(sample, transform, key)
            assert changed.image.isfinite().all()
            assert changed.image.shape == image.shape


def test_gamma_and_contrast_keep_each_channels_own_statistics() -> None:
    sample = case((24, 24))
    gamma = augment(sample, Augmentation(flip=0.0, gamma=1.0).transform(2), 1).image
    contrast = augment(sample, Augmentation(flip=0.0, contrast=1.0).transform(2), 1).image
    for before, after, stretched in zip(sample.image, gamma, contrast, strict=True):
        torch.testing.assert_close(after.mean(), before.mean(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(after.std(), before.std(), rtol=1e-2, atol=1e-3)
        assert stretched.min() >= before.min()
        assert stretched.max() <= before.max()


@pytest.mark.parametrize("data", ["lidc_slices", "riga", "synthetic", "hecktor"])
def test_the_group_chooses_among_none_the_data_sets_own_and_nnunet(data: str) -> None:
    changes = {
        "default": [],
        **{name: [f"augmentation={name}"] for name in ("none", "light", "nnunet")},
        "changed": ["augmentation=nnunet", "data.augmentation.elastic=0.2"],
    }
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        composed = {name: compose("train", [f"data={data}", *overrides]) for name, overrides in changes.items()}
    chosen = {
        name: OmegaConf.to_container(config.data.augmentation) for name, config in composed.items() if name != "none"
    }
    assert composed["none"].data.augmentation is None
    assert chosen["light"] == chosen["default"]
    preset = build(chosen["nnunet"], "data.augmentation")
    assert preset == Augmentation(
        flip=0.5,
        rotate90=0.0,
        rotation=0.5236,
        scaling=0.3,
        affine=0.36,
        noise=0.1,
        blur=0.2,
        brightness=0.15,
        contrast=0.15,
        low_resolution=0.25,
        gamma=0.3,
    )
    assert build(chosen["changed"], "data.augmentation") == replace(preset, elastic=0.2)


@pytest.mark.parametrize("name", [*IMAGE_ONLY, "affine", "elastic"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_a_number_that_is_no_probability_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.augmentation\.{name} must lie between 0 and 1, not "):
        Augmentation(**{name: value})


def test_every_option_is_on_a_page() -> None:
    page = (Path(configuration_folder()).parent / "docs" / "data.md").read_text()
    for field in fields(Augmentation):
        assert f"| `{field.name}` |" in page, field.name


@pytest.mark.parametrize("name", ["blur", "low_resolution"])
@pytest.mark.parametrize("size", [(40, 48), (24, 20, 22)])
def test_degradations_leave_the_image_in_its_place(name: str, size: tuple[int, ...]) -> None:
    places = torch.stack(torch.meshgrid(*(torch.arange(float(length)) for length in size), indexing="ij"))
    middle = torch.tensor([(length - 1) / 2 for length in size]).reshape(-1, *[1] * len(size))
    blob = torch.exp(-((places - middle) ** 2).sum(dim=0) / 18)
    sample = RaterSample(blob[None], torch.zeros(1, 1, *size, dtype=torch.uint8), torch.ones(1, dtype=torch.bool), "a")
    transform = Augmentation(flip=0, **{name: 1.0}).transform(len(size))
    shifts = []
    for key in range(30):
        changed = augment(sample, transform, key).image
        shifts.append(((places - middle) * changed).flatten(1).sum(dim=1) / changed.sum())
    # where a new voxel lies between two, one of them is taken
    assert torch.stack(shifts).mean(dim=0).abs().max() < 0.15


@pytest.mark.parametrize("length", range(1, 41))
def test_a_deformation_keeps_the_order_of_slices_of_any_number(length: int) -> None:
    """MONAI's own gives the last slices of 8, say, the values of the first."""
    transform = Augmentation(flip=0.0, elastic=1.0).transform(3)
    ramp = torch.arange(length).float()[:, None, None].expand(length, 24, 20)
    middle = math.ceil(length / 2) - 0.5
    marked = (ramp > middle).to(torch.uint8)
    sample = RaterSample(ramp[None].clone(), marked[None, None], torch.tensor([True]), "a")
    for key in range(3):
        changed = augment(sample, transform, key)
        assert changed.image.shape == sample.image.shape
        along = changed.image[0, :, 12, 10]
        assert (along.diff() >= -1e-4).all()
        if length > 1:
            assert along[-1] > along[0]
        assert ((changed.image[0] > middle) == (changed.masks[0, 0] > 0)).float().mean() > 0.98


def test_nothing_is_marked_outside_of_a_region_that_moved() -> None:
    transform = EVERYTHING.transform(2)
    sample = case((24, 24))
    everywhere = replace(sample, masks=torch.ones_like(sample.masks))
    for key in range(8):
        changed = augment(everywhere, transform, key)
        assert changed.region is not None
        assert not changed.masks[..., ~changed.region].any()
        assert changed.masks[..., changed.region].all()
