"""Temperature scaling: the best temperature, what it changes in a prediction, and where it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from method_parts import parts_of
from scipy.optimize import minimize_scalar
from torch import Tensor

import edue_lightning
from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data.sample import RaterBatch
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import evaluate
from edue_lightning.exporting.graph import ImageEstimate
from edue_lightning.exporting.run import export
from edue_lightning.losses import mean_prediction_nll
from edue_lightning.methods import Inference, SegmentationMethod, SingleNetwork
from edue_lightning.networks import HeadLayout
from edue_lightning.prediction.estimate import estimate
from edue_lightning.runs.checkpoints import load_method, read_checkpoint, stored_temperature, write_checkpoint
from edue_lightning.training import temperature as module
from edue_lightning.training.initial import InitialWeights
from edue_lightning.training.run import train
from edue_lightning.training.temperature import GRID, TemperatureSearch, best_temperature
from edue_lightning.uncertainty import Readout

SETTINGS = [
    *("experiment=synthetic", "data.source.n_cases=24", "data.source.size=32", "data.batch_size=4"),
    *("network.features=[4,6,8]", "trainer.max_epochs=2", "trainer.accelerator=cpu", "bootstrap_resamples=0"),
    *("logger.mode=disabled", "figures=false", "optimizer.learning_rate=0.01", "method=single"),
]


def configuration(*overrides: str) -> dict[str, Any]:
    return command("train", *SETTINGS, *overrides)


def command(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose(name, overrides=list(overrides)))


def batch_of(masks: Tensor, valid: Tensor, first: int = 0, region: Tensor | None = None) -> RaterBatch:
    cases, size = len(masks), masks.shape[3:]
    return RaterBatch(
        image=torch.zeros(cases, 1, *size),
        masks=masks,
        valid=valid,
        spacing=torch.ones(cases, len(size)),
        case_index=torch.arange(first, first + cases),
        draw_key=torch.zeros(cases, dtype=torch.int64),
        region=region,
    )


class Given(SegmentationMethod):
    """A method whose logits are given multiples of the image's first channel."""

    def __init__(self, factors: Tensor, readout: Readout | None = None, inference: Inference | None = None) -> None:
        structures = tuple(f"part {k}" for k in range(factors.shape[1]))
        super().__init__(parts_of(structures=structures, inference=inference or Inference()))
        self.readout = readout or self.readout
        self.factors = factors

    label = "given"

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :1, None] * self.factors.reshape(*self.factors.shape, *[1] * (image.ndim - 2))

    def training_loss(self, batch: object) -> dict[str, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize("true", [0.25, 0.8, 1.0, 1.37, 6.0])
def test_logits_that_are_too_large_by_a_factor_are_divided_by_it(true: float) -> None:
    """Votes of 1,000 raters with the share sigmoid(z): for logits z times T, the best temperature is T."""
    shares = (torch.arange(101) * 10).clamp(5, 995)
    votes = (torch.arange(1000)[:, None] < shares).to(torch.uint8)
    logits = true * torch.logit(shares.double() / 1000).float()
    search = TemperatureSearch(("one",))
    search.update(logits[None, None, None], batch_of(votes[None, :, None], torch.ones(1, 1000, dtype=torch.bool)))
    assert search.compute() == pytest.approx([true], rel=2e-3)


def test_the_best_temperature_is_that_of_an_exact_search_over_members_structures_raters_and_regions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(5, 3, 2, 6, 7, generator=generator)
    share = torch.sigmoid(logits.mean(dim=1, keepdim=True) / torch.tensor([1.5, 5.0])[:, None, None])
    masks = (torch.rand(5, 4, 2, 6, 7, generator=generator) < share).to(torch.uint8)
    valid = torch.rand(5, 4, generator=generator) < 0.7
    valid[:, 0] = True
    region = torch.rand(5, 6, 7, generator=generator) < 0.8
    search = TemperatureSearch(("one", "other"))
    for part in (slice(0, 2), slice(2, 5)):
        search.update(logits[part], batch_of(masks[part], valid[part], part.start, region[part]))
    found = search.compute()
    for k in range(2):

        def cost(log_temperature: float, k: int = k) -> float:
            scaled = logits[:, :, k : k + 1].double() / math.exp(log_temperature)
            return float(mean_prediction_nll(scaled, masks[:, :, k : k + 1], valid, region).mean())

        exact = minimize_scalar(cost, bounds=(-2.3, 2.3), method="bounded", options={"xatol": 1e-8})
        assert found[k] == pytest.approx(math.exp(exact.x), rel=2e-3)
    assert found[0] != pytest.approx(found[1], rel=0.05)


def test_a_case_that_comes_twice_counts_once() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 1, 1, 8, 8, generator=generator)
    masks = (torch.rand(3, 2, 1, 8, 8, generator=generator) < torch.sigmoid(logits / 2)).to(torch.uint8)
    valid = torch.ones(3, 2, dtype=torch.bool)
    once, twice = TemperatureSearch(("one",)), TemperatureSearch(("one",))
    for search in (once, twice):
        search.update(logits, batch_of(masks, valid))
    twice.update(logits[:1], batch_of(masks[:1], valid[:1]))
    assert twice.compute() == once.compute()


