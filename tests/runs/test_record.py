"""Settings by which the report tells methods from seeds of one method."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from edue_lightning.evaluation.run import EvaluateConfiguration
from edue_lightning.runs.record import CKPT_MEASURED, TRAINING, method_settings

TRAINED = {"method": {"_target_": "Edue"}, "data": {"source": {"spacing": None}}, "trainer": {"precision": "32-true"}}
EVALUATED = {**TRAINED, "ckpt": "run/checkpoints/best.ckpt", "split": "test", TRAINING: TRAINED}
CHANGES: dict[str, Any] = {
    "ckpt": "run/checkpoints/last.ckpt",
    "data": {"source": {"spacing": [1.0, 1.0]}},
    "inference": {"overlap": 0.5},
    "mask": {"rule": "raters"},
    "slice_axis": "axial",
    "slice_directions": "PL",
    "slice_window": [-100.0, 100.0],
    "trainer": {"precision": "bf16-mixed"},
}
# of the same model on the same images in the same way, but for how much, where to and how fast
SAME_METHOD = {
    *("split", "output", "save_predictions", "label", "seed", "bootstrap_resamples", "figures"),
    *("allow_overlap", "allow_other_preparation", "distortions", "slice_batch"),
    # compared on their own
    "metrics",
}


def test_it_is_decided_of_each_setting_of_an_evaluation_whether_it_makes_another_method() -> None:
    assert {field.name for field in fields(EvaluateConfiguration)} == {*CHANGES, *SAME_METHOD, "predictions"}


def test_a_training_on_another_majority_makes_another_method_and_another_measure_does_not() -> None:
    other = {"metrics": {"majority_tie": "background"}}
    assert method_settings(EVALUATED | {TRAINING: TRAINED | other}) != method_settings(EVALUATED)
    assert method_settings(TRAINED | other) == method_settings(EVALUATED | {TRAINING: TRAINED | other})
    assert method_settings(EVALUATED | other) == method_settings(EVALUATED)


def test_predictions_in_files_are_not_those_of_a_model_and_have_no_settings_of_a_command() -> None:
    data = {"source": {"spacing": [1.0, 1.0]}}
    measured = {"predictions": "folder", "data": data, "slice_batch": 8, "trainer": {"precision": "16-mixed"}}
    assert set(method_settings(measured)) == {"predictions", "data.source.spacing"}
    assert method_settings(measured)["predictions"] != method_settings(TRAINED)["predictions"]
    assert method_settings(measured | {"read_out": {"members": 4}})["read_out.members"] == 4


@pytest.mark.parametrize("name", CHANGES)
def test_evaluations_that_differ_in_what_is_predicted_are_of_different_methods(name: str) -> None:
    assert method_settings(EVALUATED | {name: CHANGES[name]}) != method_settings(EVALUATED)


@pytest.mark.parametrize("name", sorted(SAME_METHOD))
def test_evaluations_that_differ_in_nothing_else_are_of_one_method(name: str) -> None:
    assert method_settings(EVALUATED | {name: "another"}) == method_settings(EVALUATED)


def test_checkpoints_are_told_apart_by_what_is_known_of_them() -> None:
    """The training's own results are those of `best.ckpt`; its file may be renamed."""
    best, last = EVALUATED | {CKPT_MEASURED: True}, EVALUATED | {CKPT_MEASURED: False, "ckpt": "run/last.ckpt"}
    assert method_settings(best) == method_settings(best | {"ckpt": "seed 0.ckpt"}) == method_settings(TRAINED)
    assert method_settings(EVALUATED | {"ckpt": "seed 0.ckpt"}) == method_settings(best)
    assert method_settings(last) == method_settings(TRAINED) | {"evaluation.ckpt": "last.ckpt"}
    renamed = method_settings(last | {"ckpt": "seed 0.ckpt"})
    assert renamed == method_settings(TRAINED) | {"evaluation.ckpt": "intermediate"}
