"""Cost of a framework: training and evaluation of the plain U-Net with ours, bare PyTorch and torch-uncertainty.

    python experiments/benchmarks/framework_cost.py

All train the same network, from the same weights, on the same batches of the same loader, with cross-entropy, AdamW,
the one-cycle schedule and clipped gradients, in turns in one process. The two logits are two structures for us and two
classes for torch-uncertainty, whose target is the raters' majority of the first structure, made by the loader.
torch-uncertainty is skipped if it is not installed; `make bench` installs it in a separate environment.
"""

from __future__ import annotations

# first, see there
import torchvision_operators  # noqa: F401

# isort: split
import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from common import CLIP, configuration, machine, parser, ratio, table
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from edue_lightning.config.build import ImageFormat, build_data, build_method
from edue_lightning.data import RaterBatch, RaterDataModule
from edue_lightning.data.loading import CaseSampler, KeyedSample, collate
from edue_lightning.evaluation.cost import side_by_side
from edue_lightning.methods import Measuring, NetworkMethod
from edue_lightning.methods.targets import member_target
from edue_lightning.metrics import VALIDATION_METRICS, CaseTable
from edue_lightning.runs.trainer import build_test_trainer, build_trainer
from edue_lightning.runtime.startup import keep_freed_memory, quiet_libraries
from edue_lightning.training.progress import EpochLines
from edue_lightning.training.validation import ValidationMetrics

OURS, BARE, OTHER = "ours", "bare PyTorch", "torch-uncertainty"
# the bare loop does not make a training reproducible to the last digit
FREE = "ours, trainer.deterministic=false"
SILENT: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False}


@dataclass(frozen=True)
class Setting:
    """Data and duration of the trainings.

    Attributes:
        size: edge of an image.
        batch: images in a step.
        steps: number of steps of an epoch.
        epochs: number of epochs of a training.
        rounds: number of times each training is timed.
        workers: number of processes that load the data.
    """

    size: int
    batch: int
    steps: int
    epochs: int
    rounds: int
    workers: int = 0


SETTINGS = (Setting(64, 16, steps=15, epochs=2, rounds=7), Setting(256, 8, steps=5, epochs=1, rounds=5))
QUICK = (Setting(32, 4, steps=4, epochs=1, rounds=2),)


class Work:
    """Data and configured method, which all frameworks share.

    Args:
        setting: see `Setting`.
        device: to train on.
        precision: as Lightning names it.
    """

    def __init__(self, setting: Setting, device: torch.device, precision: str = "32-true") -> None:
        self.configuration = configuration(
            *("method=single", "loss.dice=0", "optimizer.schedule=one_cycle", "data=synthetic"),
            # exactly one sixth of the cases each
            *("data.fractions.val=0.1666667", "data.fractions.test=0.1666667", "data.fractions.draw=permutation"),
            f"data.source.n_cases={3 * setting.batch * setting.steps // 2}",
            f"data.source.size={setting.size}",
            f"data.batch_size={setting.batch}",
            f"data.num_workers={setting.workers}",
            f"trainer.max_epochs={setting.epochs}",
            f"trainer.precision={precision}",
        )
        self.device = device
        self.epochs = setting.epochs
        self.data: RaterDataModule = build_data(self.configuration)
        self.steps = len(self.data.train_dataloader())
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16-mixed")

    def method(self) -> NetworkMethod:
        """Return the plain U-Net with its first weights."""
        torch.manual_seed(0)
        method = build_method(self.configuration, ImageFormat.of(self.data.source))
        return cast(NetworkMethod, method.to(self.device))

    def trainer_node(self) -> dict[str, Any]:
        """Return the configuration of the trainer, on this device."""
        return {**self.configuration["trainer"], "accelerator": self.device.type, "devices": 1}


@dataclass
class StepClock:
    """Time between the starts of forward passes of a network, which every way of training has.

    Attributes:
        seconds: duration of a step, one number per training: the mean within its last epoch.
    """

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def timing(self, network: nn.Module, steps: int) -> Iterator[None]:
        """Time the steps of a training that ends with an epoch of `steps` forward passes."""
        marks: list[float] = []
        hook = network.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
        try:
            yield
        finally:
            hook.remove()
        self.seconds.append((marks[-1] - marks[-steps]) / (steps - 1))


