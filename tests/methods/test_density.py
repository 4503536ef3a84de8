"""The distance of images from the training images: of every method, in any batch, window by window, and stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from method_parts import parts_of
from torch import Tensor

from edue_lightning.losses import VarianceGuidance
from edue_lightning.methods import (
    EDUE,
    DeepEnsemble,
    Density,
    Inference,
    LayerEnsemble,
    MonteCarloDropout,
    ProbabilisticUNet,
    SegmentationMethod,
    SingleNetwork,
    StochasticSegmentation,
)
from edue_lightning.methods.density import RecordedFeatures, density_features, image_features
from edue_lightning.networks import HeadLayout
from edue_lightning.networks.first_features import part_of_features
from edue_lightning.uncertainty.appearance import appearance_statistics
from edue_lightning.uncertainty.density import fit_gaussian

LAST = HeadLayout("last")
METHODS = {
    "edue": lambda parts: EDUE(parts, HeadLayout("decoder"), VarianceGuidance(1.0)),
    "layer_ensemble": lambda parts: LayerEnsemble(parts, HeadLayout("encoder+decoder")),
    "single": lambda parts: SingleNetwork(parts, LAST),
    "mc_dropout": lambda parts: MonteCarloDropout(parts, LAST),
    "stochastic_segmentation": StochasticSegmentation,
    "probabilistic_unet": ProbabilisticUNet,
    "deep_ensemble": lambda parts: DeepEnsemble(parts, LAST, members=3),
}


def images(count: int, seed: int = 0, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def fitted(method: SegmentationMethod) -> Density:
    features = density_features(method, images(12))
    gaussians = [fit_gaussian(part) for part in features]
    distances = torch.stack([one.distance(part) for one, part in zip(gaussians, features, strict=True)])
    return Density(gaussians, float(distances.mean(dim=0).max()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_density_whatever_the_batch(name: str) -> None:
    torch.manual_seed(0)
    method = METHODS[name](parts_of()).eval()
    density = fitted(method)
    new = images(5, seed=1)
    found = density(method, new)
    assert found.dtype == torch.float64
    torch.testing.assert_close(torch.cat([density(method, image[None]) for image in new]), found, rtol=1e-4, atol=0)
    # as many sigmas away as no training image
    assert (density(method, 5 * new) > density.limit).all()
    assert (density(method, images(12)) <= density.limit + 1e-4).all()


def recorded(method: SegmentationMethod, seen: Tensor, image: Tensor) -> list[Tensor] | None:
    recorder = RecordedFeatures(method, image)
    with torch.inference_mode(), recorder.recording():
        method.predict(seen)
    return recorder.features


@pytest.mark.parametrize("name", METHODS)
def test_the_pass_that_predicts_an_image_gives_the_same_features(name: str) -> None:
    torch.manual_seed(0)
    method = METHODS[name](parts_of()).eval()
    new = images(1, seed=1)
    found = recorded(method, new, new)
    if name == "mc_dropout":
        # runs the network once for each sample
        assert found is None
    else:
        expected = image_features(method, new)
        assert found is not None
        assert expected is not None
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        density = fitted(method)
        assert torch.equal(density(method, new, found), density(method, new))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in method.modules())


def test_features_are_not_taken_from_another_image_or_part_of_it_or_mode() -> None:
    torch.manual_seed(0)
    method = SingleNetwork(parts_of(), LAST).eval()
    new = images(1, seed=1)
    assert recorded(method, new, new) is not None
    assert recorded(method, new.flip(2), new) is None
    assert recorded(method.train(), new, new) is None
    windowed = SingleNetwork(parts_of(inference=Inference(window=[8, 8])), LAST).eval()
    assert recorded(windowed, new, new) is None
    recorder = RecordedFeatures(method.eval(), new)
    with recorder.recording(), torch.autocast("cpu", torch.bfloat16):
        method.predict(new)
    assert recorder.features is None


def test_of_an_ensemble_it_is_the_mean_over_the_networks() -> None:
    torch.manual_seed(0)
    ensemble = DeepEnsemble(parts_of(), LAST, members=3).eval()
    new = images(4, seed=1)
    alone = [fitted(member)(member, new) for member in ensemble.trainees()]
    torch.testing.assert_close(fitted(ensemble)(ensemble, new), torch.stack(alone).mean(dim=0))


def test_features_are_those_of_the_network_and_of_the_image_itself() -> None:
    method = DeepEnsemble(parts_of(), LAST, members=2).eval()
    new = images(3)
    first, found = image_features(method, new), density_features(method, new)
    assert first is not None
    for of_network, part in zip(first, found, strict=True):
        assert torch.equal(part, torch.cat([of_network, appearance_statistics(new)], dim=1))


def test_a_density_of_an_earlier_version_knows_first_features_alone() -> None:
    method = DeepEnsemble(parts_of(), LAST, members=2).eval()
    features = image_features(method, images(12))
    assert features is not None
    gaussians = [fit_gaussian(part) for part in features]
    stored = {"gaussians": [{"mean": one.mean, "whitening": one.whitening} for one in gaussians], "limit": 9.0}
    found = Density.from_dict(stored)
    new = images(3, seed=1)
    given = image_features(method, new)
    assert given is not None
    expected = torch.stack([one.distance(part) for one, part in zip(gaussians, given, strict=True)]).mean(dim=0)
    assert torch.equal(found(method, new), expected)
    assert torch.equal(found(method, new, given), expected)
    assert torch.equal(Density.from_dict(found.as_dict())(method, new), expected)


def test_windows_see_all_of_an_image() -> None:
    torch.manual_seed(0)
    windowed = SingleNetwork(parts_of(inference=Inference(window=[8, 8])), LAST).eval()
    image = images(1, size=24)
    features = image_features(windowed, image)
    assert features is not None
    changed = image.clone()
    changed[..., -3:, -3:] += 1
    other = image_features(windowed, changed)
    assert other is not None
    assert not torch.equal(other[0], features[0])
    # an image smaller than a window is padded, as it is for a prediction
    assert image_features(windowed, images(1, size=6)) is not None


@pytest.mark.parametrize("size", [(11, 7), (8, 4), (3, 9), (2, 3), (13, 4)])
def test_tiles_hold_each_voxel_of_the_image_once(size: tuple[int, int]) -> None:
    image = torch.arange(1.0, size[0] * size[1] + 1).reshape(1, 1, *size)
    seen = torch.cat([tile[:, :, *box].flatten() for tile, box in Inference(window=[4, 4]).tiles(image)])
    assert sorted(seen.tolist()) == image.flatten().tolist()
    whole = [(tile.shape, box) for tile, box in Inference().tiles(image)]
    assert whole == [(image.shape, (slice(0, size[0]), slice(0, size[1])))]


def test_the_padding_of_an_image_smaller_than_a_window_does_not_count() -> None:
    torch.manual_seed(0)
    image = 2 + images(1, size=12)
    whole = SingleNetwork(parts_of(), LAST).eval()
    expected = image_features(whole, image)
    windowed = SingleNetwork(parts_of(inference=Inference(window=[16, 16])), LAST).eval()
    windowed.load_state_dict(whole.state_dict())
    found, padded = image_features(windowed, image), image_features(windowed, image, padded=True)
    assert expected is not None
    assert found is not None
    assert padded is not None
    # the padding still takes part in the normalisation before the second convolution
    away, before = ((part[0] - expected[0]).abs().mean() for part in (found, padded))
    assert away < 0.6 * before


def test_features_of_a_part_are_those_of_its_place() -> None:
    values = torch.arange(32.0).reshape(1, 1, 4, 8)
    assert torch.equal(part_of_features(values, (slice(1, 3), slice(0, 8)), (4, 8)), values[:, :, 1:3])
    # strides of two: what the part touches
    assert torch.equal(part_of_features(values, (slice(2, 5), slice(0, 16)), (8, 16)), values[:, :, 1:3])


def test_a_method_with_other_networks_is_refused() -> None:
    density = fitted(SingleNetwork(parts_of(), LAST).eval())
    with pytest.raises(ValueError, match="fitted to other networks"):
        density(DeepEnsemble(parts_of(), LAST, members=2).eval(), images(1))


def test_it_can_be_stored_as_tensors_and_plain_values(tmp_path: Path) -> None:
    method = DeepEnsemble(parts_of(), LAST, members=2).eval()
    density = fitted(method)
    torch.save(density.as_dict(), tmp_path / "density.pt")
    found = Density.from_dict(torch.load(tmp_path / "density.pt", weights_only=True))
    assert (found.limit, found.false_alarms) == (density.limit, density.false_alarms)
    torch.testing.assert_close(found(method, images(3)), density(method, images(3)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: {**one, "whitening": one["whitening"][:3]},
        lambda one: {**one, "mean": one["mean"] * torch.nan},
        lambda one: {**one, "whitening": torch.zeros(1).expand(len(one["mean"]), len(one["mean"]))},
    ],
)
def test_damaged_values_are_refused(change: object) -> None:
    stored = fitted(SingleNetwork(parts_of(), LAST).eval()).as_dict()
    assert callable(change)
    with pytest.raises(ValueError, match="damaged"):
        Density.from_dict({**stored, "gaussians": [change(one) for one in stored["gaussians"]]})


def test_a_distance_beyond_the_limit_is_put_in_words() -> None:
    density = Density([], 10.0)
    assert density.outside(10.0) == []
    assert density.outside(10.9) == ["density 10.9 outside 0 to 10"]


def test_of_an_earlier_version_the_largest_known_distance_and_a_tenth_are_the_limit() -> None:
    found = Density.from_dict({"gaussians": [], "largest": 10.0})
    assert found.false_alarms is None
    assert found.outside(10.9) == []
    assert found.outside(11.5) == ["density 11.5 outside 0 to 11"]
