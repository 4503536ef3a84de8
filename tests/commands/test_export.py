"""Models for use without this package: they say what the checkpoint says, and nothing is left behind if they do not."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from processes import run_command
from torch import Tensor

from edue_lightning.config.build import ImageFormat, build_method
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.errors import UserError
from edue_lightning.exporting import programs
from edue_lightning.exporting.graph import OUTPUTS, ImageEstimate
from edue_lightning.exporting.monai_bundle import METADATA, write_bundle
from edue_lightning.exporting.programs import DESCRIPTION
from edue_lightning.exporting.run import _plain, export
from edue_lightning.prediction.estimate import estimate
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.triage import StructureTriage, Triage
from edue_lightning.runs.checkpoints import checkpoint_entries, load_method, save_method
from edue_lightning.uncertainty import CASE_SCORES, MAPS

PICTURES, VOLUMES = ImageFormat(2, 3, ("disc", "cup")), ImageFormat(3, 2, ("node",))
EXCLUSIVE = {
    2: ImageFormat(2, 3, ("disc", "cup"), exclusive=True),
    3: ImageFormat(3, 2, ("primary", "node", "bone"), exclusive=True),
}
TINY = ["network.features=[4,6,8]", "network.foreground_prior=0.5"]
TWO_STAGES = ["network.features=[4,6]"]
SYNTHETIC = {2: "experiment=synthetic", 3: "experiment=synthetic_petct"}


def write_checkpoint(path: Path, image_format: ImageFormat, *overrides: str) -> Path:
    """Write a method with the weights of its start, and return the path."""
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        configuration = resolved(compose("train", overrides=[*TINY, *overrides]))
    torch.manual_seed(0)
    method = build_method(configuration, image_format)
    save_method(method, path, checkpoint_entries(configuration, image_format))
    return path


def synthetic(folder: Path, image_format: ImageFormat, *overrides: str) -> Path:
    return write_checkpoint(folder / "best.ckpt", image_format, SYNTHETIC[image_format.spatial_dims], *overrides)


def exported(checkpoint: Path, form: str, output: Path, **others: Any) -> float:
    return export({"ckpt": str(checkpoint), "format": form, "output": str(output), "overwrite": False, **others})


def run_onnx(path: Path, image: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(path)
    assert [output.name for output in session.get_outputs()] == list(OUTPUTS)
    return dict(zip(OUTPUTS, map(torch.from_numpy, session.run(None, {"image": image.numpy()})), strict=True))


def run_program(path: Path, image: Tensor) -> dict[str, Tensor]:
    files = {DESCRIPTION: ""}
    found: dict[str, Tensor] = torch.export.load(path, extra_files=files).module()(image)
    assert json.loads(files[DESCRIPTION])["triage"] is None
    return found


def assert_estimates(checkpoint: Path, image: Tensor, found: Mapping[str, Tensor], tolerance: float = 1e-4) -> None:
    """Check that outputs for images `[B, C, *S]` are what `estimate` says of each image."""
    method = load_method(checkpoint).method
    assert list(found) == list(OUTPUTS)
    for number, one in enumerate(image):
        expected = estimate(method, one)
        for name in MAPS:
            torch.testing.assert_close(found[name][number], getattr(expected, name), atol=tolerance, rtol=0)
        assert expected.probability.std() > 1e-3
        for name in CASE_SCORES:
            assert found[name].dtype == torch.float64
            torch.testing.assert_close(
                found[name][number], expected.scores[name], atol=tolerance, rtol=tolerance, equal_nan=True
            )


@pytest.mark.parametrize(
    "method", ["edue", "deep_ensemble", "layer_ensemble", "probabilistic_unet", "test_time_augmentation", "single"]
)
@pytest.mark.parametrize("image_format", [PICTURES, VOLUMES], ids=["2D", "3D"])
def test_the_graph_is_the_estimate_of_each_image(tmp_path: Path, method: str, image_format: ImageFormat) -> None:
    checkpoint = synthetic(tmp_path, image_format, f"method={method}")
    image = torch.randn(2, image_format.channels, *(12, 16, 20)[: image_format.spatial_dims])
    with torch.inference_mode():
        found = ImageEstimate(load_method(checkpoint).method)(image)
    assert_estimates(checkpoint, image, found, tolerance=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "overrides",
    [
        ["method=edue"],
        ["method=single", "mask=validation", "mask.thresholds={THRESHOLDS}"],
        ["method=edue_levels", "method.levels=3"],
        ["method=edue_levels_mask", "method.levels=3"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_graph_of_exclusive_structures_is_the_estimate_of_each_image(
    tmp_path: Path, overrides: list[str], dims: int
) -> None:
    image_format = EXCLUSIVE[dims]
    low = ", ".join(f"{name}: 0.2" for name in image_format.structures)
    checkpoint = synthetic(tmp_path, image_format, *(part.replace("THRESHOLDS", low) for part in overrides))
    image = torch.randn(2, image_format.channels, *(12, 16, 20)[:dims])
    method = load_method(checkpoint).method
    with torch.inference_mode():
        found = ImageEstimate(method)(image)
    assert_estimates(checkpoint, image, found, tolerance=1e-6)
    assert method.readout.exclusive
    assert found["probability"].sum(dim=1).max() <= 1 + 1e-5
    assert (found["decision"] >= 0.5).sum(dim=1).max() == 1
    assert found["predicted_area"].min() > 0


def test_a_model_that_exchanges_axes_of_volumes_has_no_bundle(tmp_path: Path) -> None:
    checkpoint = synthetic(tmp_path, VOLUMES, "method=test_time_augmentation", "method.turned=true", *TWO_STAGES)
    with pytest.raises(UserError, match=r"^format=monai_bundle: the method exchanges the first two axes"):
        exported(checkpoint, "monai_bundle", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "image_format", "overrides"),
    [
        pytest.param("onnx", VOLUMES, ["method=edue"], marks=pytest.mark.exhaustive),
        ("onnx", VOLUMES, ["method=edue_levels", "method.levels=3"]),
        ("onnx", PICTURES, ["method=edue_levels_mask", "method.levels=4", *TWO_STAGES]),
        ("torch_export", PICTURES, ["method=edue_levels_mask", "method.levels=4", *TWO_STAGES]),
        pytest.param("onnx", PICTURES, ["method=single", *TWO_STAGES], marks=pytest.mark.exhaustive),
        pytest.param("onnx", PICTURES, ["method=probabilistic_unet", *TWO_STAGES], marks=pytest.mark.exhaustive),
        ("onnx", PICTURES, ["method=test_time_augmentation", "method.turned=true", *TWO_STAGES]),
        (
            "onnx",
            VOLUMES,
            ["method=deep_ensemble_levels_mask", "method.levels=3", "method.members=2", *TWO_STAGES],
        ),
        (
            "torch_export",
            VOLUMES,
            ["method=deep_ensemble", "method.members=2", "network.channels_last=true", *TWO_STAGES],
        ),
        pytest.param(
            "torch_export",
            EXCLUSIVE[2],
            ["method=deep_ensemble_levels_mask", "method.levels=3", "method.members=2", *TWO_STAGES],
            marks=pytest.mark.exhaustive,
        ),
        *(
            pytest.param("onnx", EXCLUSIVE[dims], [*overrides, *TWO_STAGES], marks=pytest.mark.exhaustive)
            for dims, overrides in [
                (2, ["method=edue_levels_mask", "method.levels=3"]),
                (2, ["method=single", "mask=validation", "mask.thresholds={disc: 0.2, cup: 0.2}"]),
                (3, ["method=edue"]),
                (3, ["method=edue_levels", "method.levels=3"]),
            ]
        ),
    ],
)
def test_an_exported_model_says_what_the_checkpoint_says_for_any_size_and_number(
    tmp_path: Path, form: str, image_format: ImageFormat, overrides: list[str]
) -> None:
    checkpoint = synthetic(tmp_path, image_format, *overrides)
    output = tmp_path / {"onnx": "model.onnx", "torch_export": "model.pt2"}[form]
    output.write_text("another")
    assert exported(checkpoint, form, output, overwrite=True) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([checkpoint.name, output.name])
    for number, size in ((1, (8, 8, 8)), (4, (36, 20, 12))):
        image = torch.randn(number, image_format.channels, *size[: image_format.spatial_dims])
        found = (run_onnx if form == "onnx" else run_program)(output, image)
        assert_estimates(checkpoint, image, found)


@pytest.mark.slow
def test_a_window_that_the_network_does_not_halve_evenly_is_the_only_size(tmp_path: Path) -> None:
    window = ["inference=default", "inference.window=[13,18]"]
    checkpoint = synthetic(tmp_path, PICTURES, "method=single", *TWO_STAGES, *window)
    exported(checkpoint, "torch_export", tmp_path / "model.pt2")
    image = torch.randn(3, 3, 13, 18)
    assert_estimates(checkpoint, image, run_program(tmp_path / "model.pt2", image))
    with pytest.raises(AssertionError, match=r"size\(\)\[3\]"):
        run_program(tmp_path / "model.pt2", image[..., :16])


@pytest.mark.slow
def test_the_command_takes_what_the_checkpoint_knows_of_its_cases_along(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    arguments = [f"ckpt={checkpoint}", "format=onnx", "output=models/model.onnx"]
    done = run_command("export", arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "differs from the checkpoint by at most" in done.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "model.onnx"]
    path = tmp_path / "models" / "model.onnx"
    image = torch.rand(2, 3, 32, 48)
    assert_estimates(checkpoint, image, run_onnx(path, image))

    stored = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["edue_lightning"]
    description = json.loads(stored)
    assert description["structures"] == ["disc", "cup"]
    assert description["values"] == "whole numbers divided by the largest of their type"
    assert (description["axes"], description["equal_voxels"]) == (None, False)
    assert description["preparation"] == {"kind": "Stacked", "standardise": False, "offset": 0.0, "scale": 1.0}
    loaded = load_method(checkpoint)
    assert loaded.triage is not None
    triage = Triage.from_dict(loaded.triage, "")
    for name, known in triage.structures.items():
        told = description["triage"]["structures"][name]
        threshold = known.threshold(triage.sensitivity).value
        assert told["score"] == known.score
        assert told["threshold"] is None if threshold is None else told["threshold"] == known.measured(threshold)
        assert len(told["dice"]) == len(told["scores"]) == len(known.dice)


def test_a_model_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = synthetic(tmp_path, PICTURES)
    estimate_of = ImageEstimate(load_method(checkpoint).method)
    changed = dict.fromkeys(OUTPUTS, 1.0)
    monkeypatch.setattr(programs, "traced", lambda *arguments: None)
    monkeypatch.setattr(programs, "_save_program", lambda program, path, description: path.write_text("program"))
    monkeypatch.setattr(
        programs,
        "load_program",
        lambda path: lambda image: {name: values * changed[name] for name, values in estimate_of(image).items()},
    )
    for name in ("probability", "disagreement", "sv", "aula", "predicted_area"):
        changed[name] = 1.01
        with pytest.raises(UserError, match=rf"differs from the checkpoint by .* in {name}, more than 0\.0001"):
            exported(checkpoint, "torch_export", tmp_path / "model.pt2")
        assert list(tmp_path.iterdir()) == [checkpoint]
        changed[name] = 1.0
    exported(checkpoint, "torch_export", tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "program"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ckpt": None}, "ckpt: not set; give ckpt=PATH format="),
        ({"format": None}, "format: not set; give ckpt=PATH format="),
        ({"output": None}, "output: not set; give ckpt=PATH format="),
        ({"ckpt": "nowhere.ckpt"}, "nowhere.ckpt: no such checkpoint file"),
        ({"format": "torchscript"}, "format='torchscript': input should be 'onnx', 'torch_export' or 'monai_bundle'"),
        (
            {"inference": {"_target_": "edue_lightning.methods.InferenceChanges", "window": [8, 8, 8]}},
            "the images are 2D",
        ),
        ({"output": "."}, "already exists; choose another path or set overwrite=true"),
        ({"output": ".", "overwrite": True}, "is a folder"),
        ({"output": ".", "overwrite": True, "format": "monai_bundle"}, "is not a MONAI bundle"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic(tmp_path, PICTURES)
    configuration = {"ckpt": "best.ckpt", "format": "onnx", "output": "model", "overwrite": False, **change}
    with pytest.raises(UserError) as error:
        export(configuration)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("method", ["mc_dropout", "stochastic_segmentation"])
def test_methods_that_draw_are_refused(tmp_path: Path, method: str) -> None:
    checkpoint = synthetic(tmp_path, PICTURES, f"method={method}")
    with pytest.raises(UserError, match=rf"best\.ckpt: method={method} cannot be exported.*random draws"):
        exported(checkpoint, "torch_export", tmp_path / "model.pt2")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = synthetic(tmp_path, PICTURES)
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        exported(checkpoint, "onnx", tmp_path / "model.onnx")
    wanted = 'format=onnx needs onnx, onnxscript, onnxruntime; pip install "edue-lightning[export]"'
    assert str(error.value) == wanted


def smooth(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Return an image with larger structures than its voxels."""
    values = torch.from_numpy(rng.normal(size=[1, 1, *(length // 3 + 1 for length in size)]))
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return torch.nn.functional.interpolate(values, size=size, mode=mode)[0, 0].numpy()


def affine(spacing: tuple[float, float, float], origin: tuple[float, float, float], angle: float = 0.0) -> np.ndarray:
    """Return the affine of a volume that is turned around its third axis."""
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    placed = np.eye(4)
    placed[:3, :3] = turn @ np.diag(spacing)
    placed[:3, 3] = origin
    return placed


def write_volume(path: Path, values: np.ndarray, placed: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), placed), path)


def write_petct(folder: Path) -> None:
    """Write a turned CT whose first axis runs to the left, and a PET that covers a part of it, upright."""
    rng = np.random.default_rng(0)
    write_volume(folder / "p__CT.nii.gz", smooth(rng, (30, 26, 16)) * 300, affine((-1.3, 1.3, 2.5), (20, -30, 7), 0.1))
    write_volume(folder / "p__PT.nii.gz", smooth(rng, (14, 11, 9)) ** 2 * 9, affine((2.9, 2.7, 3.3), (-15, -22, 10)))


def write_cropped_petct(folder: Path) -> None:
    """Write a CT, and a PET on a part of its voxels, their axes in another order."""
    rng = np.random.default_rng(0)
    ct = affine((-1.3, 1.3, 2.5), (220.1, -330.7, 500.3), 0.1)
    write_volume(folder / "p__CT.nii.gz", smooth(rng, (30, 26, 16)) * 300, ct)
    step = np.array([[0, -1, 0, 22], [1, 0, 0, 3], [0, 0, 1, 2], [0, 0, 0, 1]])
    write_volume(folder / "p__PT.nii.gz", smooth(rng, (20, 18, 11)) ** 2 * 9, ct @ step)


def write_volumes(folder: Path) -> None:
    """Write two volumes with two channels, smaller than the window along an axis."""
    rng = np.random.default_rng(0)
    for name, size in (("a", (11, 30, 25)), ("b", (22, 14, 26))):
        channels = np.stack([smooth(rng, size) * 7 + 50, np.full(size, 3.0)], axis=-1)
        write_volume(folder / f"{name}.nii.gz", channels, affine((1, 1.2, 2), (3, 4, 5), 0.2))
    # one of them along other axes
    stored = nibabel.load(folder / "b.nii.gz")
    orientations = nibabel.orientations.io_orientation(stored.affine), nibabel.orientations.axcodes2ornt("PIL")
    turned = nibabel.Nifti1Image(np.asarray(stored.dataobj), stored.affine)
    nibabel.save(turned.as_reoriented(nibabel.orientations.ornt_transform(*orientations)), folder / "b.nii.gz")


def write_colours(folder: Path) -> None:
    """Write pictures in colours: plain, with transparency, with a palette."""
    rng = np.random.default_rng(0)
    values = (rng.random((40, 56, 4)) * 255).astype(np.uint8)
    Image.fromarray(values[..., :3]).save(folder / "plain.png")
    Image.fromarray(values).save(folder / "transparent.png")
    Image.fromarray(values[..., :3]).convert("P").save(folder / "palette.png")


def write_grey(folder: Path) -> None:
    """Write grey pictures of 8, 16 and 32 bits."""
    values = np.random.default_rng(0).random((40, 56))
    Image.fromarray((values * 255).astype(np.uint8)).save(folder / "eight.png")
    Image.fromarray((values * 65535).astype(np.uint16)).save(folder / "sixteen.png")
    Image.fromarray((values * 900 - 500).astype(np.float32)).save(folder / "float.tif")


WINDOW = ["inference=default", "inference.window=[16,24,16]"]
BUNDLES = {
    "ct and pet": (write_petct, VOLUMES, ["data=hecktor", "data.source.spacing=[1.7,1.5,2.0]", *WINDOW]),
    "pet on the ct": (
        write_cropped_petct,
        VOLUMES,
        ["data=hecktor", "data.source.spacing=null", "method=single", *TWO_STAGES, *WINDOW],
    ),
    "volumes": (
        write_volumes,
        ImageFormat(3, 2, ("a", "b")),
        ["data=manifest", "inference=default", "inference.window=[15,22,13]", "inference.batch_size=3"],
    ),
    "levels": (
        write_colours,
        PICTURES,
        [
            *("data=manifest", "method=edue_levels_mask", "method.levels=3", "inference=default"),
            *("inference.window=[32,32]", "mask=validation", "mask.thresholds={disc:0.4,cup:0.45}"),
        ],
    ),
    "colours": (write_colours, PICTURES, ["data=manifest", "method=deep_ensemble", "method.members=2", *TWO_STAGES]),
    "grey": (write_grey, ImageFormat(2, 1, ("nodule",)), ["experiment=lidc_dicom", "method=single", *TWO_STAGES]),
    "exclusive": (
        write_colours,
        EXCLUSIVE[2],
        [
            *("data=manifest", "method=edue", "inference=default", "inference.window=[32,32]", *TWO_STAGES),
            *("mask=validation", "mask.thresholds={disc:0.3,cup:0.25}"),
        ],
    ),
    "squares": (write_colours, PICTURES, ["data=riga", "data.source.size=64", *TWO_STAGES]),
}

ELSEWHERE = """
import runpy, sys
sys.modules["edue_lightning"] = None  # as where it is not installed
runpy.run_module("monai.bundle", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_gives_the_maps_of_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write, image_format, overrides = BUNDLES[name]
    images, bundle = tmp_path / "images", tmp_path / "bundle"
    images.mkdir()
    write(images)
    checkpoint = write_checkpoint(tmp_path / "best.ckpt", image_format, "data.root=none", *overrides)
    assert exported(checkpoint, "monai_bundle", bundle) < 1e-5
    if name == "ct and pet":
        command = [sys.executable, "-c", ELSEWHERE, "run", "--config_file", "configs/inference.json"]
        done = subprocess.run(
            [*command, "--dataset_dir", str(images)],
            cwd=bundle,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    else:
        monkeypatch.chdir(bundle)
        monai.bundle.run(config_file="configs/inference.json", dataset_dir=str(images))

    model = Model(checkpoint, device="cpu")
    variance = "disagreement" if model.method.label != "single" else "total_variance"
    cases: dict[str, list[Path]] = {}
    for path in sorted(images.iterdir()):
        cases.setdefault(path.name.split("__")[0].split(".")[0], []).append(path)
    written = []
    for case, files in cases.items():
        expected = model.predict_files(*files)
        for k, structure in enumerate(model.structures):
            ending = f"__{structure}" if len(model.structures) > 1 else ""
            for what, values in (
                ("mask", expected.mask[k]),
                ("probability", expected.probability[k]),
                (variance, expected.disagreement[k]),
            ):
                written.append(read_written(bundle / "output", f"{case}__{what}{ending}", files[0], what, values))
    assert len(written) == len(list((bundle / "output").iterdir()))
    metadata = json.loads((bundle / METADATA).read_text())
    assert metadata["edue_lightning"]["structures"] == list(model.structures)
    assert metadata["edue_lightning"]["readout"]["exclusive"] is image_format.exclusive
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == image_format.channels


def read_written(folder: Path, stem: str, like: Path, what: str, expected: np.ndarray) -> Path:
    """Check a file of a bundle: its values, and that it lies where the image does."""
    if like.name.endswith(".nii.gz"):
        path = folder / f"{stem}.nii.gz"
        volume, image = nibabel.load(path), nibabel.load(like)
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
        found = np.asarray(volume.dataobj)
    else:
        path = folder / f"{stem}{'.png' if what == 'mask' else '.tif'}"
        found = np.asarray(Image.open(path))
    if what == "mask":
        assert 0.01 < expected.mean() < 0.99
        np.testing.assert_array_equal(found, expected * found.max())
    else:
        assert expected.std() > 1e-4
        np.testing.assert_allclose(found, expected, atol=1e-4)
    return path


def test_a_bundle_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    bundle = tmp_path / "models" / "bundle"

    def damaged(folder: Path) -> None:
        raise UserError("differs")

    def passed(folder: Path) -> None:
        assert json.loads((folder / METADATA).read_text()) == {"version": 2}

    (bundle / "output").mkdir(parents=True)
    with pytest.raises(UserError, match="differs"):
        write_bundle(bundle, {}, {METADATA: {"version": 1}}, damaged)
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "bundle", "output"]
    write_bundle(bundle, {}, {METADATA: {"version": 2}}, passed)
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "bundle", "configs", "metadata.json"]


def flags_by_the_page(score: float, triage: Triage, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the page's example prints for a model with a `sv_normalised` of one case."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    code = page.partition("## ONNX Runtime")[2].partition("```python\n")[2].partition("```")[0]
    description = {"channels": 1, "structures": ["node"], "triage": _plain(triage)}
    description["thresholds"] = {"node": 0.5}
    scores = {name: np.full((1, 1), score if name == "sv_normalised" else 1.0) for name in CASE_SCORES}
    found = {**{name: np.zeros((1, 1, 2, 2), np.float32) for name in MAPS}, **scores}

    class Session:
        def __init__(self, path: str) -> None: ...

        def get_modelmeta(self) -> Any:
            return SimpleNamespace(custom_metadata_map={"edue_lightning": json.dumps(description, allow_nan=False)})

        def get_outputs(self) -> list[Any]:
            return [SimpleNamespace(name=name) for name in OUTPUTS]

        def run(self, names: list[str], values: Mapping[str, Any]) -> list[Any]:
            return [found[name] for name in names]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "docs/export.md", "exec"), {})
    return printed.getvalue().strip()


@pytest.mark.parametrize("score", [0.1, 1.5, 2.5, math.nan])
@pytest.mark.parametrize(
    ("dice", "uncertainties"),
    [
        # a poor case without a score, no poor case, and an ordinary threshold
        ([0.1, 0.2, 0.9, 0.95], [math.inf, math.inf, 1.0, 2.0]),
        ([0.85, 0.9, 0.95], [1.0, 2.0, math.inf]),
        ([0.1, 0.9, 0.95], [2.0, 1.0, 0.5]),
    ],
)
def test_the_pages_example_flags_as_predict_does(
    score: float, dice: list[float], uncertainties: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = StructureTriage("sv_normalised", 0.8, np.array(dice), np.array(uncertainties), {})
    threshold = known.threshold(0.9).value
    triage = Triage(0.9, {"node": known}, {}, 4, True)
    flagged = threshold is not None and known.uncertainty({"sv_normalised": score}) >= threshold
    wanted = "" if threshold is None else "node flagged" if flagged else "node not flagged"
    assert flags_by_the_page(score, triage, monkeypatch) == wanted
    assert _plain(triage)["structures"]["node"]["flag_undefined"] == (threshold is not None)