def train_ours(work: Work, clock: StepClock, **options: Any) -> NetworkMethod:
    """Train as `edue_lightning.train` does, with options of the trainer, without validation and checkpoints."""
    method = work.method()
    with tempfile.TemporaryDirectory() as folder, clock.timing(method.network, work.steps):
        node = {**work.trainer_node(), **options}
        trainer = build_trainer(node, logger=CSVLogger(folder), callbacks=[EpochLines()], **SILENT)
        trainer.fit(method, train_dataloaders=work.data.train_dataloader())
    return method


def train_bare(work: Work, clock: StepClock) -> None:
    """Train with a loop in PyTorch."""
    method = work.method()
    network, loss_of = method.network, method.loss
    settings = method.optimizer_settings
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    scheduler = OneCycleLR(optimiser, settings.learning_rate, total_steps=work.epochs * work.steps, pct_start=0.1)
    loader = work.data.train_dataloader()
    network.train()
    with clock.timing(network, work.steps):
        for epoch in range(work.epochs):
            cast(CaseSampler, loader.sampler).set_epoch(epoch)
            total = torch.zeros((), device=work.device)
            for batch in loader:
                batch = batch.to(work.device)
                optimiser.zero_grad()
                with work.autocast():
                    loss = loss_of(network(batch.image), member_target(batch, "majority")).mean()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), CLIP)
                optimiser.step()
                scheduler.step()
                total += loss.detach()
            float(total)


def train_other(work: Work, clock: StepClock) -> None:
    """Train with torch-uncertainty."""
    method = work.method()
    routine = other_routine(work, method)
    with tempfile.TemporaryDirectory() as folder, clock.timing(method.network, work.steps):
        other_trainer(work, folder).fit(routine, pairs(work.data.train_dataloader()))


def evaluate_bare(work: Work, method: NetworkMethod) -> None:
    """Predict every test case without computing metrics."""
    method.to(work.device).eval()
    with torch.inference_mode(), work.autocast():
        for batch in work.data.test_dataloader():
            torch.sigmoid(method.network(batch.to(work.device).image)).mean(dim=1)


def evaluate_ours(work: Work, method: NetworkMethod, all_metrics: bool) -> None:
    """Predict every test case, and compute all metrics or those of the validation."""
    if all_metrics:
        table = CaseTable(method.structures)
        trainer = build_test_trainer(work.trainer_node())
        trainer.test(Measuring(method, table), work.data.test_dataloader(), verbose=False)
        table.summary()
    else:
        metrics = ValidationMetrics(CaseTable(method.structures, VALIDATION_METRICS))
        trainer = build_test_trainer(work.trainer_node(), callbacks=[metrics])
        trainer.validate(method, work.data.test_dataloader(), verbose=False)


def evaluate_other(work: Work, method: NetworkMethod, share: float) -> None:
    """Predict every test case, and compute the metrics of torch-uncertainty, most of them on a share of the pixels."""
    routine = other_routine(work, method, metric_subsampling_rate=share)
    with tempfile.TemporaryDirectory() as folder:
        other_trainer(work, folder).validate(routine, pairs(work.data.test_dataloader()), verbose=False)


class OneHead(nn.Module):
    """Network that returns the logits of its only head as those of classes, `[B, K, *S]`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return `[B, K, *S]`."""
        logits: Tensor = self.network(image)[:, 0]
        return logits


def pairs(loader: DataLoader[KeyedSample]) -> DataLoader[KeyedSample]:
    """Return a loader of the same cases in the same order, as image and class of each pixel."""
    return DataLoader(loader.dataset, loader.batch_size, sampler=loader.sampler, collate_fn=_image_and_class)


def _image_and_class(keyed: Sequence[KeyedSample]) -> tuple[Tensor, Tensor]:
    batch: RaterBatch = collate(keyed)
    return batch.image, member_target(batch, "majority")[:, 0, 0].long()


