"""What distinguishes the methods: members, targets and losses."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from method_parts import parts_of
from torch import Tensor

from edue_lightning.data import RaterBatch, RaterDataModule, SyntheticFundus
from edue_lightning.losses import SegmentationLoss, VarianceGuidance
from edue_lightning.methods import (
    EDUE,
    DeepEnsemble,
    LayerEnsemble,
    OptimizerSettings,
    SegmentationMethod,
    SingleNetwork,
    parameter_count,
)
from edue_lightning.methods.targets import draw_raters, select_raters
from edue_lightning.networks import HeadLayout


def edue(weight: float = 10.0, **options: object) -> EDUE:
    guidance = VarianceGuidance(weight, ramp_up_epochs=0.0)
    parts = parts_of(optimizer=OptimizerSettings(learning_rate=0.01))
    return EDUE(parts, HeadLayout("decoder", per_stage=2), guidance, **options)


def layer_ensemble(**options: object) -> LayerEnsemble:
    return LayerEnsemble(parts_of(), HeadLayout("encoder+decoder", kernel_size=3), **options)


def deep_ensemble(**options: object) -> DeepEnsemble:
    return DeepEnsemble(parts_of(), HeadLayout("last"), **options)


def single(**options: object) -> SingleNetwork:
    return SingleNetwork(parts_of(), HeadLayout("last"), **options)


@pytest.fixture(scope="module")
def batch() -> RaterBatch:
    data = RaterDataModule("synthetic", SyntheticFundus(12, 24, missing_rater_rate=0.3), batch_size=4)
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("method", "members", "label"),
    [
        (edue(), 4, "edue"),
        (edue(weight=0.0), 4, "edue_unguided"),
        (edue(mean_weight=2.0), 4, "edue_moments"),
        (edue(weight=0.0, mean_weight=2.0), 4, "edue_mean"),
        (layer_ensemble(), 5, "layer_ensemble"),
        (layer_ensemble(skip_heads=3, target="random_rater"), 2, "layer_ensemble_random_rater"),
        (deep_ensemble(members=3), 3, "deep_ensemble"),
        (deep_ensemble(members=2, target="rater_per_member"), 2, "deep_ensemble_rater_per_member"),
        (single(), 1, "single"),
        (single(target="soft_majority"), 1, "single_soft_majority"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_all_methods_yield_member_logits(
    method: SegmentationMethod, members: int, label: str, batch: RaterBatch
) -> None:
    assert method(batch.image).shape == (4, members, 2, 24, 24)
    assert method.label == label
    for trainee in method.trainees():
        parts = trainee.training_loss(batch)
        parts["loss"].backward()
        gradients = [parameter.grad for parameter in trainee.parameters()]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_each_head_of_edue_sees_a_rater_of_its_own(batch: RaterBatch) -> None:
    method = edue()
    targets = method.head_targets(batch, 4)
    raters = draw_raters(batch.valid, batch.draw_key, 4)
    assert len({tuple(row) for row in raters.T.tolist()}) > 1
    for case in range(4):
        for head in range(4):
            assert bool(batch.valid[case, raters[case, head]])
            assert torch.equal(targets[case, head], batch.masks[case, raters[case, head]])
    shared = edue(rater_draw="shared").head_targets(batch, 4)
    assert all(torch.equal(shared[:, 0], shared[:, head]) for head in range(4))
    assert torch.equal(shared[:, 0], select_raters(batch.masks, draw_raters(batch.valid, batch.draw_key, 1))[:, 0])


def test_edues_loss_is_the_sum_of_its_parts(batch: RaterBatch) -> None:
    method = edue(weight=10.0)
    parts = method.training_loss(batch)
    logits = method(batch.image)
    per_head = [
        SegmentationLoss()(logits[:, head : head + 1], method.head_targets(batch, 4)[:, head : head + 1]).mean()
        for head in range(4)
    ]
    torch.testing.assert_close(parts["segmentation"], torch.stack(per_head).mean())
    guidance = VarianceGuidance(1.0)(logits, batch.masks, batch.valid)
    torch.testing.assert_close(parts["loss"], parts["segmentation"] + 10 * guidance)
    assert set(edue(weight=0.0).training_loss(batch)) == {"loss", "segmentation"}


def test_a_layer_ensemble_trains_the_heads_that_it_skips(batch: RaterBatch) -> None:
    method = layer_ensemble(skip_heads=3)
    loss = method.training_loss(batch)["loss"]
    logits = method.network(batch.image)
    assert logits.shape[1] == 5
    majority = (batch.masks.float() * batch.valid[:, :, None, None, None]).sum(1) / batch.valid.sum(1)[
        :, None, None, None
    ]
    target = (majority >= 0.5).float()
    expected = sum(SegmentationLoss()(logits[:, h : h + 1], target[:, None]).mean() for h in range(5))
    torch.testing.assert_close(loss, torch.as_tensor(expected))
    assert torch.equal(method(batch.image), logits[:, 3:])


def test_members_of_a_deep_ensemble_are_initialised_apart_and_follow_their_rater(batch: RaterBatch) -> None:
    method = deep_ensemble(members=4, target="rater_per_member")
    members = method.trainees()
    first = [next(iter(member.parameters())) for member in members]
    assert all(not torch.equal(first[0], other) for other in first[1:])
    assert parameter_count(method) == 4 * parameter_count(members[0])
    assert [member.member for member in members if isinstance(member, SingleNetwork)] == [0, 1, 2, 3]
    with pytest.raises(NotImplementedError, match="trainees"):
        method.training_loss(batch)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (deep_ensemble, {"members": 1}, "at least two members"),
        (layer_ensemble, {"target": "rater_per_member"}, "share one target"),
        (layer_ensemble, {"skip_heads": -1}, "negative"),
        (layer_ensemble, {"skip_heads": 4}, "leaves fewer than two"),
    ],
)
def test_senseless_options_are_refused(make: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


class Recorder(pl.Callback):
    """Keeps what each training step saw."""

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.keys += batch.draw_key.tolist()
        self.losses.append(outputs["loss"])


def test_guidance_draws_the_models_variance_towards_the_raters() -> None:
    def distance_after(weight: float) -> float:
        pl.seed_everything(0, verbose=False)
        method = edue(weight=weight)
        data = RaterDataModule("synthetic", SyntheticFundus(24, 24), batch_size=4)
        trainer = pl.Trainer(
            max_epochs=40,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(method, data)
        held_out = next(iter(data.test_dataloader()))
        with torch.no_grad():
            return float(VarianceGuidance(1.0)(method.eval()(held_out.image), held_out.masks, held_out.valid))

    assert distance_after(300.0) < 0.9 * distance_after(0.0)


def test_one_seed_draws_the_same_raters_in_another_epoch_others() -> None:
    def seen(seed: int) -> Recorder:
        pl.seed_everything(0, verbose=False)
        recorder = Recorder()
        data = RaterDataModule("synthetic", SyntheticFundus(12, 24), batch_size=4, seed=seed)
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[recorder],
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        trainer.fit(edue(), data)
        return recorder

    first, again, other = seen(1), seen(1), seen(2)
    assert first.keys == again.keys
    assert torch.equal(torch.stack(first.losses), torch.stack(again.losses))
    assert len(set(first.keys)) == len(first.keys)  # no case draws the same twice
    assert not set(first.keys) & set(other.keys)