def test_the_minimum_of_a_curve_lies_between_the_grid_or_at_its_end() -> None:
    for log_temperature in (-1.234, 0.0, 0.777):
        assert best_temperature((GRID - log_temperature) ** 2) == pytest.approx(math.exp(log_temperature), rel=1e-4)
    assert best_temperature(GRID) == pytest.approx(1 / module.LARGEST)
    assert best_temperature(-GRID) == pytest.approx(module.LARGEST)


def test_every_logit_of_a_structure_is_divided_by_its_temperature() -> None:
    method = Given(torch.randn(3, 2))
    image = torch.randn(2, 1, 6, 6)
    before = method.predict(image)
    method.set_temperature([2.0, 0.5])
    assert method.temperature_by_structure == {"part 0": 2.0, "part 1": 0.5}
    torch.testing.assert_close(method.predict(image)[:, :, 0], before[:, :, 0] / 2)
    torch.testing.assert_close(method.predict(image)[:, :, 1], before[:, :, 1] * 2)
    assert torch.equal(method(image), before)
    assert not any("temperature" in name for name in method.state_dict())
    method.set_temperature(None)
    assert torch.equal(method.predict(image), before)


def test_own_maps_other_than_the_probability_are_unchanged() -> None:
    factors = torch.randn(5, 1)
    method = Given(factors, Readout(own_maps=("decision", "probability", "disagreement")))
    method.set_temperature([2.0])
    found = method.calibrated(torch.ones(1, 1, 2, 2))[0, :, 0, 0, 0]
    torch.testing.assert_close(found, factors[:, 0] / torch.tensor([2.0, 2.0, 1.0, 2.0, 1.0]))


@pytest.mark.parametrize("levels", [False, True])
def test_predictions_windows_and_graphs_are_scaled_alike(levels: bool) -> None:
    factors = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).sort(dim=0, descending=True)[0]
    image = torch.rand(1, 1, 8, 8)
    whole = Given(factors, Readout(levels=levels))
    windows = Given(factors, Readout(levels=levels), Inference(window=(4, 4)))
    other = Given(factors / torch.tensor([3.0, 0.4]), Readout(levels=levels))
    for method in (whole, windows):
        method.set_temperature([3.0, 0.4])
    expected = estimate(other, image[0])
    for found in (estimate(whole, image[0]), estimate(windows, image[0])):
        torch.testing.assert_close(found.probability, expected.probability)
        torch.testing.assert_close(found.disagreement, expected.disagreement)
        torch.testing.assert_close(found.decision, expected.decision)
    graph = ImageEstimate(whole)(image)
    for name in ("probability", "disagreement", "decision"):
        torch.testing.assert_close(graph[name][0], getattr(expected, name))


@pytest.mark.parametrize("values", [[1.0], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf], [1.0, -2.0]])
def test_invalid_temperatures_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="temperature must be 2 positive numbers"):
        Given(torch.ones(1, 2)).set_temperature(values)