def other_routine(work: Work, method: NetworkMethod, **options: Any) -> Any:
    """Return torch-uncertainty's routine for the method's network."""
    settings = method.optimizer_settings
    network = OneHead(method.network)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    scheduler = OneCycleLR(optimiser, settings.learning_rate, total_steps=work.epochs * work.steps, pct_start=0.1)
    recipe = {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    routines = importlib.import_module("torch_uncertainty.routines")
    return routines.SegmentationRoutine(network, 2, nn.CrossEntropyLoss(), optim_recipe=recipe, **options)


def other_trainer(work: Work, folder: str) -> Any:
    """Return torch-uncertainty's trainer, which logs to a folder."""
    logger = importlib.import_module("lightning.pytorch.loggers").CSVLogger(folder)
    settings = {key: value for key, value in work.trainer_node().items() if not key.startswith("_")}
    trainer = importlib.import_module("torch_uncertainty").TUTrainer
    return trainer(**settings, logger=logger, enable_model_summary=False, **SILENT)


def sides(other: bool) -> dict[str, Callable[[Work, StepClock], object]]:
    """Return the ways to train; the first one is the reference."""
    own: dict[str, Callable[[Work, StepClock], object]] = {BARE: train_bare, OURS: train_ours}
    own[FREE] = partial(train_ours, deterministic=False)
    return {**own, OTHER: train_other} if other else own


def without_lasting_marks(call: Callable[[], object]) -> None:
    """Call a function and restore the global settings."""
    try:
        call()
    finally:
        torch.use_deterministic_algorithms(False)


def training_table(work: Work, rounds: int, other: bool) -> str:
    """Return a table with the time of a step and of a whole training, relative to the two references."""
    clocks = {name: StepClock() for name in sides(other)}
    calls = {
        name: partial(without_lasting_marks, partial(train, work, clocks[name])) for name, train in sides(other).items()
    }
    trainings = side_by_side(calls, rounds, work.device)
    # the first values belong to the warm-up
    steps = {name: clock.seconds[-rounds:] for name, clock in clocks.items()}
    references = [name for name in calls if name in (BARE, OTHER)]
    header = ["", *(f"{what}, of {name}'s" for name in references for what in ("step", "whole training"))]
    rows = [
        [
            name,
            *(ratio(seconds[name], seconds[reference]) for reference in references for seconds in (steps, trainings)),
        ]
        for name in calls
    ]
    return table(header, rows)


def evaluation_table(work: Work, rounds: int, other: bool) -> str:
    """Return a table with the time of an evaluation of the test cases."""
    method = train_ours(work, StepClock())
    calls = {
        "inference alone": partial(evaluate_bare, work, method),
        f"{OURS}, metrics of a validation": partial(evaluate_ours, work, method, False),
        f"{OURS}, all metrics": partial(evaluate_ours, work, method, True),
    }
    if other:
        for share in (0.01, 1):
            name = f"{OTHER}, validation on {100 * share:g} % of the pixels"
            calls[name] = partial(evaluate_other, work, method, share)
    seconds = side_by_side({name: partial(without_lasting_marks, call) for name, call in calls.items()}, rounds)
    first = next(iter(calls))
    return table(("", f"of {first}"), [(name, ratio(seconds[name], seconds[first])) for name in calls])


def main() -> None:
    """Print the tables of each setting."""
    quick = parser(__doc__).parse_args().quick
    keep_freed_memory()
    quiet_libraries()
    other = importlib.util.find_spec("torch_uncertainty") is not None
    if other:
        # sets the level of its messages when it is imported
        importlib.import_module("torch_uncertainty")
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    print(machine() if other else f"{machine()}; {OTHER} is not installed")
    for setting in QUICK if quick else SETTINGS:
        work = Work(setting, torch.device("cpu"))
        print(
            f"\nbatches of {setting.batch} images of 3 x {setting.size}x{setting.size}, trainings of "
            f"{setting.epochs} x {work.steps} steps, {setting.rounds} rounds\n"
        )
        print(training_table(work, setting.rounds, other))
        print(f"\nevaluation of {len(work.data.records('test'))} cases\n")
        print(evaluation_table(work, setting.rounds, other))


if __name__ == "__main__":
    main()
