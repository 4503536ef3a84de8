"""Cost of disagreement: a prediction and a training step of each method, relative to the plain U-Net.

    python experiments/benchmarks/step_cost.py

Each round times every method once (`edue_lightning.evaluation.cost.side_by_side`), so that noise of the machine affects
all methods. A ratio is the median over rounds of the two times within a round. A step of a deep ensemble is one step of
each member.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from common import image_format, machine, method_of, parser, random_batch, ratio, table, training_step

from edue_lightning.evaluation.cost import side_by_side
from edue_lightning.methods import parameter_count
from edue_lightning.runtime.startup import keep_freed_memory

REFERENCE = "single"
METHODS = (REFERENCE, "edue", "edue_moments", "layer_ensemble", "deep_ensemble")
# the same model twice shows the noise of the machine
AGAIN = f"{REFERENCE}, again"
RATERS = 4


@dataclass(frozen=True)
class Setting:
    """Images of a batch, and number of repetitions of each method."""

    cases: int
    channels: int
    size: tuple[int, ...]
    predictions: int
    steps: int


SETTINGS = (Setting(8, 1, (256, 256), predictions=7, steps=4), Setting(1, 2, (48, 48, 48), predictions=7, steps=4))
QUICK = (Setting(2, 1, (64, 64), predictions=3, steps=3), Setting(1, 2, (16, 16, 16), predictions=3, steps=3))


def measure(setting: Setting) -> str:
    """Return the table of one setting."""
    images = image_format(len(setting.size), setting.channels)
    batch = random_batch(images, setting.cases, setting.size, RATERS)
    methods = {name: method_of(images, f"method={name}") for name in METHODS}
    methods[AGAIN] = methods[REFERENCE]
    for method in methods.values():
        method.eval()
    with torch.inference_mode():
        predictions = side_by_side(
            {name: partial(method, batch.image) for name, method in methods.items()}, setting.predictions
        )
    steps = side_by_side({name: training_step(method, batch) for name, method in methods.items()}, setting.steps)
    plain = parameter_count(methods[REFERENCE])
    rows = [
        (
            name,
            f"{parameter_count(method) / plain:.3f}",
            ratio(predictions[name], predictions[REFERENCE]),
            ratio(steps[name], steps[REFERENCE]),
        )
        for name, method in methods.items()
    ]
    return table(("method", "parameters, ratio", "prediction, ratio (quartiles)", "training step, ratio"), rows)


def main() -> None:
    """Print a table for images and one for volumes."""
    quick = parser(__doc__).parse_args().quick
    keep_freed_memory()
    print(machine())
    for setting in QUICK if quick else SETTINGS:
        size = "x".join(map(str, setting.size))
        print(
            f"\n{setting.cases} x {setting.channels} x {size}, {RATERS} raters, "
            f"{setting.predictions} rounds of predictions and {setting.steps} of training steps\n"
        )
        print(measure(setting))


if __name__ == "__main__":
    main()
