"""The density of the training images: fitted at the end of a training, measured, and used for new images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed
from hydra import compose, initialize_config_dir
from method_parts import parts_of
from torch import Tensor, nn
from trainings import configuration
from two_processes import in_two_processes

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import RaterDataModule, SyntheticFundus
from edue_lightning.evaluation.measure import Measurement, measure_method
from edue_lightning.evaluation.run import evaluate
from edue_lightning.methods import DeepEnsemble, Density, InferenceChanges, Measuring, SegmentationMethod, SingleNetwork
from edue_lightning.metrics import MetricSettings
from edue_lightning.metrics.thresholds import BestThresholds
from edue_lightning.networks import HeadLayout
from edue_lightning.prediction.density import fit_density
from edue_lightning.prediction.model import Model
from edue_lightning.runs import checkpoints
from edue_lightning.runs.checkpoints import load_method, read_checkpoint
from edue_lightning.runs.files import read_mapping
from edue_lightning.training.run import train

LAST = HeadLayout("last")


def on_cpu() -> pl.Trainer:
    return cast(pl.Trainer, SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"))))


def data() -> RaterDataModule:
    return RaterDataModule("synthetic", SyntheticFundus(24, 24), eval_batch_size=4)


def ensemble() -> SegmentationMethod:
    torch.manual_seed(0)
    return DeepEnsemble(parts_of(), LAST, members=2)


def test_it_knows_the_training_and_the_validation_images() -> None:
    method, images = ensemble(), data()
    density = fit_density(method, images, on_cpu())
    assert density is not None
    assert not method.training
    distances = {
        split: [float(density(method, images.sample(split, i).image[None])) for i in range(len(images.records(split)))]
        for split in ("train", "val")
    }
    # too few validation images for a lower rate than that of exceeding the largest of them
    assert density.limit == pytest.approx(max(max(part) for part in distances.values()), rel=1e-4)
    assert density.false_alarms == pytest.approx(1 / (len(distances["val"]) + 1))
    # of a Gaussian with F features, the mean squared distance of its own cases is at most F
    for one in density.gaussians:
        # mean and deviation of 2 x 4 channels, and six statistics of each of three colours
        assert one.mean.shape == (16 + 18,)
    assert np.mean(np.square(distances["train"])) <= 16 + 18


def _fit_share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    density = fit_density(ensemble(), data(), on_cpu())
    assert density is not None
    torch.save(density.as_dict(), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    in_two_processes(_fit_share, str(tmp_path))
    expected = fit_density(ensemble(), data(), on_cpu())
    assert expected is not None
    for rank in range(2):
        found = Density.from_dict(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True))
        assert found.limit == pytest.approx(expected.limit)
        for one, other in zip(found.gaussians, expected.gaussians, strict=True):
            torch.testing.assert_close(one.mean, other.mean)
            torch.testing.assert_close(one.whitening, other.whitening)


class WithoutNorm(nn.Module):
    """A network of plain convolutions."""

    members = 1

    def __init__(self, heads: HeadLayout) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)[:, None]


def test_a_network_without_such_features_has_the_density_of_the_images_alone() -> None:
    method, images = SingleNetwork(parts_of(WithoutNorm), LAST), data()
    density = fit_density(method, images, on_cpu())
    assert density is not None
    assert [len(one.mean) for one in density.gaussians] == [18]
    image = images.sample("val", 0).image[None]
    assert (
        float(density(method, image)) <= density.limit < float(density(method, image + 0.5 * torch.randn(image.shape)))
    )


def test_a_single_training_image_gives_none_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    images = RaterDataModule("synthetic", SyntheticFundus(3, 24))
    assert len(images.records("train")) == 1
    assert fit_density(ensemble(), images, on_cpu()) is None
    assert "no density score for unusual images: 1 training image, fewer than 2" in caplog.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the configuration of a training whose images are distorted too."""
    folder = tmp_path_factory.mktemp("density") / "run"
    settings = configuration("test=true", "figures=false", "trainer.max_epochs=1", "distortions=default")
    train(settings, folder)
    return folder, settings


def test_a_training_validates_once_and_completes_its_checkpoint_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passes, writes = [], []
    tested, written = pl.Trainer.test, checkpoints.write_whole

    def test(trainer: pl.Trainer, *arguments: Any, **named: Any) -> Any:
        passes.append(trainer)
        return tested(trainer, *arguments, **named)

    def write_whole(path: Path, write: Callable[[Path], object]) -> None:
        if passes:
            writes.append(path.name)
        written(path, write)

    monkeypatch.setattr(pl.Trainer, "test", test)
    monkeypatch.setattr(checkpoints, "write_whole", write_whole)
    train(configuration("trainer.max_epochs=1", "checkpoint_every_steps=null"), tmp_path / "run")
    assert len(passes) == 1
    assert writes == ["best.ckpt"]
    held = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert {"edue_triage", "edue_mask", "edue_density"} <= held.keys()


def test_thresholds_of_the_shared_pass_are_those_of_a_pass_of_their_own() -> None:
    method, images = ensemble().eval(), data()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    shared, alone = (BestThresholds(method.structures) for _ in range(2))
    measurement = Measurement("method", "val", MetricSettings(), 0, figures=False)
    together = measure_method(method, images, measurement, trainer, thresholds=shared)
    trainer.test(Measuring(method, alone), dataloaders=images.evaluation_dataloader("val"), verbose=False)
    assert shared.thresholds() == alone.thresholds()
    without = measure_method(method, images, measurement, trainer)
    pd.testing.assert_frame_equal(together.cases_frame(), without.cases_frame(), check_exact=True)


