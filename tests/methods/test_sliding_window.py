"""Windows over a whole image: each voxel in its place, members kept apart, padding cut away."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor

from edue_lightning.methods import Inference, InferenceChanges


def members_of(image: Tensor) -> Tensor:
    """Return three members of two structures that depend on each voxel alone, `[B, 3, 2, *S]`."""
    factors = torch.arange(1.0, 7.0).reshape(3, 2, *[1] * (image.ndim - 2))
    return image[:, :1, None] * factors


@settings(max_examples=30)
@given(
    shape=st.lists(st.integers(3, 14), min_size=2, max_size=3),
    window=st.lists(st.integers(2, 9), min_size=3, max_size=3),
    overlap=st.sampled_from([0.0, 0.25, 0.6]),
    batch_size=st.integers(1, 4),
)
def test_what_depends_on_each_voxel_alone_comes_back_in_place(
    shape: list[int], window: list[int], overlap: float, batch_size: int
) -> None:
    image = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    seen = Inference(window[: len(shape)], overlap, batch_size)(members_of, image)
    assert seen.shape == (2, 3, 2, *shape)
    torch.testing.assert_close(seen, members_of(image), rtol=1e-4, atol=1e-5)


def test_the_network_sees_windows_of_the_given_size_alone() -> None:
    sizes = set()

    def network(part: Tensor) -> Tensor:
        sizes.add(tuple(part.shape[2:]))
        return members_of(part)

    Inference([8, 16], batch_size=2)(network, torch.zeros(1, 1, 30, 10))
    assert sizes == {(8, 16)}
    Inference()(network, torch.zeros(1, 1, 30, 10))
    assert (30, 10) in sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": [0, 4]}, "two or three positive integers"),
        ({"window": [4]}, "two or three positive integers"),
        ({"overlap": 1.0}, "at least 0 and below 1"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_invalid_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Inference(**arguments)  # type: ignore[arg-type]


def test_a_window_of_another_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="the images are 2D"):
        Inference([4, 4, 4])(members_of, torch.zeros(1, 1, 8, 8))


def blurred(image: Tensor) -> Tensor:
    """Return three members of one structure that depend on each voxel's neighbours, `[B, 3, 1, *S]`."""
    convolve = torch.conv2d if image.ndim == 4 else torch.conv3d
    kernels = torch.randn(3, image.shape[1], *[3] * (image.ndim - 2), generator=torch.Generator().manual_seed(1))
    return convolve(image, kernels, padding=1)[:, :, None]


@settings(max_examples=30)
@given(
    shape=st.lists(st.integers(3, 14), min_size=2, max_size=3),
    window=st.lists(st.integers(2, 9), min_size=3, max_size=3),
    overlap=st.sampled_from([0.0, 0.25, 0.6]),
    batch_size=st.integers(1, 4),
)
def test_windows_are_blended_as_monai_blends_them(
    shape: list[int], window: list[int], overlap: float, batch_size: int
) -> None:
    image = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    window = window[: len(shape)]
    expected = sliding_window_inference(
        image, window, batch_size, lambda part: blurred(part)[:, :, 0], overlap=overlap, mode="gaussian"
    )
    assert isinstance(expected, Tensor)
    found = Inference(window, overlap, batch_size)(blurred, image)
    torch.testing.assert_close(found[:, :, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_slab_is_given_as_soon_as_no_window_reaches_it() -> None:
    seen = 0

    def network(part: Tensor) -> Tensor:
        nonlocal seen
        seen += len(part)
        return members_of(part)

    lengths = []
    windows = []
    for slab in Inference([8, 8], overlap=0.5, batch_size=3).slabs(network, torch.zeros(1, 1, 40, 16)):
        lengths.append(slab.shape[3])
        windows.append(seen)
    assert sum(lengths) == 40
    assert max(lengths) <= 8
    # three windows side by side, a new row of them every four voxels
    assert windows[:3] == [3, 6, 9]


def test_changes_leave_the_other_settings_as_in_the_training() -> None:
    trained = Inference([8, 6], 0.5, 3)
    assert InferenceChanges().of(trained) == Inference([8, 6], 0.5, 3)
    assert InferenceChanges(window=[4, 4]).of(trained) == Inference((4, 4), 0.5, 3)
    assert InferenceChanges(window=[]).of(trained) == Inference(None, 0.5, 3)
    assert InferenceChanges(overlap=0.0, batch_size=1).of(trained) == Inference([8, 6], 0.0, 1)
    with pytest.raises(ValueError, match="overlap must be at least 0"):
        InferenceChanges(overlap=1.0).of(trained)
