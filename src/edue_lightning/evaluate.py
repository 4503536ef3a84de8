"""Measure a trained model on a split of its own data set, or of another one.

python -m edue_lightning.evaluate ckpt=PATH [split=test] [data=NAME ...]
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig

from edue_lightning.build import ImageFormat, build, build_data
from edue_lightning.checkpoints import load_method
from edue_lightning.command import command, job_folder, quiet_libraries
from edue_lightning.configuration import (
    check_configuration,
    check_only_ours,
    configuration_folder,
    resolved,
)
from edue_lightning.errors import UserError
from edue_lightning.evaluation import Evaluation, evaluate_method
from edue_lightning.records import write_configuration

log = logging.getLogger(__name__)


@dataclass
class EvaluateConfiguration:
    """Top level of `conf/evaluate.yaml`."""

    ckpt: str
    split: Literal["train", "val", "test"]
    output: str
    label: str | None
    seed: int
    bootstrap_resamples: int
    trainer: dict[str, Any]
    data: dict[str, Any] | None = None


def evaluate(configuration: Mapping[str, Any], folder: Path) -> Evaluation:
    """Measure a checkpoint as a configuration says.

    Args:
        configuration: resolved and plain, as `conf/evaluate.yaml` composes it; without `data`, the checkpoint's own.
        folder: for the results, new or without results.

    Raises:
        UserError: if the checkpoint or the data cannot be used, do not fit each other, or the folder holds results.
    """
    check_configuration(configuration, EvaluateConfiguration)
    path = Path(configuration["ckpt"])
    method, wanted, trained = load_method(path)
    data_configuration = configuration.get("data") or trained.get("data")
    if data_configuration is None:
        raise UserError(f"{path}: its settings name no data set; give one with data=NAME")
    check_only_ours(data_configuration, str(path))
    pl.seed_everything(int(configuration["seed"]), workers=True, verbose=False)
    data = build_data({"data": data_configuration})
    found = ImageFormat.of(data.source)
    if found != wanted:
        raise UserError(f"{path}: was trained for {wanted}, but data={data.name} has {found}")
    label = configuration["label"] or trained.get("label") or method.label
    write_configuration(
        {**configuration, "data": data_configuration, "seed": trained["seed"]}, label, data.note, folder
    )
    trainer = build(configuration["trainer"], "trainer")(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    evaluation = evaluate_method(
        method,
        data,
        configuration["split"],
        trainer,
        label=label,
        resamples=int(configuration["bootstrap_resamples"]),
    )
    evaluation.write(folder)
    return evaluation


@hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="evaluate")
@command
def main(config: DictConfig) -> None:
    """Run the command."""
    quiet_libraries()
    folder = job_folder()
    evaluation = evaluate(resolved(config), folder)
    log.info("%s\n%s", folder, evaluation.headline())


if __name__ == "__main__":
    main()
