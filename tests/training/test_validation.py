"""Validation metrics that a callback computes from what the validation step returns."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from method_parts import STRUCTURES, parts_of

from edue_lightning.data import RaterDataModule, SyntheticFundus
from edue_lightning.methods import SegmentationMethod, SingleNetwork, StochasticSegmentation
from edue_lightning.metrics import VALIDATION_METRICS, CaseTable
from edue_lightning.networks import HeadLayout
from edue_lightning.training.resume import BestCheckpoint
from edue_lightning.training.validation import ValidationMetrics


class Noted(pl.Callback):
    """Keeps the validation metrics of each epoch, as other callbacks see them."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics.items()
        self.found.append({name: float(value) for name, value in metrics if name.startswith("val/")})


def trained(method: SegmentationMethod, data: RaterDataModule, keeper: BestCheckpoint) -> Noted:
    """Train for three epochs; return the metrics of each."""
    noted = Noted()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[ValidationMetrics(CaseTable(STRUCTURES, VALIDATION_METRICS)), keeper, noted],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(method, data)
    return noted


def test_each_epoch_is_measured_on_its_own_and_the_best_one_kept(tmp_path) -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(24, 24), batch_size=4, eval_batch_size=2)
    torch.manual_seed(0)
    method = SingleNetwork(parts_of(), HeadLayout("last"))
    keeper = BestCheckpoint(tmp_path, "nll", lower_is_better=True)
    noted = trained(method, data, keeper)
    assert len(noted.found) == 3
    assert {name.removeprefix("val/") for name in noted.found[0]} == set(VALIDATION_METRICS)
    table = CaseTable(STRUCTURES, VALIDATION_METRICS)
    method.eval()
    with torch.inference_mode():
        for batch in data.val_dataloader():
            table.update(method.predict(batch.image), batch.masks, batch.valid, batch.spacing, batch.case_index)
    expected = table.summary().means()
    assert noted.found[-1] == pytest.approx({f"val/{name}": expected[name] for name in expected}, nan_ok=True)
    assert keeper.best_model_score is not None
    assert float(keeper.best_model_score) == pytest.approx(min(one["val/nll"] for one in noted.found))


def test_the_best_weights_are_some_of_the_complete_method(tmp_path) -> None:
    data = RaterDataModule("synthetic", SyntheticFundus(24, 24), batch_size=4, eval_batch_size=2)
    torch.manual_seed(0)
    method = StochasticSegmentation(parts_of(), warm_up_epochs=2)
    # the largest NLL is that of the first epoch, in which the mean alone is trained
    keeper = BestCheckpoint(tmp_path, "nll", lower_is_better=False)
    nll = [one["val/nll"] for one in trained(method, data, keeper).found]
    assert nll[2] < min(nll[:2])
    assert keeper.best_model_score is not None
    assert float(keeper.best_model_score) == pytest.approx(nll[2])
