"""Plans: nnU-Net's rules against values of its own planner, and what the user states against what the plan chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from patients import LPS, Patient, affine_of

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.plan import PlanSettings, fingerprint_of, keeping, network_rules, planned, with_plan
from edue_lightning.config.plan_rules import NetworkRules, Plan, make_plan, target_spacing
from edue_lightning.config.schema import check_configuration, configuration_folder, resolved
from edue_lightning.data.fingerprint import Fingerprint
from edue_lightning.errors import UserError
from edue_lightning.training.run import TrainConfiguration


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", list(overrides)))


def fingerprint(
    size: tuple[int, ...], spacing: tuple[float, ...] | None = None, cases: int = 100, mixed: bool = True
) -> Fingerprint:
    """Return the fingerprint of cases of one size, with two structures."""
    return Fingerprint((size,) * cases, (spacing,) * cases, 1, ("a", "b"), (4, 4), None, mixed)


# what nnU-Net 2 plans (8 GB, two outputs, its code at commit 0e495086) for cases that all have this size and spacing:
# patch, batch, stages, values of all feature maps
OF_NNUNET = [
    ((240, 240, 155), (1.0, 1.0, 1.0), 100, False, (160, 160, 96), 2, 6),
    ((400, 400, 100), (1.0, 1.0, 3.0), 200, False, (224, 192, 48), 2, 6),
    ((200, 200, 60), (0.98, 0.98, 3.27), 300, False, (192, 192, 56), 2, 6),
    ((256, 224, 12), (1.5625, 1.5625, 5.0), 150, False, (256, 224, 12), 6, 6),
    # the published plan of the hippocampus of the Medical Segmentation Decathlon
    ((36, 50, 35), (1.0, 1.0, 1.0), 260, False, (40, 56, 40), 9, 4),
    ((256, 256), (1.0, 1.0), 600, False, (256, 256), 30, 7),
    ((128, 128), (1.0, 1.0), 9000, False, (128, 128), 199, 6),
    ((600, 500), (0.7, 0.7), 30, False, (640, 512), 2, 8),
    ((16, 20, 12), (1.0, 1.0, 1.0), 50, False, (16, 20, 12), 2, 3),
    ((400, 400, 100), (1.0, 1.0, 3.0), 200, True, (192, 192, 48), 2, 6),
    ((200, 200, 60), (0.98, 0.98, 3.27), 300, True, (192, 160, 56), 2, 6),
    ((256, 224, 12), (1.5625, 1.5625, 5.0), 150, True, (256, 224, 12), 5, 6),
    ((600, 500), (0.7, 0.7), 30, True, (512, 512), 2, 8),
]


@pytest.mark.parametrize(("size", "spacing", "cases", "residual", "patch", "batch", "stages"), OF_NNUNET)
def test_patch_batch_and_stages_are_those_of_nnunet(
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    cases: int,
    residual: bool,
    patch: tuple[int, ...],
    batch: int,
    stages: int,
) -> None:
    found = make_plan(fingerprint(size, spacing, cases), NetworkRules(residual=residual))
    assert (found.patch, found.batch_size, len(found.topology.strides)) == (patch, batch, stages)
    widest = 512 if len(size) == 2 else 320
    assert found.features == tuple(min(32 * 2**stage, widest) for stage in range(stages))
    assert all(edge % total == 0 for edge, total in zip(patch, np.prod(found.topology.strides, axis=0), strict=True))


def test_an_axis_of_low_resolution_is_reduced_and_filtered_later() -> None:
    # as nnU-Net plans such volumes
    found = make_plan(fingerprint((256, 224, 12), (1.5625, 1.5625, 5.0), 150), NetworkRules()).topology
    assert found.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 1), (2, 2, 1), (2, 2, 1))
    assert found.kernels == ((3, 3, 1), *((3, 3, 3),) * 5)


def test_the_spacing_is_the_median_of_the_training_cases() -> None:
    spacings = ((0.8, 0.8, 2.0), (1.0, 1.0, 2.5), (1.2, 1.2, 2.9))
    found = Fingerprint(((200, 200, 100),) * 3, spacings, 1, ("a",), (2, 2), None, True)
    assert target_spacing(found) == (1.0, 1.0, 2.5)


def test_along_an_axis_of_much_lower_resolution_it_is_the_tenth_percentile() -> None:
    spacings = tuple((1.0, 1.0, float(size)) for size in range(2, 13))
    found = Fingerprint(((256, 256, 20),) * 11, spacings, 1, ("a",), (2, 2), None, True)
    assert target_spacing(found) == (1.0, 1.0, 3.0)
    # with many voxels along it, it is no such axis: the median
    long = Fingerprint(((256, 256, 200),) * 11, spacings, 1, ("a",), (2, 2), None, True)
    assert target_spacing(long) == (1.0, 1.0, 7.0)


def test_it_is_never_finer_than_the_other_axes() -> None:
    spacings = (*((1.0, 1.0, 0.5),) * 3, *((1.0, 1.0, 5.0),) * 8)
    found = Fingerprint(((256, 256, 20),) * 11, spacings, 1, ("a",), (2, 2), None, True)
    assert target_spacing(found) == (1.0, 1.0, 1.00001)


def test_the_median_size_is_that_after_resampling() -> None:
    sizes = ((100, 100, 40), (200, 200, 80), (100, 100, 80))
    spacings = ((2.0, 2.0, 2.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    cases = Fingerprint(sizes, spacings, 1, ("a",), (2, 2), None, True)
    found = make_plan(cases, NetworkRules(), resamples=True)
    # on voxels of 1 mm: 200x200x80, 200x200x80, 100x100x80
    assert found.spacing == (1.0, 1.0, 1.0)
    assert found.patch == make_plan(fingerprint((200, 200, 80), (1.0, 1.0, 1.0)), NetworkRules()).patch
    assert make_plan(cases, NetworkRules()).spacing is None


def test_images_of_one_size_that_the_memory_holds_are_trained_whole() -> None:
    assert make_plan(fingerprint((64, 64), mixed=False), NetworkRules()).patch is None
    # of 250x250 the network pads each image to 256x256
    assert make_plan(fingerprint((250, 250), mixed=False), NetworkRules()).patch is None
    assert make_plan(fingerprint((64, 64), mixed=True), NetworkRules()).patch == (64, 64)
    assert make_plan(fingerprint((3000, 2000), mixed=False), NetworkRules()).patch == (1536, 1024)


def test_a_median_that_is_no_multiple_of_the_strides_is_padded() -> None:
    found = make_plan(fingerprint((100, 70)), NetworkRules())
    assert found.patch == (112, 80)
    assert len(found.topology.strides) == 5


@pytest.mark.parametrize("size", [(6, 6), (3, 9), (5, 4, 3), (1, 12, 12)])
def test_tiny_images_get_the_smallest_network(size: tuple[int, ...]) -> None:
    rules = NetworkRules(width=4, least_stages=3)
    found = make_plan(fingerprint(size), rules)
    assert len(found.topology.strides) == 3
    assert found.patch is not None
    assert all(edge >= length for edge, length in zip(found.patch, size, strict=True))
    assert found.batch_size >= 2


def test_a_network_without_strides_per_axis_halves_all_axes_alike() -> None:
    found = make_plan(fingerprint((256, 224, 12), (1.5625, 1.5625, 5.0)), NetworkRules(width=16, per_axis=False))
    assert found.topology.strides == ((1, 1, 1), (2, 2, 2))
    assert found.features == (16, 32)


def test_one_slice_is_padded_for_a_network_that_halves_all_axes() -> None:
    assert make_plan(fingerprint((1, 12, 12)), NetworkRules(per_axis=False)).patch == (2, 12, 12)


def test_less_memory_gives_smaller_patches_and_batches() -> None:
    cases = fingerprint((240, 240, 155), (1.0, 1.0, 1.0))
    large, small = (make_plan(cases, NetworkRules(), memory_gb) for memory_gb in (8.0, 4.0))
    assert np.prod(small.patch or ()) < np.prod(large.patch or ())
    slices = fingerprint((128, 128), cases=9000)
    assert make_plan(slices, NetworkRules(), 4.0).batch_size == 99


def test_a_memory_for_no_patch_is_refused() -> None:
    with pytest.raises(UserError, match=r"plan.memory_gb=0.0001: does not hold two patches of .*; raise it"):
        make_plan(fingerprint((240, 240, 155)), NetworkRules(), 0.0001)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_gb": 0}, "plan.memory_gb must be positive, not 0"),
        (
            {"keep": ["data.batchsize"]},
            "plan.keep=data.batchsize: a plan sets no such key; it sets data.source.spacing",
        ),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanSettings(**settings)


@pytest.mark.parametrize(
    ("experiment", "image_format", "size"),
    [
        ("hecktor", ImageFormat(3, 2, ("GTVn",)), (192, 160, 64)),
        ("riga", ImageFormat(2, 3, ("disc", "cup")), (256, 256)),
        ("lidc_slices", ImageFormat(2, 1, ("nodule",)), (128, 128)),
        ("lidc_slices", ImageFormat(2, 1, ("nodule",)), (64, 64)),
    ],
)
def test_the_networks_of_the_presets_take_images_of_their_true_size(
    experiment: str, image_format: ImageFormat, size: tuple[int, ...]
) -> None:
    # shapes alone: the networks are of the size for a GPU
    with torch.device("meta"), torch.no_grad():
        method = build_method(composed(f"experiment={experiment}", "data.root=.", "method=edue"), image_format)
        logits = method.network(torch.zeros(2, image_format.channels, *size))
    stages = len(composed(f"experiment={experiment}")["network"]["features"])
    assert logits.shape == (2, 2 * (stages - 1), len(image_format.structures), *size)


def test_an_experiment_with_a_plan_is_trained_without_it_by_plan_none() -> None:
    assert composed("experiment=qubiq", "plan.memory_gb=12")["plan"]["memory_gb"] == 12
    assert composed("experiment=qubiq", "plan=none")["plan"] is None


# what the user states


def made(overrides: list[str], keys: list[str], cases: Fingerprint) -> tuple[dict[str, Any], tuple[str, ...], Plan]:
    """Return the planned configuration, the kept keys and the plan of a command line."""
    configuration = keeping(composed("plan=auto", *overrides), keys)
    check_configuration(configuration, TrainConfiguration)
    settings = PlanSettings(**{key: value for key, value in configuration["plan"].items() if key != "_target_"})
    found = with_plan(configuration, settings, cases)
    return found.configuration, found.kept, found.plan


HECKTOR = ["data=hecktor", "data.root=.", "network=dynunet"]
SCANS = fingerprint((500, 500, 200), (1.0, 1.0, 3.0), 400)


def test_a_plan_sets_plain_values_in_the_configuration() -> None:
    found, kept, _ = made(HECKTOR, [], SCANS)
    assert kept == ()
    assert found["data"]["source"]["spacing"] == [1.0, 1.0, 3.0]
    assert found["data"]["patch"]["size"] == found["inference"]["window"] == [192, 160, 64]
    assert found["data"]["batch_size"] == 2
    assert found["network"]["features"] == [32, 64, 128, 256, 320, 320]
    assert found["network"]["strides"][:3] == [[1, 1, 1], [2, 2, 1], [2, 2, 2]]
    assert found["network"]["kernels"][0] == [3, 3, 1]
    assert found["plan"]["values"]["data.batch_size"] == 2
    # nothing else changes, and it is a valid configuration
    check_configuration(found, TrainConfiguration)
    assert found["data"]["patch"]["per_case"] == 4


def test_the_preset_of_hecktor_is_the_plan_of_scans_of_the_size_it_names() -> None:
    preset = composed("experiment=hecktor", "data.root=.")
    found, _, _ = made(["experiment=hecktor", "data.root=."], [], SCANS)
    for part in ("data", "network", "inference"):
        assert found[part] == preset[part]


@pytest.mark.parametrize(
    ("experiment", "size", "cases"), [("riga", (256, 256), 557), ("lidc_slices", (128, 128), 9000)]
)
def test_the_presets_of_pictures_have_the_stages_and_at_most_the_batch_of_their_plan(
    experiment: str, size: tuple[int, ...], cases: int
) -> None:
    preset = composed(f"experiment={experiment}", "data.root=.")
    found, _, plan = made([f"experiment={experiment}", "data.root=."], [], fingerprint(size, cases=cases, mixed=False))
    assert preset["network"]["features"] == found["network"]["features"]
    assert preset["data"]["batch_size"] <= plan.batch_size
    assert plan.patch is None


@pytest.mark.parametrize(
    ("override", "key", "where"),
    [
        ("data.batch_size=5", "data.batch_size", lambda found: found["data"]["batch_size"] == 5),
        ("data.patch.size=[64,64,32]", "data.patch.size", lambda found: found["data"]["patch"]["size"] == [64, 64, 32]),
        ("data.source.spacing=[2,2,3]", "data.source.spacing", lambda f: f["data"]["source"]["spacing"] == [2, 2, 3]),
        ("inference.window=[96,96,32]", "inference.window", lambda found: found["inference"]["window"] == [96, 96, 32]),
        ("network.features=[8,16,32]", "network.features", lambda found: found["network"]["features"] == [8, 16, 32]),
    ],
)
def test_what_the_command_line_states_wins_and_is_said(override: str, key: str, where: Any) -> None:
    found, kept, _ = made([*HECKTOR, override], [key, "data.root", "trainer.max_epochs"], SCANS)
    assert where(found)
    assert key in kept
    assert key not in found["plan"]["values"]
    assert found["plan"]["keep"] == [key]


def test_other_choices_follow_from_what_is_stated() -> None:
    patch, _, _ = made([*HECKTOR, "data.patch.size=[64,64,32]"], ["data.patch.size"], SCANS)
    assert patch["inference"]["window"] == [64, 64, 32]
    assert patch["network"]["strides"] == [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert patch["data"]["batch_size"] > 2
    network, _, plan = made([*HECKTOR, "network.features=[8,16,32]"], ["network.features"], SCANS)
    assert network["network"]["strides"] is None
    assert all(edge % 4 == 0 for edge in plan.patch or ())
    assert "network.features" not in network["plan"]["values"]
    # an experiment's own values are none of the command line's
    preset, kept, _ = made(["experiment=riga", "data.root=."], [], fingerprint((96, 96), cases=557))
    assert kept == ()
    assert preset["data"]["batch_size"] == 28
    assert preset["data"]["patch"]["size"] == [96, 96]


def test_whole_images_that_are_stated_are_predicted_whole() -> None:
    overrides = ["data=qubiq", "data.root=.", "network=dynunet", "data.patch.size=null"]
    found, kept, _ = made(overrides, ["data.patch.size"], fingerprint((300, 200)))
    assert kept == ("data.patch.size",)
    assert found["data"]["patch"]["size"] is None
    assert found["inference"]["window"] is None
    # 200 is halved five times, to 7
    assert found["network"]["features"] == [32, 64, 128, 256, 512, 512]


def test_the_network_for_whole_images_fits_their_size_on_the_planned_voxels() -> None:
    # the median has 32 voxels as the files store it, and 64 on the planned voxels of 1 mm
    sizes = ((32,) * 3,) * 26 + ((200,) * 3,) * 25 + ((32,) * 3,) * 49
    spacings = ((1.0,) * 3,) * 51 + ((2.0,) * 3,) * 49
    overrides, keys = [*HECKTOR, "data.patch.size=null"], ["data.patch.size"]
    found, _, plan = made(overrides, keys, Fingerprint(sizes, spacings, 1, ("a", "b"), (4, 4), None, True))
    of_equal_ones, _, _ = made(overrides, keys, fingerprint((64,) * 3, (1.0,) * 3))
    assert found["data"]["source"]["spacing"] == [1.0, 1.0, 1.0]
    assert plan.patch is None
    assert found["network"] == of_equal_ones["network"]
    assert found["data"]["batch_size"] == of_equal_ones["data"]["batch_size"]


def test_a_network_of_other_options_stays_as_it_is() -> None:
    found, _, plan = made(["data=hecktor", "data.root=.", "network=segresnet"], [], SCANS)
    assert found["network"] == composed("network=segresnet")["network"]
    assert found["data"]["patch"]["size"] == [192, 160, 64]
    assert any("the network stays as it is" in reason for reason in plan.reasons)


def test_the_options_it_names_give_the_same_configuration() -> None:
    for overrides, cases in (
        (HECKTOR, SCANS),
        (["data=lidc"], fingerprint((64, 64), mixed=True)),
        (["data=qubiq", "data.root=.", "network=nnunet_residual"], fingerprint((300, 200), mixed=True)),
    ):
        configuration = composed(*overrides)
        found = with_plan(configuration, PlanSettings(), cases)
        options = found.options().split(" ")
        OverridesParser.create().parse_overrides(options)
        again = composed(*overrides, *options)
        assert {**found.configuration, "plan": None} == again


def test_without_a_plan_and_with_a_made_one_nothing_is_measured() -> None:
    configuration = composed(*HECKTOR)
    assert planned(configuration) == configuration
    found, _, _ = made(HECKTOR, [], SCANS)
    assert planned(found) == found
    # a run that is resumed has its own plan
    asked = composed("plan=auto", *HECKTOR)
    assert planned(asked, found["plan"]) == found


def test_a_network_keeps_its_width() -> None:
    assert network_rules(composed("network=unet")["network"]).width == 16
    residual = network_rules(composed("network=nnunet_residual")["network"])
    assert (residual.width, residual.residual, residual.per_axis) == (32, True, True)
    assert network_rules(composed("network=dynunet", "network.residual=true")["network"]).residual is False


# on files


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return PET/CT of voxels of 1x1x3 mm and of 2x2x3 mm in HECKTOR's layout."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(5):
        size = (24, 22, 10) if number % 2 else (12, 11, 10)
        voxel = (1.0, 1.0, 3.0) if number % 2 else (2.0, 2.0, 3.0)
        Patient(f"CHUM-{number:03d}", size, affine_of(voxel, (5, -8, 100), size, LPS), is_marked=True).write(root)
    return root


def test_the_fingerprint_is_that_of_the_scans_own_voxels_unless_a_spacing_is_stated(scans: Path) -> None:
    node = composed("experiment=hecktor", f"data.root={scans}", "data.cache=null", "data.fractions.draw=permutation")
    own = fingerprint_of(node["data"])
    assert set(own.sizes) <= {(24, 22, 10), (12, 11, 10)}
    assert len(set(own.known_spacings)) == len(set(own.sizes)) == 2
    stated = fingerprint_of(node["data"], ["data.source.spacing"])
    assert {tuple(np.round(spacing, 6)) for spacing in stated.known_spacings} == {(1.0, 1.0, 3.0)}


@pytest.mark.parametrize("network", ["dynunet", "unet"])
def test_a_planned_network_trains_on_its_patch_and_predicts_a_volume_of_any_size(network: str) -> None:
    overrides = ["data=hecktor", "data.root=.", f"network={network}", "method=single", "inference.overlap=0"]
    narrow = [*overrides, "network.features=[4,8,16]"]
    configuration = composed(*narrow)
    # the width is the user's, the stages are the plan's
    found = with_plan(configuration, PlanSettings(), fingerprint((40, 36, 9), (1.0, 1.0, 3.0), 20)).configuration
    method = build_method(found, ImageFormat(3, 2, ("GTVn",)))
    patch = found["data"]["patch"]["size"]
    assert method.network(torch.randn(2, 2, *patch)).shape[3:] == tuple(patch)
    with torch.inference_mode():
        for size in ((50, 30, 7), (21, 64, 17)):
            assert method.eval().predict(torch.randn(1, 2, *size)).shape[3:] == size
