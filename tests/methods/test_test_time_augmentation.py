"""Test-time augmentation: the views, and that each is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from method_parts import parts_of
from torch import Tensor, nn
from untrained import checkpoint

from edue_lightning import methods
from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus
from edue_lightning.errors import UserError
from edue_lightning.evaluation.cost import measure_cost
from edue_lightning.evaluation.run import evaluate
from edue_lightning.losses import SegmentationLoss
from edue_lightning.methods.targets import member_target
from edue_lightning.networks import HeadLayout
from edue_lightning.prediction.model import Model
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, save_method

STRUCTURES = ("disc", "cup")


def augmented(**options: Any) -> methods.TestTimeAugmentation:
    return methods.TestTimeAugmentation(parts_of(), HeadLayout("last"), **options).eval()


class Pointwise(nn.Module):
    """Logits that depend on each voxel's own value alone, so that every view agrees."""

    members = 1

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image[:, 0], image[:, 1] ** 2], dim=1)[:, None]


class Place(nn.Module):
    """Logits that are the voxel's position along the first two axes, whatever the image."""

    members = 1

    def forward(self, image: Tensor) -> Tensor:
        grids = torch.meshgrid(*(torch.arange(length) for length in image.shape[2:4]), indexing="ij")
        return torch.stack(grids).float().expand(len(image), 1, -1, -1, -1)


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24, missing_rater_rate=0.3), batch_size=4)
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("size", [(6, 10), (4, 6, 8)])
@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 1),
        ({"turned": True}, 2),
        ({"intensity": 0.1}, 3),
        ({"turned": True, "intensity": 0.1}, 6),
    ],
)
def test_a_network_without_surroundings_gives_all_members_alike_up_to_the_intensity(
    size: tuple[int, ...], options: dict[str, Any], factor: int
) -> None:
    method = methods.TestTimeAugmentation(parts_of(lambda heads: Pointwise()), HeadLayout("last"), **options).eval()
    image = torch.rand(2, 3, *size)
    found = method(image)
    views = 2 ** len(size)
    assert found.shape == (2, factor * views, 2, *size)
    scales = [1.0, 0.9, 1.1] if "intensity" in options else [1.0]
    for number, scale in enumerate(scales):
        of_scale = found[:, number * found.shape[1] // len(scales) : (number + 1) * found.shape[1] // len(scales)]
        expected = Pointwise()(image * scale).expand_as(of_scale)
        torch.testing.assert_close(of_scale, expected)


def test_views_are_the_eight_symmetries_of_a_square() -> None:
    method = methods.TestTimeAugmentation(parts_of(lambda heads: Place()), HeadLayout("last"), turned=True).eval()
    found = method(torch.rand(1, 3, 5, 5))[0]
    assert found.shape[0] == 8
    place = Place()(torch.rand(1, 3, 5, 5))[0, 0]
    expected = [torch.rot90(turned, quarter, (1, 2)) for turned in (place, place.flip(2)) for quarter in range(4)]

    def key(map_: Tensor) -> tuple[float, ...]:
        return tuple(map_.flatten().tolist())

    assert {key(member) for member in found} == {key(one) for one in expected}
    assert len({key(member) for member in found}) == 8


def test_a_volume_is_turned_in_its_axial_plane_alone() -> None:
    turned = [view for view in augmented(turned=True).views(3) if view.is_turned]
    image = torch.rand(1, 1, 4, 6, 8)
    assert len(turned) == 8
    assert {tuple(view.of(image).shape[2:]) for view in turned} == {(6, 4, 8)}


def test_each_member_is_the_networks_prediction_for_a_view() -> None:
    method, image = augmented(), torch.rand(2, 3, 16, 24)
    found = method(image)
    torch.testing.assert_close(found[:, :1], method.network(image))
    for member, axes in enumerate([(), (3,), (2,), (2, 3)]):
        expected = method.network(image.flip(axes)).flip([axis + 1 for axis in axes])
        torch.testing.assert_close(found[:, member : member + 1], expected)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_windows_are_shown_in_the_same_views() -> None:
    whole = augmented()
    parts = parts_of(inference=methods.Inference(window=(16, 16), overlap=0.0))
    windows = methods.TestTimeAugmentation(parts, HeadLayout("last")).eval()
    windows.load_state_dict(whole.state_dict())
    image = torch.rand(1, 3, 16, 32)
    found = windows.predict(image)
    for place in (slice(0, 16), slice(16, 32)):
        torch.testing.assert_close(found[..., place], whole(image[..., place]))


def test_training_is_that_of_the_plain_network(batch: RaterBatch) -> None:
    for target in ("majority", "soft_majority", "random_rater"):
        torch.manual_seed(0)
        method = augmented(target=target).train()
        torch.manual_seed(0)
        plain = methods.SingleNetwork(parts_of(), HeadLayout("last"), target).train()
        assert method.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(method.training_loss(batch)["loss"], plain.training_loss(batch)["loss"])
        expected = SegmentationLoss()(method.network(batch.image), member_target(batch, target)).mean()
        torch.testing.assert_close(method.training_loss(batch)["loss"], expected)
        assert method(batch.image).shape[1] == 1
        assert method.label == plain.label.replace("single", "test_time_augmentation")


@pytest.mark.parametrize(("options", "passes"), [({}, 4), ({"turned": True}, 8), ({"intensity": 0.1}, 12)])
def test_every_view_costs_a_pass(options: dict[str, Any], passes: int) -> None:
    plain = methods.SingleNetwork(parts_of(), HeadLayout("last"))
    cost = measure_cost(augmented(**options), plain, torch.rand(1, 3, 24, 24))
    assert (cost.networks, cost.forward_passes) == (1, passes)
    assert (cost.parameter_ratio, cost.flop_ratio) == (1.0, passes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mirrored": False}, "choose mirrored, turned or intensity"),
        ({"intensity": -0.1}, "at least 0 and below 1, not -0.1"),
        ({"intensity": 1.0}, "at least 0 and below 1, not 1.0"),
        ({"target": "rater_per_member"}, "rater_per_member does not apply"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmented(**options)


@pytest.mark.parametrize(("dims", "members"), [(2, 8), (3, 16)])
def test_a_checkpoint_rebuilds_the_method(tmp_path: Path, dims: int, members: int) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = ["method=test_time_augmentation", "network.features=[4,6,8]", "method.turned=true"]
        configuration = resolved(compose("train", overrides))
    image_format = ImageFormat(dims, 1, STRUCTURES)
    method = build_method(configuration, image_format).eval()
    save_method(method, tmp_path / "best.ckpt", checkpoint_entries(configuration, image_format))
    again = load_method(tmp_path / "best.ckpt").method
    assert isinstance(again, methods.TestTimeAugmentation)
    image = torch.rand(1, 1, *(16, 20, 24)[:dims])
    assert method(image).shape == (1, members, 2, *image.shape[2:])
    torch.testing.assert_close(again(image), method(image), rtol=0, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_exchanged_axes_need_voxels_of_one_size_in_new_images_and_test_cases(tmp_path: Path, dims: int) -> None:
    options = ["method=test_time_augmentation", "method.turned=true"]
    path = checkpoint(tmp_path / "best.ckpt", *options, image_format=ImageFormat(dims, 1, ("ball",)))
    image = np.random.default_rng(0).random((16, 16, 8)[:dims])
    said = r"exchanges the first two axes \(method.turned=true\), but the voxels are 0.5 and 0.9 mm along them"
    model = Model(path, "cpu")
    with pytest.raises(UserError, match=said):
        model.predict(image, spacing=(0.5, 0.9, 3.0)[:dims])
    assert np.isfinite(model.predict(image, spacing=(0.9, 0.9, 3.0)[:dims]).probability).all()

    data = tmp_path / "data"
    data.mkdir()
    affine = np.diag([0.5, 0.9, 3.0, 1.0])
    rows = []
    for number in range(2):
        case = f"case{number}"
        nibabel.save(nibabel.Nifti1Image((image + number).astype(np.float32), affine), data / f"{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image((image > 0.5).astype(np.uint8), affine), data / f"{case}_mask.nii.gz")
        rows += [f"{case},{case}.nii.gz,{case}_mask.nii.gz,{rater},ball,test" for rater in ("a", "b")]
    (data / "manifest.csv").write_text("\n".join(["case_id,image,mask,rater,structure,split", *rows]))
    command = [f"ckpt={path}", "data=manifest", f"data.root={data}", "data.cache=null", "trainer.accelerator=cpu"]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        configuration = resolved(compose("evaluate", [*command, "metrics=default", "split=test"]))
    with pytest.raises(UserError, match=rf"^data=manifest: case 'case0': the method {said}; measure other cases$"):
        evaluate(configuration, tmp_path / "measured")


@pytest.mark.parametrize(
    ("name", "method", "target"),
    [
        ("single", methods.SingleNetwork, "majority"),
        ("single_soft_majority", methods.SingleNetwork, "soft_majority"),
        ("single_random_rater", methods.SingleNetwork, "random_rater"),
        ("deep_ensemble", methods.DeepEnsemble, "majority"),
        ("deep_ensemble_soft_majority", methods.DeepEnsemble, "soft_majority"),
        ("deep_ensemble_random_rater", methods.DeepEnsemble, "random_rater"),
        ("deep_ensemble_rater_per_member", methods.DeepEnsemble, "rater_per_member"),
        ("layer_ensemble", methods.LayerEnsemble, "majority"),
        ("layer_ensemble_soft_majority", methods.LayerEnsemble, "soft_majority"),
        ("layer_ensemble_random_rater", methods.LayerEnsemble, "random_rater"),
    ],
)
def test_every_target_of_a_baseline_has_a_name(name: str, method: type, target: str) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = [f"method={name}", "network.features=[4,6,8]", "loss=cross_entropy"]
        configuration = resolved(compose("train", overrides))
    built = build_method(configuration, ImageFormat(2, 3, STRUCTURES))
    assert isinstance(built, method)
    assert built.target == target
    assert built.label == name
    trainee = built.trainees()[0]
    assert trainee.loss.dice_weight == 0
