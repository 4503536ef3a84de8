"""Share of a training's steps spent waiting for data in files, for images in 2D and for patches in 3D.

python experiments/benchmarks/data_wait.py
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from common import run_command

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


def main() -> None:
    """Print a table."""
    print(f"{EPOCHS} epochs of method=edue, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| data | % of the training steps spent waiting, epoch by epoch |")
    print("|---|---|")
    for name, (data, training) in SETTINGS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            run_command("convert", [*data, "output=files"], folder)
            files = ["data=manifest", "data.root=files", "data.source.standardise=false"]
            short = [f"trainer.max_epochs={EPOCHS}", "bootstrap_resamples=10", "logger.mode=disabled"]
            run_command("train", [*files, *training, *short, "hydra.run.dir=run"], folder)
            log = (folder / "run" / "train.log").read_text()
        waits = re.findall(r"([\d.]+) % of the training steps waiting for data", log)
        print(f"| {name} | {', '.join(waits)} |")


if __name__ == "__main__":
    main()
