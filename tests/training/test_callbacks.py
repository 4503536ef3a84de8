"""Callbacks that the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from pytorch_lightning.callbacks import Callback
from trainings import configuration

from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import read_checkpoint
from edue_lightning.training import fit as fitting
from edue_lightning.training.callbacks import build_callbacks
from edue_lightning.training.run import check_training, train

STOPPING = {"_target_": "pytorch_lightning.callbacks.EarlyStopping", "monitor": "val/nll"}
# with a gain that no epoch reaches, it stops after the second one
STOPS = ["callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=1000"]


def epochs(run: Path) -> list[int]:
    curves = pd.read_csv(run / "logs" / "metrics.csv")
    return curves.loc[curves["val/nll"].notna(), "epoch"].tolist()


def test_early_stopping_ends_each_training_and_a_kill_after_it_adds_no_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configuration("method=single", "callbacks=early_stopping", *STOPS)
    train(settings, tmp_path / "run")
    assert epochs(tmp_path / "run") == [0, 1]
    validation, last = tmp_path / "run" / "validation.csv", tmp_path / "run" / "checkpoints" / "last.ckpt"
    expected, written = validation.read_text(), last.stat().st_mtime_ns
    # killed in the measurement that follows the training
    validation.unlink()
    monkeypatch.setattr(fitting, "build_trainer", None)
    train(settings, tmp_path / "run")
    assert validation.read_text() == expected
    assert last.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "method",
    [["method=stochastic_segmentation"], ["method=edue", "method.guidance.ramp_up_epochs=2"]],
    ids=lambda method: method[0],
)
def test_early_stopping_waits_until_all_of_the_method_is_trained(tmp_path: Path, method: list[str]) -> None:
    train(configuration(*method, "callbacks=early_stopping", *STOPS, "trainer.max_epochs=6"), tmp_path)
    # the first epochs of the whole method, and one more
    assert epochs(tmp_path) == ([0, 1, 2, 3, 4] if "stochastic" in method[0] else [0, 1, 2, 3])
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best["epoch"] >= (3 if "stochastic" in method[0] else 2)


class Averages(Callback):
    """Follow the weights after each step, and their averages by definition."""

    decay = 0.5
    averages: ClassVar[dict[str, torch.Tensor]] = {}
    at_validation: ClassVar[list[dict[str, torch.Tensor]]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        for name, value in pl_module.state_dict().items():
            before = self.averages.get(name, value.clone())
            self.averages[name] = (
                self.decay * before + (1 - self.decay) * value if value.is_floating_point() else value.clone()
            )

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.at_validation.append({name: value.clone() for name, value in self.averages.items()})


def test_with_weight_averaging_the_best_checkpoint_holds_the_averages_that_were_validated(tmp_path: Path) -> None:
    averaging = ["callbacks=weight_averaging", f"callbacks.weight_averaging.decay={Averages.decay}"]
    Averages.averages.clear()
    Averages.at_validation.clear()
    settings = configuration("method=single", *averaging)
    settings["callbacks"]["reference"] = {"_target_": f"{__name__}.Averages"}
    train(settings, tmp_path)
    best = int(pd.read_csv(tmp_path / "logs" / "metrics.csv")["val/nll"].dropna().reset_index(drop=True).idxmin())
    for name, position in (("best.ckpt", best), ("last.ckpt", -1)):
        found = read_checkpoint(tmp_path / "checkpoints" / name)["state_dict"]
        expected = Averages.at_validation[position]
        assert found.keys() == expected.keys()
        for key in found:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            {"a": {**STOPPING, "monitor": "val/nlll"}},
            r"callbacks\.a\.monitor=val/nlll: not a validation metric",
        ),
        ({"a": {**STOPPING, "mode": "max"}}, r"callbacks\.a\.mode=max: the best val/nll is the minimum; set mode: min"),
        ({"a": {**STOPPING, "patience": "soon"}}, r"callbacks\.a\.patience='soon'"),
        ({"a": {**STOPPING, "patient": 3}}, r"callbacks\.a\.patient: unknown key; EarlyStopping knows monitor"),
        ({"a": {"_target_": "collections.OrderedDict"}}, r"callbacks\.a\._target_=.*: cannot be configured"),
        ({"a": {"_target_": "pathlib.PurePath"}}, r"callbacks\.a: pathlib\.PurePath is no callback of Lightning"),
        ({"a": {"patience": 3}}, r"callbacks\.a=.*: is no callback; give a node with the _target_"),
        ({"a": {"_target_": "pytorch_lightning.callbacks.None"}}, r"callbacks\.a\._target_=.*: no such class"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_before_the_training(nodes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_training({**configuration(), "callbacks": nodes})


def test_no_callbacks_are_built_without_a_node() -> None:
    assert build_callbacks(None) == build_callbacks({}) == []
