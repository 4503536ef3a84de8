"""Train one method on one data set, then test its best checkpoint.

python -m edue_lightning.train experiment=NAME [overrides]
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from edue_lightning.build import ImageFormat, build, build_data, build_method, build_metric_settings
from edue_lightning.checkpoints import checkpoint_entries, read_checkpoint, save_method
from edue_lightning.command import EpochLines, command, job_folder, quiet_libraries
from edue_lightning.configuration import check_configuration, configuration_folder, resolved
from edue_lightning.data import RaterDataModule
from edue_lightning.errors import UserError
from edue_lightning.evaluation import Evaluation
from edue_lightning.loggers import WandbSettings, training_loggers, wandb_must_not_matter
from edue_lightning.measurement import Measurement, measure_method
from edue_lightning.methods import SegmentationMethod, parameter_count
from edue_lightning.metrics import LOWER_IS_BETTER, VALIDATION_METRICS
from edue_lightning.records import write_configuration

log = logging.getLogger(__name__)


@dataclass
class TrainConfiguration:
    """Top level of `conf/train.yaml`."""

    seed: int
    label: str | None
    select_by: str
    bootstrap_resamples: int
    data: dict[str, Any]
    network: dict[str, Any]
    method: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    inference: dict[str, Any]
    metrics: dict[str, Any]
    trainer: dict[str, Any]
    logger: dict[str, Any]


def train(configuration: Mapping[str, Any], folder: Path) -> Evaluation:
    """Train and test as a configuration says.

    Args:
        configuration: resolved and plain, as `conf/train.yaml` composes it.
        folder: of the run, new or without results; see the README for what it will hold.

    Returns:
        the test results, which are also written to the folder.

    Raises:
        UserError: for a configuration or data that cannot be used, before any training; or if the folder already
            holds results.
    """
    check_configuration(configuration, TrainConfiguration)
    if configuration["select_by"] not in VALIDATION_METRICS:
        known = ", ".join(VALIDATION_METRICS)
        raise UserError(
            f"select_by={configuration['select_by']}: no metric that validation measures; those are {known}"
        )
    seed = int(configuration["seed"])
    pl.seed_everything(seed, workers=True, verbose=False)
    settings: WandbSettings = build(configuration["logger"], "logger")
    data = build_data(configuration)
    data.require("train", "val", "test")
    method = build_method(configuration, ImageFormat.of(data.source))
    metric_settings = build_metric_settings(configuration["metrics"], method.structures)
    for trainee in method.trainees():
        trainee.use_metric_settings(metric_settings)
    method.checkpoint_entries = checkpoint_entries(configuration, ImageFormat.of(data.source))
    label = configuration["label"] or method.label

    write_configuration(configuration, label, data.note, folder)
    wandb_run = settings.start(f"{label}-{data.name}-{seed}", folder, {**configuration, "label": label})
    try:
        seconds = _fit(method, data, configuration, folder, wandb_run)
        trainer = build(configuration["trainer"], "trainer")(
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
        )
        measurement = Measurement(label, "test", metric_settings, int(configuration["bootstrap_resamples"]))
        evaluation = measure_method(method, data, measurement, trainer)
        evaluation.write(folder)
        cost = {
            "parameters": parameter_count(method),
            "networks": method.networks,
            "forward_passes": method.networks,
            "members": evaluation.members,
            "train_seconds": seconds,
        }
        (folder / "model.json").write_text(json.dumps(cost, indent=2) + "\n")
        if wandb_run is not None:
            with wandb_must_not_matter("log the evaluation"):
                evaluation.log_to(wandb_run)
    finally:
        if wandb_run is not None:
            failed = sys.exc_info()[0] is not None
            with wandb_must_not_matter("finish"):
                wandb_run.finish(exit_code=int(failed))
    return evaluation


def _fit(
    method: SegmentationMethod,
    data: RaterDataModule,
    configuration: Mapping[str, Any],
    folder: Path,
    wandb_run: Any,
) -> float:
    """Fit every trainee, leave the method with its best weights, and return the seconds it took."""
    start = time.monotonic()
    trainees = method.trainees()
    alone = trainees[0] is method
    checkpoints = folder / "checkpoints"
    best, last = {}, {}
    for position, trainee in enumerate(trainees):
        member = None if alone else position
        own = checkpoints if alone else checkpoints / f"member_{position}"
        if not alone:
            # a member's order, augmentation and dropout are its own; its weights were drawn one after the other
            member_seed = int(np.random.SeedSequence([configuration["seed"], position]).generate_state(1)[0])
            pl.seed_everything(member_seed, workers=True, verbose=False)
            data.set_order_seed(member_seed)
            trainee.checkpoint_entries = checkpoint_entries(configuration, ImageFormat.of(data.source), member=position)
            log.info("member %d of %d", position + 1, len(trainees))
        keeper = ModelCheckpoint(
            dirpath=own,
            filename="best",
            monitor=f"val/{configuration['select_by']}",
            mode="min" if configuration["select_by"] in LOWER_IS_BETTER else "max",
            save_last=True,
            auto_insert_metric_name=False,
        )
        trainer: pl.Trainer = build(configuration["trainer"], "trainer")(
            logger=training_loggers(folder, wandb_run, member),
            callbacks=[keeper, EpochLines()],
            default_root_dir=folder,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
        )
        trainer.fit(trainee, datamodule=data)
        # Lightning keeps the first checkpoint where the metric is never a number
        if keeper.best_model_score is None or not keeper.best_model_score.isfinite():
            raise UserError(
                f"select_by={configuration['select_by']}: undefined on the validation cases, as the variance between "
                "members is for a single network; choose another metric, such as nll"
            )
        best[position] = read_checkpoint(own / "best.ckpt")["state_dict"]
        last[position] = read_checkpoint(own / "last.ckpt")["state_dict"]
    for name, states in (("last", last), ("best", best)):
        for trainee, state in zip(trainees, states.values(), strict=True):
            trainee.load_state_dict(state)
        if not alone:
            save_method(method, checkpoints / f"{name}.ckpt")
    return time.monotonic() - start


@hydra.main(version_base="1.3", config_path=configuration_folder(), config_name="train")
@command
def main(config: DictConfig) -> float:
    """Run the command."""
    quiet_libraries()
    folder = job_folder()
    evaluation = train(resolved(config), folder)
    log.info("%s\n%s", folder, evaluation.headline())
    return evaluation.summary.means()["nll"]


if __name__ == "__main__":
    main()