@pytest.mark.parametrize("stored", [[1.0, -1.0], [1.0], "high", [1, 2], [[1.0], [2.0]]])
def test_a_damaged_temperature_is_refused(tmp_path: Path, calibrated: Path, stored: object) -> None:
    checkpoint = read_checkpoint(calibrated / "checkpoints" / "best.ckpt")
    write_checkpoint({**checkpoint, "edue_temperature": stored}, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt: .*temperature"):
        load_method(tmp_path / "best.ckpt")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a fitted temperature, which tests only read."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    train(configuration("temperature=validation"), folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same run without one."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(configuration(), folder)
    return folder


def values_of(table: Path) -> pd.Series:
    return pd.read_csv(table).set_index(["structure", "metric"])["value"]


def test_a_training_keeps_and_records_the_temperature_that_lowers_the_validation_nll(
    calibrated: Path, plain: Path
) -> None:
    stored = stored_temperature(read_checkpoint(calibrated / "checkpoints" / "best.ckpt"))
    assert stored is not None
    assert all(abs(math.log(value)) > 0.02 for value in stored)
    recorded = json.loads((calibrated / "model.json").read_text())
    assert [recorded["temperature_disc"], recorded["temperature_cup"]] == pytest.approx(stored)
    before, after = (values_of(run / "validation.csv") for run in (plain, calibrated))
    for structure in ("disc", "cup"):
        assert after[structure, "nll"] < before[structure, "nll"]
    # one member: no voxel changes sides, in the table of the test cases neither
    tests = [values_of(run / "metrics.csv") for run in (plain, calibrated)]
    for structure in ("disc", "cup"):
        assert tests[1][structure, "dice"] == pytest.approx(tests[0][structure, "dice"])
        assert tests[1][structure, "nll"] != pytest.approx(tests[0][structure, "nll"], rel=1e-3)
    weights = [read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"] for run in (plain, calibrated)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert stored_temperature(read_checkpoint(plain / "checkpoints" / "best.ckpt")) is None
    assert "temperature" not in json.dumps(json.loads((plain / "model.json").read_text()))


def test_the_checkpoint_evaluates_and_predicts_with_its_temperature(
    calibrated: Path, plain: Path, tmp_path: Path
) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        overrides = [
            f"ckpt={calibrated}/checkpoints/best.ckpt",
            "trainer.accelerator=cpu",
            "bootstrap_resamples=0",
            "figures=false",
        ]
        settings = resolved(compose("evaluate", overrides=[*overrides, f"output={tmp_path}"]))
    evaluate(settings, tmp_path)
    pd.testing.assert_series_equal(values_of(tmp_path / "metrics.csv"), values_of(calibrated / "metrics.csv"))
    image = np.random.default_rng(0).random((3, 32, 32))
    predicted = [
        edue_lightning.load_model(run / "checkpoints" / "best.ckpt", "cpu").predict(image).probability
        for run in (plain, calibrated)
    ]
    temperature = stored_temperature(read_checkpoint(calibrated / "checkpoints" / "best.ckpt"))
    expected = torch.sigmoid(torch.logit(torch.from_numpy(predicted[0])) / torch.tensor(temperature)[:, None, None])
    np.testing.assert_allclose(predicted[1], expected, atol=1e-5)


def _evaluated(checkpoint: Path, output: Path) -> None:
    evaluate(command("evaluate", f"ckpt={checkpoint}", f"output={output}", "trainer.accelerator=cpu"), output)


def _exported(checkpoint: Path, output: Path) -> None:
    export(command("export", f"ckpt={checkpoint}", f"output={output}", "format=torch_export"))


def _loaded(checkpoint: Path, output: Path) -> None:
    edue_lightning.load_model(checkpoint, "cpu")


@pytest.mark.parametrize("use", [_evaluated, _exported, _loaded])
def test_a_checkpoint_without_the_temperature_of_its_training_is_not_used(
    calibrated: Path, tmp_path: Path, use: Callable[[Path, Path], None]
) -> None:
    with pytest.raises(
        UserError, match=r"last\.ckpt: was trained with temperature=validation, but .* missing; .*use .*best\.ckpt"
    ):
        use(calibrated / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_without_a_temperature_begin_another_training_and_an_unscaled_one_predicts(
    calibrated: Path, plain: Path
) -> None:
    assert InitialWeights.read(str(calibrated / "checkpoints" / "last.ckpt")).weights
    method = load_method(plain / "checkpoints" / "last.ckpt").method
    assert method.temperature_by_structure is None


def test_a_resumed_run_takes_the_temperature_of_its_checkpoint(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = SingleNetwork(parts_of(structures=("disc", "cup")), HeadLayout("last"))
    checkpoint = read_checkpoint(calibrated / "checkpoints" / "best.ckpt")
    stored = stored_temperature(checkpoint)
    monkeypatch.setattr(module, "fit_temperature", lambda *arguments: pytest.fail("fitted twice"))
    module.calibrate(method, None, None, calibrated / "checkpoints" / "best.ckpt")
    assert method.temperature is not None
    assert method.temperature.tolist() == pytest.approx(stored)
