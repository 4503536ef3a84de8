"""Panels and costs are computed on the device of the training, though a trainer's loop leaves its module on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_parts import parts_of
from torch import Tensor

from edue_lightning.data import RaterDataModule, RaterSample, SyntheticFundus
from edue_lightning.evaluation.measure import Measurement, measure_method
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import MetricSettings
from edue_lightning.runs.trainer import build_test_trainer
from edue_lightning.runtime.devices import device_name, on_device
from edue_lightning.uncertainty import Tie

TRAINER = {"_target_": "pytorch_lightning.Trainer", "_partial_": True, "accelerator": "cpu", "devices": 1}
# computes like the CPU, but is another device for Lightning: `module.cpu()` leaves it
OTHER = torch.device("cpu", 0)


class Located(SegmentationMethod):
    """Members read off the image, which note the device that Lightning knows of."""

    def __init__(self) -> None:
        super().__init__(parts_of())
        self.places: list[torch.device] = []

    @property
    def label(self) -> str:
        return "located"

    def forward(self, image: Tensor) -> Tensor:
        self.places.append(self.device)
        return torch.stack([image[:, :2], image[:, :2] - 1], dim=1)

    def training_loss(self, batch: object) -> dict[str, Tensor]:
        raise NotImplementedError


def test_panels_are_predicted_on_the_device_of_the_trainer() -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24), eval_batch_size=4)
    method, trainer = Located(), build_test_trainer(TRAINER)
    trainer.strategy._root_device = OTHER
    evaluation = measure_method(method, data, Measurement("located", "test", MetricSettings(), 0), trainer)
    batches = len(data.evaluation_dataloader("test"))
    assert evaluation.panels
    assert len(method.places) > batches
    assert set(method.places[batches:]) == {OTHER}
    # and left where it was
    assert method.device == torch.device("cpu")


@pytest.mark.parametrize("tie", ["foreground", "background"])
def test_panels_have_the_soft_majority_that_is_measured(tie: Tie) -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24), eval_batch_size=4)
    settings = MetricSettings(majority_tie=tie)
    found = measure_method(Located(), data, Measurement("x", "test", settings, 0), build_test_trainer(TRAINER))
    cases = found.cases_frame().set_index(["case_id", "structure"])
    ties = 0
    for panel in found.panels:
        assert panel.consensus.sum() == cases.loc[(panel.case_id, panel.structure), "area"]
        ties += int((panel.masks.mean(axis=0) == 0.5).sum())
    assert ties


class HalfSeen(SyntheticFundus):
    """Images of which the upper quarter counts."""

    def load(self, case_id: str) -> RaterSample:
        sample = super().load(case_id)
        region = torch.zeros(sample.image.shape[1:], dtype=torch.bool)
        region[: len(region) // 4] = True
        return replace(sample, region=region)


def test_panels_show_the_region_alone() -> None:
    data = RaterDataModule("synthetic", HalfSeen(12, 24), eval_batch_size=4)
    measurement = Measurement("x", "test", MetricSettings(), 0)
    found = measure_method(Located(), data, measurement, build_test_trainer(TRAINER))
    assert found.panels
    for panel in found.panels:
        total = (panel.mean_probability * (1 - panel.mean_probability)).sum()
        assert total <= panel.sv_total + 1e-4
        assert panel.member_variance.sum() <= panel.sv + 1e-4


def test_a_module_comes_back_from_a_device() -> None:
    method = Located()
    with on_device(method, OTHER):
        assert method.device == OTHER
    assert method.device == torch.device("cpu")


def test_the_device_of_the_cost_is_in_the_result(trained_run: Path) -> None:
    assert json.loads((trained_run / "model.json").read_text())["device"] == device_name(torch.device("cpu")) == "cpu"
