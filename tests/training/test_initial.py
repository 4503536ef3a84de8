"""A training that begins with the weights of an earlier one."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from trainings import configuration

from edue_lightning.config.build import build_data
from edue_lightning.data import RaterSample
from edue_lightning.data.identity import CaseIdentity
from edue_lightning.data.source import CaseRecord
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import load_method, read_checkpoint, training_cases
from edue_lightning.runs.record import method_settings
from edue_lightning.training import fit as fitting
from edue_lightning.training.fit import Experiment
from edue_lightning.training.run import train

ONE_EPOCH = ["method=single", "trainer.max_epochs=1"]
# other cases under other names: a generated case is decided by its position and the seed
OTHER_CASES = ["data.source.seed=7"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    train(configuration(*ONE_EPOCH), folder)
    return folder / "checkpoints" / "best.ckpt"


def weights_of(experiment: Experiment) -> dict[str, Any]:
    return experiment.method.state_dict()


def test_all_weights_are_those_of_the_checkpoint_and_the_run_says_so(first: Path, tmp_path: Path) -> None:
    settings = configuration(*ONE_EPOCH, f"init={first}", "seed=5")
    found, expected = weights_of(Experiment.of(settings)), read_checkpoint(first)["state_dict"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    train(settings, tmp_path / "second")
    record = yaml.safe_load((tmp_path / "second" / "config.yaml").read_text())
    assert record["init"] == str(first)
    assert record["init_digest"] == hashlib.sha256(first.read_bytes()).hexdigest()
    assert "init" not in method_settings(record)
    assert method_settings(record)["init_digest"] == record["init_digest"]


def test_heads_of_another_shape_are_drawn_and_named(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = configuration("method=edue", f"init={first}")
    drawn = weights_of(Experiment.of({**settings, "init": None}))
    expected = read_checkpoint(first)["state_dict"]
    with caplog.at_level(logging.INFO, "edue_lightning"):
        found = weights_of(Experiment.of(settings))
    taken = {name for name in found if name in expected and found[name].shape == expected[name].shape}
    assert taken
    assert set(found) - taken
    for name in found:
        assert torch.equal(found[name], (expected if name in taken else drawn)[name]), name
    assert "% of the weights are taken from it; drawn anew" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["network.features=[5,7,9]"],
            r"init=.*best\.ckpt: only \d+% of the weights .*; choose the method",
        ),
        (["method=deep_ensemble", "method.members=2"], r"init=.*: only 0% of the weights"),
    ],
)
def test_weights_of_another_network_are_refused(first: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Experiment.of(configuration("method=single", *overrides, f"init={first}"))


def test_a_file_that_is_no_checkpoint_of_a_method_is_refused(tmp_path: Path) -> None:
    for content, message in (({"state_dict": {}}, "was not written by"), ({}, "is not a checkpoint")):
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=rf"other\.ckpt: {message}"):
            Experiment.of(configuration(*ONE_EPOCH, f"init={tmp_path}/other.ckpt"))
    with pytest.raises(UserError, match=r"missing\.ckpt: no such checkpoint file"):
        Experiment.of(configuration(*ONE_EPOCH, f"init={tmp_path}/missing.ckpt"))


def test_earlier_training_cases_are_refused_in_validation_and_test(first: Path) -> None:
    refusal = r"cases of split=val, or their patients, were in its training: .*keep the splits"
    with pytest.raises(UserError, match=refusal):
        Experiment.of(configuration(*ONE_EPOCH, f"init={first}", "data.fractions.seed=3"))


def test_each_case_is_identified_once(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identified: list[str] = []
    of = CaseIdentity.of

    def counted(record: CaseRecord, sample: RaterSample) -> CaseIdentity:
        identified.append(record.case_id)
        return of(record, sample)

    monkeypatch.setattr(CaseIdentity, "of", counted)
    experiment = Experiment.of(configuration(*ONE_EPOCH, f"init={first}"))
    expected = [record.case_id for split in ("train", "val", "test") for record in experiment.data.records(split)]
    assert sorted(identified) == sorted(expected)


def test_earlier_training_cases_are_known_to_a_later_evaluation(first: Path, tmp_path: Path) -> None:
    train(configuration(*ONE_EPOCH, *OTHER_CASES, f"init={first}"), tmp_path)
    best = tmp_path / "checkpoints" / "best.ckpt"
    earlier, own = training_cases(read_checkpoint(first)), training_cases(read_checkpoint(best))
    known = load_method(best).cases
    assert earlier is not None
    assert own is not None
    assert known is not None
    for split in ("train", "val"):
        assert known[split] == [*own[split], *earlier[split]]
        assert earlier[split][0].image not in {case.image for case in own[split]}
    # and through a third training
    third = Experiment.of(configuration(*ONE_EPOCH, "data.source.seed=8", f"init={best}"))
    assert third.initial is not None
    assert third.initial.cases == known
    data = build_data(configuration())
    assert len(known["train"]) == 2 * len(data.splits["train"])


def test_a_resumed_training_begins_from_the_same_file(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(first.read_bytes())
    settings = configuration(*ONE_EPOCH, f"init={copy}")
    monkeypatch.setattr(fitting, "_fit_trainee", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run")
    checkpoint = read_checkpoint(copy)
    torch.save({**checkpoint, "epoch": 99}, copy)
    with pytest.raises(UserError, match=r"init=.*copy\.ckpt: the file has changed since .*run began from it"):
        train(settings, tmp_path / "run")
