"""Cost of what surrounds the network: whole evaluations, validations within an epoch, and predictions into files.

    python experiments/benchmarks/evaluation_cost.py --slices lidc_slices.zip
    python experiments/benchmarks/evaluation_cost.py --cpu-time --only evaluations    # on a busy machine

Each row is a ratio to the network's own time, measured in turns in one process. A whole evaluation is the test loop
with all metrics but distances between surfaces, and their summary; the network alone predicts the same batches. The
share of the validation is that of the second epoch of a training on CT slices. A prediction loads the checkpoint, reads
pictures, predicts them one by one and writes all files; the network alone predicts the same images from memory. With
`--cpu-time` times are those of the process on the CPU, all threads together, without the time of other processes.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from common import configuration, image_format, machine, method_of, parser, random_batch, ratio, run_command, table
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from edue_lightning.config.build import ImageFormat, build_data, build_method
from edue_lightning.data import RaterBatch
from edue_lightning.data.new_images import find_images
from edue_lightning.evaluation.cost import side_by_side
from edue_lightning.methods import Measuring, SegmentationMethod
from edue_lightning.metrics import METRICS, VALIDATION_METRICS, CaseTable
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.run import predict
from edue_lightning.runs.trainer import build_test_trainer, build_trainer
from edue_lightning.runtime.startup import keep_freed_memory, quiet_libraries
from edue_lightning.training.validation import ValidationMetrics

# six heads of one network, and five networks
METHODS = {
    "edue": ("method=edue",),
    "deep_ensemble": ("method=deep_ensemble", "method.members=5"),
}
WITHOUT_SURFACES = [name for name in METRICS if name not in ("hd95", "nsd")]
RATERS, BATCH = 4, 8
PARTS = ("evaluations", "validation", "predictions")
Clock = Callable[[], float]


def evaluations(size: int, batches: int, rounds: int, clock: Clock) -> str:
    """Return the table of whole evaluations."""
    rows = []
    settings = configuration()["trainer"]
    for name, overrides in METHODS.items():
        method = method_of(image_format(2), *overrides).eval()
        given = [random_batch(image_format(2), BATCH, (size, size), RATERS, seed) for seed in range(batches)]
        for number, batch in enumerate(given):
            batch.case_index.add_(number * BATCH)
        calls: dict[str, Callable[[], object]] = {
            "network alone": partial(bare, method, given),
            "whole evaluation": partial(evaluate, method, given, settings),
        }
        seconds = side_by_side(calls, rounds, clock=clock)
        with torch.inference_mode():
            members = method(given[0].image).shape[1]
        rows.append((name, str(members), ratio(seconds["whole evaluation"], seconds["network alone"])))
    return table(("method", "members", "whole evaluation, of the network alone (quartiles)"), rows)


@torch.inference_mode()
def bare(method: SegmentationMethod, batches: list[RaterBatch]) -> None:
    """Predict every batch."""
    for batch in batches:
        method.predict(batch.image)


def evaluate(method: SegmentationMethod, batches: list[RaterBatch], trainer_settings: Mapping[str, Any]) -> None:
    """Predict every batch, and compute the metrics, as `evaluate` does once data and model are loaded."""
    measured = CaseTable(method.structures, WITHOUT_SURFACES)
    trainer = build_test_trainer({**trainer_settings, "accelerator": "cpu", "devices": 1})
    loader: DataLoader[RaterBatch] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.test(Measuring(method, measured), loader, verbose=False)
    measured.summary()


class EpochClock(pl.Callback):
    """Seconds of each epoch, and of the validation within it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.epochs: list[float] = []
        self.validations: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin an epoch."""
        self._epoch = self.clock()

    def on_validation_start(self, *_: Any) -> None:
        """Begin a validation."""
        self._validation = self.clock()

    def on_validation_end(self, *_: Any) -> None:
        """End a validation."""
        self.validations.append(self.clock() - self._validation)

    def on_train_epoch_end(self, *_: Any) -> None:
        """End an epoch, after its validation."""
        self.epochs.append(self.clock() - self._epoch)


def validation_share(archive: Path, share: float, clock: Clock) -> str:
    """Return the share of an epoch on CT slices that its validation takes.

    Args:
        archive: folder or ZIP archive of the slices.
        share: share of the batches of both splits that are used, the same for both.
        clock: clock in seconds.
    """
    settings = configuration("data=lidc_slices", f"data.root={archive.resolve()}", "trainer.max_epochs=2")
    short = {"limit_train_batches": share, "limit_val_batches": share}
    data = build_data(settings)
    method = build_method(settings, ImageFormat.of(data.source))
    epochs = EpochClock(clock)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            {**settings["trainer"], "accelerator": "cpu", "devices": 1, **short},
            logger=False,
            # the last callback ends an epoch last
            callbacks=[ValidationMetrics(CaseTable(method.structures, VALIDATION_METRICS)), epochs],
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(method, datamodule=data)
    counts = {split: len(data.records(split)) for split in ("train", "val")}
    used = f"{100 * share:g} % of {counts['train']} training and {counts['val']} validation slices"
    return f"{used}: {100 * epochs.validations[-1] / epochs.epochs[-1]:.1f} % of an epoch is validation"


def predictions(pictures: int, size: int, rounds: int, clock: Clock) -> str:
    """Return the table of predictions into files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = ["data.source.n_cases=24", f"data.source.size={size}", "trainer.max_epochs=1", "test=false"]
        silent = ["figures=false", "bootstrap_resamples=10", "logger.mode=disabled", "hydra.run.dir=run"]
        run_command("train", ["data=synthetic", *small, *silent], folder)
        checkpoint = folder / "run" / "checkpoints" / "best.ckpt"
        write_pictures(folder / "pictures", pictures, size)
        model = Model(checkpoint, "cpu")
        images = [model.read(case).image[None] for case in find_images(folder / "pictures", 3, folder / "none").cases]

        def files(overlay: str) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as output:
                given = {"ckpt": str(checkpoint), "input": str(folder / "pictures"), "output": output, "device": "cpu"}
                asked = {"sensitivity": None, "overwrite": False, "inference": None, "mask": None, "overlay": overlay}
                predict({**given, **asked, "members": False}, Path(output))

        calls: dict[str, Callable[[], object]] = {"network alone": partial(one_by_one, model.method, images)}
        calls |= {f"predict overlay={overlay}": partial(files, overlay) for overlay in ("none", "flagged", "all")}
        seconds = side_by_side(calls, rounds, clock=clock)
    return table(
        ("", "of the network alone (quartiles)"),
        [(name, ratio(seconds[name], seconds["network alone"])) for name in calls],
    )


