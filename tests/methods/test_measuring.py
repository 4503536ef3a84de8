"""Measurement of a method, which itself holds no table and no settings of metrics."""

from __future__ import annotations

import torch
from method_parts import STRUCTURES, parts_of
from torchmetrics import Metric

from edue_lightning.data import RaterDataModule, SyntheticFundus
from edue_lightning.methods import DeepEnsemble, Inference, Measuring, SegmentationMethod, SingleNetwork
from edue_lightning.metrics import CaseTable
from edue_lightning.networks import HeadLayout
from edue_lightning.runs.trainer import build_test_trainer

TRAINER = {
    "_target_": "pytorch_lightning.Trainer",
    "_partial_": True,
    "accelerator": "cpu",
    "devices": 1,
    "use_distributed_sampler": False,
}


def test_the_table_gets_what_the_method_predicts() -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(24, 24), eval_batch_size=4)
    method, table = SingleNetwork(parts_of(), HeadLayout("last")), CaseTable(STRUCTURES)
    build_test_trainer(TRAINER).test(Measuring(method, table), data.test_dataloader(), verbose=False)
    expected = CaseTable(STRUCTURES)
    with torch.inference_mode():
        for batch in data.test_dataloader():
            logits = method.eval().predict(batch.image)
            expected.update(logits, batch.masks, batch.valid, batch.spacing, batch.case_index)
    torch.testing.assert_close(table.compute(), expected.compute(), rtol=0, atol=0, equal_nan=True)


def test_the_table_is_filled_in_full_precision_whatever_the_prediction_is_in() -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(24, 24), eval_batch_size=4)
    batch = next(iter(data.test_dataloader()))
    measuring = Measuring(SingleNetwork(parts_of(), HeadLayout("last")).eval(), CaseTable(STRUCTURES))
    expected = CaseTable(STRUCTURES)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            logits = measuring.test_step(batch, 0)
        assert logits.dtype == torch.bfloat16
        expected.update(logits, batch.masks, batch.valid, batch.spacing, batch.case_index)
    torch.testing.assert_close(measuring.table.compute(), expected.compute(), rtol=0, atol=0, equal_nan=True)


def test_methods_hold_no_table() -> None:
    method = DeepEnsemble(parts_of(inference=Inference(window=(16, 16))), HeadLayout("last"), members=2)
    assert not any(isinstance(module, Metric) for module in method.modules())
    parts = [method, *method.trainees()]
    assert all(part.inference.window == (16, 16) for part in parts if isinstance(part, SegmentationMethod))
