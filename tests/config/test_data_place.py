"""A data set that moved since the training is found where the user says, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from edue_lightning.config.data_place import data_to_measure, with_absolute_root
from edue_lightning.config.schema import check_configuration, configuration_folder, resolved
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import EvaluateConfiguration


def node(root: str | None, **source: Any) -> dict[str, Any]:
    target = {"_target_": "edue_lightning.data.RaterDataModule", "name": "manifest", "batch_size": 3}
    return {**target, "root": root, "source": {"_target_": "Source", "root": root, "file": "manifest.csv", **source}}


def test_a_checkpoint_keeps_its_folder_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = with_absolute_root({"seed": 1, "data": node("ids", images="ids", database=None)})
    assert kept["data"]["root"] == kept["data"]["source"]["root"] == str(tmp_path / "ids")
    assert kept["data"]["source"]["images"] == str(tmp_path / "ids")
    assert kept["data"]["source"]["file"] == "manifest.csv"
    assert kept["seed"] == 1
    # a data set in no folder is left alone
    for data in (None, node(None), {"name": "synthetic", "source": {"n_cases": 3}}):
        assert with_absolute_root({"data": data}) == {"data": data}


@pytest.mark.parametrize("root", [None, "other"])
def test_a_folder_that_is_set_at_the_source_alone_is_kept_and_moved_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = {**node(root), "source": {"_target_": "Source", "root": "ids", "database": "db", "file": "m.csv"}}
    kept = with_absolute_root({"data": trained})["data"]
    assert kept["source"] == {
        **trained["source"],
        "root": str(tmp_path / "ids"),
        "database": str(tmp_path / "db"),
    }
    assert kept["root"] == (None if root is None else str(tmp_path / root))
    with pytest.raises(UserError, match=r"was trained on data\.(source\.)?root=(ids|other), a path from a working"):
        data_to_measure({"root": None}, trained, "best.ckpt")
    with pytest.raises(UserError, match=r"was trained on data\.source\.database=db"):
        data_to_measure({"root": "new"}, trained, "best.ckpt")
    moved = data_to_measure({"root": "new"}, kept, "best.ckpt")
    assert moved is not None
    assert moved["source"]["root"] == moved["root"] == "new"


def test_the_data_set_of_the_training_is_measured_where_it_lies_now() -> None:
    trained = node("/old/place", images="/old/place")
    assert data_to_measure(None, trained, "best.ckpt") == trained
    assert data_to_measure({"root": None}, trained, "best.ckpt") == trained
    assert data_to_measure({"root": "new"}, trained, "best.ckpt") == node("new", images="new")
    assert data_to_measure({"root": "new"}, node("ids"), "best.ckpt") == node("new")
    assert data_to_measure({"root": "new"}, node(None), "best.ckpt") == node("new")
    other = node("elsewhere", file="other.csv")
    assert data_to_measure(other, trained, "best.ckpt") == other
    assert data_to_measure({"root": None}, None, "predictions") is None


def test_a_relative_folder_of_an_earlier_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match=r"best\.ckpt: was trained on data\.root=ids, .*; set data\.root=FOLDER"):
        data_to_measure({"root": None}, node("ids"), "best.ckpt")
    with pytest.raises(UserError, match=r"data\.root=new: the data set of best\.ckpt reads no folder"):
        data_to_measure({"root": "new"}, {"name": "synthetic", "source": {"n_cases": 3}}, "best.ckpt")


@pytest.mark.parametrize("overrides", [[], ["data.root=FOLDER"], ["data=manifest", "data.root=FOLDER"], ["data=lidc"]])
def test_evaluate_takes_a_folder_with_and_without_a_data_set(overrides: list[str]) -> None:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        plain = resolved(compose("evaluate", ["ckpt=best.ckpt", "output=x", *overrides]))
    check_configuration(plain, EvaluateConfiguration)
    assert plain["data"]["root"] == ("FOLDER" if "data.root=FOLDER" in overrides else None)
    assert ("_target_" in plain["data"]) == any(override.startswith("data=") for override in overrides)
