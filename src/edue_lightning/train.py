"""Train one method on one data set, then test its best checkpoint.

python -m edue_lightning.train experiment=NAME [overrides]
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from edue_lightning.build import ImageFormat, build, build_data, build_distortions, build_method, build_metric_settings
from edue_lightning.checkpoints import checkpoint_entries, read_checkpoint, save_method
from edue_lightning.command import EpochLines, command, job_folder, quiet_libraries
from edue_lightning.configuration import check_configuration, configuration_folder, resolved
from edue_lightning.cost import measure_cost
from edue_lightning.data import RaterDataModule
from edue_lightning.errors import UserError
from edue_lightning.loggers import WandbSettings, training_loggers, wandb_must_not_matter
from edue_lightning.measurement import Measurement, measure_method
from edue_lightning.methods import SegmentationMethod
from edue_lightning.metrics import LOWER_IS_BETTER, VALIDATION_METRICS
from edue_lightning.records import clear_unfinished, finished_value, write_configuration, write_mapping
from edue_lightning.reporting.run_folder import COST_FILE, METRICS_COLUMNS, VALIDATION_FILE, write_table
from edue_lightning.shift import measure_shift
from edue_lightning.wandb_results import log_results

log = logging.getLogger(__name__)


@dataclass
class TrainConfiguration:
    """Top level of `conf/train.yaml`."""

    seed: int
    label: str | None
    select_by: str
    test: bool
    skip_finished: bool
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
    distortions: dict[str, Any] | None = None


# the plain U-Net, against which the cost of every method is measured
_PLAIN = {
    "_target_": "edue_lightning.methods.SingleNetwork",
    "_partial_": True,
    "heads": {"_target_": "edue_lightning.networks.HeadLayout", "stages": "last"},
}


def train(configuration: Mapping[str, Any], folder: Path) -> float:
    """Train, validate and test as a configuration says.

    Args:
        configuration: resolved and plain, as `conf/train.yaml` composes it.
        folder: of the run, new or without results; see the README for what it will hold. With `skip_finished` a run
            that is finished there is left as it is, and one that was cut off begins again.

    Returns:
        `select_by` on the validation cases at the best checkpoint, averaged over structures: what a search for
        settings looks at.

    Raises:
        UserError: for a configuration or data that cannot be used, before any training; or if the folder already
            holds a run that must not be replaced.
    """
    check_configuration(configuration, TrainConfiguration)
    if configuration["select_by"] not in VALIDATION_METRICS:
        known = ", ".join(VALIDATION_METRICS)
        raise UserError(
            f"select_by={configuration['select_by']}: no metric that validation measures; those are {known}"
        )
    if configuration["skip_finished"]:
        found = finished_value(configuration, folder, configuration["select_by"])
        if found is not None:
            log.info("%s: is finished, and is not run again", folder)
            return found
    seed = int(configuration["seed"])
    pl.seed_everything(seed, workers=True, verbose=False)
    settings: WandbSettings = build(configuration["logger"], "logger")
    distortions = build_distortions(configuration.get("distortions"))
    data = build_data(configuration)
    data.require("train", "val", "test")
    method = build_method(configuration, ImageFormat.of(data.source))
    metric_settings = build_metric_settings(configuration["metrics"], method.structures)
    for trainee in method.trainees():
        trainee.use_metric_settings(metric_settings)
    method.checkpoint_entries = checkpoint_entries(configuration, ImageFormat.of(data.source))
    label = configuration["label"] or method.label

    if configuration["skip_finished"]:
        clear_unfinished(folder)
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
        resamples = int(configuration["bootstrap_resamples"])
        validation = measure_method(method, data, Measurement(label, "val", metric_settings, resamples), trainer)
        cost = _cost(method, data, configuration, validation.members, seconds)
        write_mapping(cost, folder / COST_FILE)
        if configuration["test"]:
            evaluation = measure_method(method, data, Measurement(label, "test", metric_settings, resamples), trainer)
            detection = distorted_cases = None
            if distortions is not None:
                shift = measure_shift(method, data, distortions, label, "test", metric_settings)
                shift.write(folder)
                detection, distorted_cases = shift.detection_frame(), shift.cases_frame()
            evaluation.write(folder)
            if wandb_run is not None:
                with wandb_must_not_matter("log the evaluation"):
                    log_results(wandb_run, evaluation, detection, distorted_cases, cost)
            log.info("%s\n%s", folder, evaluation.headline())
        # last, since its presence says that the run is finished
        write_table(validation.metrics_frame(), METRICS_COLUMNS, folder / VALIDATION_FILE)
    finally:
        if wandb_run is not None:
            failed = sys.exc_info()[0] is not None
            with wandb_must_not_matter("finish"):
                wandb_run.finish(exit_code=int(failed))
    return validation.summary.means()[configuration["select_by"]]


def _cost(
    method: SegmentationMethod,
    data: RaterDataModule,
    configuration: Mapping[str, Any],
    members: int,
    train_seconds: float,
) -> dict[str, float]:
    """Return the content of `model.json`."""
    plain = build_method({**configuration, "method": _PLAIN}, ImageFormat.of(data.source)).to(method.device)
    image = data.single_batch("val", 0).image.to(method.device)
    return {
        **asdict(measure_cost(method, plain, image)),
        "networks": method.networks,
        "forward_passes": method.forward_passes,
        "members": members,
        "train_seconds": train_seconds,
    }


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
    """Run the command; a sweeper that searches gets `select_by` on the validation cases."""
    quiet_libraries()
    return train(resolved(config), job_folder())


if __name__ == "__main__":
    # launchers hand the function to other processes, which find its module by this name alone
    from edue_lightning.train import main as importable_main

    importable_main()
