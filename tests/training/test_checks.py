"""Settings that cannot work, or would have no effect, are refused in one line before any training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_parts import parts_of, small_network
from torch import nn
from trainings import configuration

from edue_lightning.config.build import build_method, refused_size
from edue_lightning.data import RaterSample, SyntheticFundus
from edue_lightning.errors import UserError
from edue_lightning.methods import SingleNetwork, StochasticSegmentation
from edue_lightning.networks import HeadLayout
from edue_lightning.training import run as training_run
from edue_lightning.training.checks import check_validated
from edue_lightning.training.fit import Experiment
from edue_lightning.training.run import check_training


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.logger=tensorboard", "trainer.logger=tensorboard: has no effect"),
        ("+trainer.callbacks=[]", "trainer.callbacks"),
        ("+trainer.default_root_dir=here", "trainer.default_root_dir=here: has no effect"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true: not supported"),
        ("trainer.precision=64-true", "trainer.precision=64-true: not supported"),
        ("+trainer.overfit_batches=2", "trainer.overfit_batches=2: not supported"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=True: not supported"),
        ("trainer.use_distributed_sampler=true", "trainer.use_distributed_sampler=True: not supported"),
        ("+trainer.limit_test_batches=2", "trainer.limit_test_batches=2: not supported"),
        ("loss.structure_weights=[1.0,0.0]", r"loss: structure_weights must be positive numbers"),
        ("loss.structure_weights=[inf,1.0]", r"loss: structure_weights must be positive numbers"),
        ("trainer.max_epochs=0", "trainer.max_epochs must be at least 1, not 0"),
        ("trainer.max_epochs=-1", "set trainer.max_epochs or trainer.max_steps"),
        ("+trainer.max_steps=0", "trainer.max_steps must be at least 1"),
        ("+trainer.limit_val_batches=0", "trainer.limit_val_batches must be above 0"),
        ("+trainer.val_check_interval='00:00:10:00'", "trainer.val_check_interval=00:00:10:00: must be a number of"),
        ("+trainer.limit_train_batches=0.0", "trainer.limit_train_batches must be above 0"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches must be at least 1"),
        ("seed=-1", "seed must be at least 0"),
        ("seed=4294967296", "seed must be at least 0 and at most 4294967295"),
        ("bootstrap_resamples=-1", "bootstrap_resamples must be at least 0"),
        ("checkpoint_every_steps=0", "checkpoint_every_steps must be at least 1"),
    ],
)
def test_settings_are_refused_before_any_data_is_read(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        check_training(configuration(override))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("override", ["trainer.precision=bf16-mixed", "trainer.precision=32", "seed=4294967295"])
def test_usual_settings_pass(override: str) -> None:
    check_training(configuration(override))


PATCH = "+data.patch._target_=edue_lightning.data.PatchSampling"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_workers=-1"], "data.num_workers must be at least 0, not -1"),
        (["data.cache_cases=-1"], "data.cache_cases must be at least 0"),
        (["data.seed=-1"], "data.seed must be at least 0"),
        (["data.fractions.seed=-1"], "data.fractions.seed must not be negative"),
        (["optimizer.learning_rate=-1"], "learning_rate must be above 0, not -1"),
        (["optimizer.learning_rate=0"], "learning_rate must be above 0, not 0"),
        (["optimizer.weight_decay=-0.1"], "weight_decay must not be negative"),
        (["network.features=[0,4]"], "features must be positive"),
        (["network.dropout=1.5"], "dropout"),
        (["+network.in_channels=5"], "network.in_channels=5: has no effect"),
        (
            ["network.features=[4,4,4,4,4,4]", "data.source.size=24"],
            "case .*: the network cannot take 24x24: .*small",
        ),
        (["network.features=[4,4,4,4]", PATCH, "+data.patch.size=[5,5]"], r"data.patch.size=\[5, 5\]: .*too small"),
        (["network.features=[4,4,4,4]", "inference.window=[5,5]"], r"inference.window=\[5, 5\]: .*too small"),
        (["+trainer.check_val_every_n_epoch=4"], "ends before its first validation"),
        (["+trainer.max_steps=2"], "ends before its first validation"),
        (["+trainer.val_check_interval=6"], "val_check_interval=6: an epoch has 5 batches"),
        (["+trainer.limit_val_batches=0.5"], "limit_val_batches=0.5: leaves none of the 1 validation batches"),
    ],
)
def test_settings_are_refused_before_training(overrides: list[str], message: str) -> None:
    settings = configuration(*overrides)
    check_training(settings)
    with pytest.raises(UserError, match=message) as refused:
        Experiment.of(settings)
    assert "\n" not in str(refused.value)


def test_a_case_that_nobody_outlined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load = SyntheticFundus.load

    def unrated(self: SyntheticFundus, case: str) -> RaterSample:
        sample = load(self, case)
        return replace(sample, valid=torch.zeros_like(sample.valid)) if case.endswith("07") else sample

    monkeypatch.setattr(SyntheticFundus, "load", unrated)
    with pytest.raises(UserError, match=r"^1 case without a valid rater: \S+07; a case that nobody outlined"):
        Experiment.of(configuration())


@pytest.mark.parametrize(("spacing", "is_refused"), [((0.5, 3.0), True), ((0.5, 0.503), False), (None, False)])
def test_quarter_turns_at_prediction_need_voxels_of_equal_sizes(
    spacing: tuple[float, ...] | None, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SyntheticFundus.load
    monkeypatch.setattr(SyntheticFundus, "load", lambda self, case: replace(load(self, case), spacing=spacing))
    if is_refused:
        with pytest.raises(UserError, match=r"^case '\S+': .* 0\.5 and 3 mm along them; set method\.turned=false$"):
            Experiment.of(configuration("method=test_time_augmentation", "method.turned=true"))
        Experiment.of(configuration("method=test_time_augmentation"))
    else:
        Experiment.of(configuration("method=test_time_augmentation", "method.turned=true"))


@pytest.mark.parametrize(
    "overrides",
    [["trainer.max_epochs=1"], ["+trainer.val_check_interval=0.5"], ["+trainer.check_val_every_n_epoch=3"]],
)
def test_a_training_with_a_validation_passes(overrides: list[str]) -> None:
    check_validated(configuration(*overrides)["trainer"], 5, SingleNetwork(parts_of(), HeadLayout("last")))


@pytest.mark.parametrize(
    ("overrides", "warm_up_epochs", "validated"),
    [
        (["trainer.max_epochs=3"], 3, 3),
        (["trainer.max_epochs=5", "+trainer.check_val_every_n_epoch=2"], 4, 4),
        (["trainer.max_epochs=3", "+trainer.val_check_interval=4", "+trainer.check_val_every_n_epoch=null"], 3, 3),
        (["trainer.max_epochs=9", "+trainer.max_steps=15"], 3, 3),
    ],
)
def test_a_validation_follows_the_epochs_of_preparation(
    overrides: list[str], warm_up_epochs: int, validated: int
) -> None:
    trainer = configuration(*overrides)["trainer"]
    check_validated(trainer, 5, StochasticSegmentation(parts_of(), warm_up_epochs=warm_up_epochs - 1))
    with pytest.raises(UserError, match=f"follows epoch {validated}, .* the first {warm_up_epochs} "):
        check_validated(trainer, 5, StochasticSegmentation(parts_of(), warm_up_epochs=warm_up_epochs))


def test_the_ramp_of_the_guidance_ends_before_the_last_validation() -> None:
    with pytest.raises(UserError, match=r"method\.guidance\.ramp_up_epochs"):
        Experiment.of(configuration("method=edue", "method.guidance.ramp_up_epochs=3", "trainer.max_epochs=3"))


def test_parts_of_a_method_are_no_options() -> None:
    settings = configuration("method=single")
    settings["method"] = {**settings["method"], "parts": 1}
    check_training(settings)
    with pytest.raises(UserError, match=r"method\.parts=1: has no effect"):
        Experiment.of(settings)


def test_a_network_that_needs_values_to_be_checked_is_checked_with_values() -> None:
    class Asking(nn.Module):
        members = 1

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if float(image.sum()) != 0 or image.shape[-1] < 8:
                raise RuntimeError("needs 8 columns")
            return image[:, None]

    assert refused_size(lambda heads: Asking(), 1, (8, 8)) is None
    assert refused_size(lambda heads: Asking(), 1, (8, 7)) == "needs 8 columns"
    assert refused_size(small_network, 3, (4, 8)) is None
    assert "too small" in str(refused_size(small_network, 3, (3, 8)))
    assert small_network(HeadLayout("last")).stride == 4


def test_ties_of_the_metrics_are_those_of_the_target() -> None:
    settings = configuration("method=single", "metrics.majority_tie=background")
    data = training_run.Experiment.of(settings).data
    image_format = training_run.ImageFormat.of(data.source)
    assert build_method(settings, image_format).majority_tie == "background"
    assert build_method(configuration("method=deep_ensemble"), image_format).majority_tie == "foreground"
    members = build_method({**settings, "method": configuration("method=deep_ensemble")["method"]}, image_format)
    assert {member.majority_tie for member in members.trainees()} == {"background"}