@torch.inference_mode()
def one_by_one(method: SegmentationMethod, images: list[Tensor]) -> None:
    """Predict every image."""
    for image in images:
        method.predict(image)


def write_pictures(folder: Path, count: int, size: int) -> None:
    """Write pictures like those that the model was trained on."""
    folder.mkdir()
    data = build_data(configuration("data=synthetic", "data.source.n_cases=24", f"data.source.size={size}"))
    known = [data.sample("train", position).image for position in range(len(data.records("train")))]
    for number in range(count):
        image = known[number % len(known)].roll(number // len(known), dims=2)
        values = (image - image.min()) / (image.max() - image.min())
        Image.fromarray(np.asarray((255 * values).byte().permute(1, 2, 0))).save(folder / f"{number:03}.png")


def main() -> None:
    """Print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--slices", type=Path, help="folder or ZIP archive of data=lidc_slices, for the validation")
    arguments.add_argument("--share", type=float, default=1.0, help="share of the slices to train and validate on")
    arguments.add_argument("--batches", type=int, default=4, help="batches of an evaluation")
    arguments.add_argument("--pictures", type=int, default=300, help="pictures to predict")
    arguments.add_argument("--rounds", type=int, default=5, help="rounds of each part")
    arguments.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to measure")
    arguments.add_argument(
        "--cpu-time", action="store_true", help="time on the CPU, for a machine that does other work"
    )
    given = arguments.parse_args()
    keep_freed_memory()
    quiet_libraries()
    warnings.simplefilter("ignore")
    clock = time.process_time if given.cpu_time else time.perf_counter
    size, edge = (32, 32) if given.quick else (256, 128)
    batches, pictures, rounds = (1, 6, 1) if given.quick else (given.batches, given.pictures, given.rounds)
    print(f"{machine()}, {'time on the CPU' if given.cpu_time else 'elapsed time'}")
    if "evaluations" in given.only:
        print(f"\n{batches} batches of {BATCH} images of {size}x{size}, {RATERS} raters, {rounds} rounds\n")
        print(evaluations(size, batches, rounds, clock))
    if "validation" in given.only and given.slices is not None:
        print(f"\n{validation_share(given.slices, given.share, clock)}")
    if "predictions" in given.only:
        print(f"\n{pictures} pictures of 3 x {edge}x{edge}, two structures, {rounds} rounds\n")
        print(predictions(pictures, edge, rounds, clock))


if __name__ == "__main__":
    main()