def test_a_training_stores_and_measures_it(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    loaded = load_method(folder / "checkpoints" / "best.ckpt")
    assert loaded.density is not None
    cases = pd.read_csv(folder / "cases.csv")
    assert (cases["density"] > 0).all()
    assert (cases.groupby("case_id")["density"].agg(np.ptp) == 0).all()
    distorted = pd.read_csv(folder / "distorted_cases.csv")
    clean = distorted[distorted["severity"] == 0].set_index(["case_id", "structure"])["density"]
    expected = cases.set_index(["case_id", "structure"])["density"]
    pd.testing.assert_series_equal(clean.sort_index(), expected.sort_index(), rtol=1e-4)
    detection = pd.read_csv(folder / "detection.csv")
    found = detection[(detection["score"] == "density") & (detection["distortion"] == "all")]
    assert sorted(found["severity"].unique()) == [0, 1, 2, 3, 4, 5]
    # those of the validation cases choose read-outs and baselines
    of_validation = pd.read_csv(folder / "validation_detection.csv")
    assert set(of_validation["split"]) == {"val"}
    validation = load_method(folder / "checkpoints" / "best.ckpt").cases
    assert validation is not None
    assert of_validation["n_clean"].max() == len(validation["val"]) != detection["n_clean"].max()
    # the strongest distortions of a photograph are unlike all training images
    assert (found[found["severity"] == 5]["auroc"] > 0.9).all()


def test_an_image_unlike_the_training_images_is_named_by_predict(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, settings = trained
    model = Model(folder / "checkpoints" / "best.ckpt", device="cpu")
    assert model.density is not None
    size = settings["data"]["source"]["size"]
    image = np.random.default_rng(0).random((3, size, size))
    unusual = model.predict(image).table["out_of_distribution"]
    assert all(text.startswith("density ") for text in unusual)
    assert model.triage is not None
    assert model.density.false_alarms is not None
    assert model.triage.false_alarms is not None
    assert model.false_alarms == model.density.false_alarms + model.triage.false_alarms
    model.triage = None
    assert all(text.startswith("density ") for text in model.predict(image).table["out_of_distribution"])
    model.density = None
    assert model.predict(image).table["out_of_distribution"].isna().all()


def test_thresholds_of_other_masks_flag_no_case(
    trained: tuple[Path, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, settings = trained
    size = settings["data"]["source"]["size"]
    image = np.random.default_rng(0).random((3, size, size))
    for rule, belongs in (("half", True), ("expected_dice", False)):
        node = {"_target_": "edue_lightning.uncertainty.MaskRule", "rule": rule}
        caplog.clear()
        model = Model(folder / "checkpoints" / "best.ckpt", "cpu", mask=node)
        assert (model.triage is not None) == belongs
        assert ("mask=expected_dice is not the rule of the training" in caplog.text) == (not belongs)
    # an image unlike the training images is flagged all the same
    assert model.predict(image).table["flagged"].all()
    model.density = None
    assert model.predict(image).table["flagged"].isna().all()


def test_images_in_another_window_have_no_density(
    trained: tuple[Path, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, settings = trained
    size = settings["data"]["source"]["size"]
    for changes, belongs in (
        (InferenceChanges(overlap=0.5, batch_size=2), True),
        (InferenceChanges(window=[]), True),
        (InferenceChanges(window=[size // 2, size]), False),
    ):
        caplog.clear()
        model = Model(folder / "checkpoints" / "best.ckpt", "cpu", changes)
        assert (model.density is not None) == belongs
        assert ("is not the window of the training" in caplog.text) == (not belongs)
    assert model.triage is not None
    assert model.false_alarms == model.triage.false_alarms
    image = np.random.default_rng(0).random((3, size, size))
    assert not model.predict(image).table["out_of_distribution"].str.contains("density").any()


def test_an_evaluation_in_another_window_has_no_density(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, settings = trained
    size = settings["data"]["source"]["size"]
    few = [f"ckpt={folder / 'checkpoints' / 'best.ckpt'}", "bootstrap_resamples=0", "figures=false"]
    found = {}
    for name, change in {"same": "inference.overlap=0.5", "other": f"inference.window=[{size // 2},{size}]"}.items():
        with initialize_config_dir(configuration_folder(), version_base="1.3"):
            chosen = resolved(compose("evaluate", overrides=[*few, change]))
        caplog.clear()
        evaluate(chosen, tmp_path / name)
        found[name] = read_mapping(tmp_path / name / "config.yaml")["inference"]
        assert ("density" in pd.read_csv(tmp_path / name / "cases.csv")) == (name == "same")
        assert ("is not the window of the training" in caplog.text) == (name == "other")
    # the record has all settings, as that of a training
    target = "edue_lightning.methods.Inference"
    assert found["same"] == {"_target_": target, "window": None, "overlap": 0.5, "batch_size": 1}
    assert found["other"] == {"_target_": target, "window": [size // 2, size], "overlap": 0.25, "batch_size": 1}


def test_a_resumed_training_keeps_it(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, settings = trained
    before = load_method(folder / "checkpoints" / "best.ckpt").density
    (folder / "validation.csv").rename(tmp_path / "validation.csv")
    train(settings, folder)
    after = load_method(folder / "checkpoints" / "best.ckpt").density
    assert before is not None
    assert after is not None
    assert after.limit == before.limit
