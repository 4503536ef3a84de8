"""Share of a training's steps spent waiting for data: files in 2D and 3D, and slices read straight from an archive.

    python experiments/benchmarks/data_wait.py --slices lidc_slices.zip

The first table is of whole trainings. The second times single batches of `data=lidc_slices` in turn from the archive,
from prepared cases of the same slices (`convert`, then `data=manifest`), and from memory, each beside one step of the
same training, so that noise of the machine affects all alike. Batches are loaded by the training process.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from common import image_format, machine, method_of, parser, run_command, table, training_step

from edue_lightning.data import Augmentation, CaseSource, LidcSlices, ManifestSource, RaterBatch, RaterDataModule
from edue_lightning.evaluation.cost import wait_for
from edue_lightning.runtime.startup import keep_freed_memory

SETTINGS = {
    "2D, PNG and TIFF, 256x256, 6 raters, batches of 8": (
        ["data=synthetic", "data.source.n_cases=64", "data.source.size=256"],
        ["data.batch_size=8"],
    ),
    "3D, NIfTI, 96x96x96, 6 raters, batches of 2 patches of 64x64x64": (
        ["data=synthetic_petct", "data.source.n_cases=16", "data.source.size=96"],
        ["data.batch_size=2", "data.patch.size=[64,64,64]", "data.patch.per_case=2"],
    ),
}
EPOCHS = 3
BATCH = 16
ROUNDS = 30


def trainings() -> str:
    """Return the table of whole trainings."""
    rows = []
    for name, (data, training) in SETTINGS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            run_command("convert", [*data, "output=files"], folder)
            files = ["data=manifest", "data.root=files", "data.source.standardise=false"]
            short = [f"trainer.max_epochs={EPOCHS}", "bootstrap_resamples=10", "logger.mode=disabled"]
            run_command("train", [*files, *training, *short, "hydra.run.dir=run"], folder)
            log = (folder / "run" / "train.log").read_text()
        rows.append((name, ", ".join(re.findall(r"([\d.]+) % of the training steps waiting for data", log))))
    return table(["data", "% of the training steps spent waiting, epoch by epoch"], rows)


def slices(archive: Path, device: str, rounds: int) -> str:
    """Return the table of one archive of slices.

    Args:
        archive: folder or ZIP archive of `data=lidc_slices`.
        device: device of the training.
        rounds: number of batches from each place.
    """
    chosen = {"readers": [4], "readers_of": "slice", "slices": "largest"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        overrides = [f"data.source.{name}={str(value).replace(' ', '')}" for name, value in chosen.items()]
        run_command(
            "convert", ["data=lidc_slices", f"data.root={archive.resolve()}", *overrides, "output=files"], folder
        )
        cache = str(folder / "outputs/cache")
        sources: dict[str, tuple[CaseSource, int]] = {
            "prepared cases": (ManifestSource(str(folder / "files"), standardise=False, cache=cache), 0),
            "the archive": (LidcSlices(str(archive), cache=cache, **chosen), 0),  # type: ignore[arg-type]
            "memory (data.cache_cases)": (LidcSlices(str(archive), cache=cache, **chosen), 5000),  # type: ignore[arg-type]
        }
        batches = {name: _batches(source, cached) for name, (source, cached) in sources.items()}
        waits: dict[str, list[float]] = {name: [] for name in batches}
        steps = []
        method = method_of(image_format(2, 1, 1), "method=edue").to(device)
        for round_ in range(rounds + 3):
            for name, loader in batches.items():
                start = time.perf_counter()
                batch = next(loader)
                waits[name].append(time.perf_counter() - start)
            moved = batch.to(device)
            step = training_step(method, moved)
            wait_for(torch.device(device))
            start = time.perf_counter()
            step()
            wait_for(torch.device(device))
            steps.append(time.perf_counter() - start)
            if round_ == 2:
                # the first steps choose algorithms and fill caches
                steps.clear()
                for times in waits.values():
                    times.clear()
    step_time = float(np.median(steps))
    prepared = float(np.median(waits["prepared cases"])) + step_time
    rows = []
    for name, times in waits.items():
        wait = float(np.median(times))
        share, cost = 100 * wait / (wait + step_time), 100 * ((wait + step_time) / prepared - 1)
        rows.append((name, f"{1000 * wait:.1f}", f"{1000 * step_time:.1f}", f"{share:.1f}", f"{cost:+.1f}"))
    header = ["cases from", "batch, ms", "step, ms", "% waiting", "% more of an epoch than from prepared cases"]
    return table(header, rows)


def _batches(source: CaseSource, cached: int) -> Iterator[RaterBatch]:
    """Return training batches without end."""
    data = RaterDataModule(
        "slices", source, augmentation=Augmentation(flip=0.5, rotate90=0.5), batch_size=BATCH, cache_cases=cached
    )
    return (batch for loader in cycle([data.train_dataloader()]) for batch in loader)


def main() -> None:
    """Print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--slices", type=Path, help="folder or ZIP archive of data=lidc_slices, for the second table"
    )
    arguments.add_argument("--only-slices", action="store_true", help="leave out the first table")
    arguments.add_argument("--device", default="cpu", help="device of the second table, such as cuda")
    given = arguments.parse_args()
    # as a training does
    keep_freed_memory()
    if not given.only_slices:
        print(f"{EPOCHS} epochs of method=edue, {machine()}\n\n{trainings()}\n")
    if given.slices is not None:
        where = torch.cuda.get_device_name() if given.device.startswith("cuda") else machine()
        print(f"data=lidc_slices, 128x128, 4 raters, batches of {BATCH}, method=edue, {where}\n")
        print(slices(given.slices, given.device, 3 if given.quick else ROUNDS))


if __name__ == "__main__":
    main()
