from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from edue_lightning.config.build import build_data
from edue_lightning.config.schema import (
    check_configuration,
    check_only_ours,
    configuration_folder,
    resolved,
)
from edue_lightning.errors import UserError
from edue_lightning.training.run import TrainConfiguration


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", list(overrides)))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(configuration_folder()) / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_fits_the_code(experiment: str) -> None:
    check_configuration(composed(f"experiment={experiment}"), TrainConfiguration)


@pytest.mark.parametrize("method", choices("method"))
def test_every_method_fits_the_code(method: str) -> None:
    check_configuration(composed(f"method={method}"), TrainConfiguration)


@pytest.mark.parametrize("data", choices("data"))
def test_every_data_set_fits_the_code(data: str) -> None:
    configuration = composed(f"data={data}", "data.batch_size=3", "data.augmentation.flip=0.25")
    check_configuration(configuration, TrainConfiguration)
    assert configuration["data"]["name"] == data
    assert configuration["data"]["batch_size"] == 3
    assert configuration["data"]["augmentation"]["flip"] == 0.25


def test_the_shared_settings_are_no_data_set() -> None:
    assert "_base" not in choices("data")
    with pytest.raises(UserError, match=r"data.name: not set\n  data.source: not set"):
        check_configuration(composed("data=_base"), TrainConfiguration)


def test_keys_that_others_refer_to_reach_the_source_and_not_the_module(tmp_path: Path) -> None:
    configuration = composed("data=manifest", f"data.root={tmp_path}", "data.cache=null")
    assert configuration["data"]["source"]["root"] == configuration["data"]["root"] == str(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.csv: not found"):
        build_data(configuration).splits  # noqa: B018
    synthetic = composed("data=synthetic", "data.source.n_cases=8", "data.source.size=24")
    # as a configuration written by an earlier version has them
    synthetic["data"] |= {"root": None, "cache": "outputs/cache"}
    check_configuration(synthetic, TrainConfiguration)
    assert len(build_data(synthetic).splits["all"]) == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+sed=1", "unknown key 'sed'"),
        ("+method.lambda=3", "method.lambda: unknown key"),
        ("method.guidance.weight=much", "method.guidance.weight='much'"),
        ("method.guidance.distance=mae", "method.guidance.distance='mae'"),
        ("method.heads.stages=bottleneck", "method.heads.stages='bottleneck'"),
        ("seed=one", "seed='one'"),
        ("data.batch_size=1.5", "data.batch_size=1.5"),
        ("network.features=12", "network.features=12"),
        ("trainer.max_epochs=long", "trainer.max_epochs='long'"),
        ("+trainer.max_epoch=1", "trainer.max_epoch: unknown key"),
        ("data.source._target_=edue_lightning.data.Nothing", "no such class"),
        ("~data.name", "data.name: not set"),
        ("logger.mode=loud", "logger.mode='loud'"),
    ],
)
def test_a_wrong_key_or_type_is_named_with_its_path(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_configuration(composed(override), TrainConfiguration)
    assert message in str(error.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        check_configuration(composed("seed=x", "data.batch_size=y"), TrainConfiguration)
    assert "seed='x'" in str(error.value)
    assert "data.batch_size='y'" in str(error.value)


def test_a_missing_key_is_named() -> None:
    @dataclass
    class Schema:
        needed: int

    with pytest.raises(UserError, match="needed: not set"):
        check_configuration({}, Schema)


def test_a_stored_configuration_may_call_nothing_else() -> None:
    check_only_ours({"a": [{"_target_": "edue_lightning.losses.SegmentationLoss"}]}, "x.ckpt")
    with pytest.raises(UserError, match=r"x.ckpt: refused.*'os.system'"):
        check_only_ours({"a": [{"b": {"_target_": "os.system", "command": "true"}}]}, "x.ckpt")
