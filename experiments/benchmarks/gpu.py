"""Cost of methods and of the framework on a GPU, at the sizes of real trainings, in one command.

    make bench-gpu                                                  # writes results/gpu.md and traces
    python experiments/benchmarks/gpu.py --quick --device cpu       # a quick test of the script, on any machine

In bf16 with autocast by default: prediction and training step of every method relative to the plain U-Net, with
torch.compile and with `channels_last`; the members of a deep ensemble in turn, in processes and vectorised; an epoch
with the trainer and with a bare loop; peak memory; the most expensive kernels of a training step, and how often
the host waits for the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ensemble_cost
import framework_cost
import torch
from common import RESULTS, image_format, machine, method_of, parser, random_batch, ratio, table, training_step
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from edue_lightning.data import RaterBatch
from edue_lightning.evaluation.cost import side_by_side
from edue_lightning.methods import SegmentationMethod
from edue_lightning.runtime.startup import keep_freed_memory, quiet_libraries

REFERENCE = "single"
METHODS = (REFERENCE, "edue", "edue_moments", "layer_ensemble", "deep_ensemble")
LAYOUT_METHODS = (REFERENCE, "edue")
RATERS = 4
KERNELS = 15
# operations in which the host reads a value from the device, or waits for it
WAITS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize")


@dataclass(frozen=True)
class Setting:
    """Images of a batch, and number of repetitions of each call."""

    cases: int
    channels: int
    size: tuple[int, ...]
    rounds: int


SETTINGS = (Setting(32, 1, (256, 256), rounds=30), Setting(2, 2, (96, 96, 96), rounds=15))
QUICK = (Setting(2, 1, (32, 32), rounds=2), Setting(1, 2, (16, 16, 16), rounds=2))
EPOCH = framework_cost.Setting(256, 32, steps=30, epochs=2, rounds=5, workers=8)
QUICK_EPOCH = framework_cost.Setting(32, 4, steps=3, epochs=1, rounds=1)


class Bench:
    """Measurements on one device in one precision.

    Args:
        device: device of the measurements.
        precision: precision of forward pass and loss under autocast; None for float32.
        compiled: whether to measure compiled networks too, which takes minutes.
    """

    def __init__(self, device: torch.device, precision: torch.dtype | None, compiled: bool) -> None:
        self.device = device
        self.precision = precision
        self.compiled = compiled

    def batch(self, setting: Setting) -> RaterBatch:
        """Return a batch on the device."""
        images = image_format(len(setting.size), setting.channels)
        return random_batch(images, setting.cases, setting.size, RATERS).to(self.device)

    def method(self, setting: Setting, *overrides: str) -> SegmentationMethod:
        """Return a method on the device."""
        return method_of(image_format(len(setting.size), setting.channels), *overrides).to(self.device)

    def prediction(self, method: SegmentationMethod, batch: RaterBatch) -> Callable[[], object]:
        """Return a function that predicts once."""

        @torch.inference_mode()
        def predict() -> object:
            method.eval()
            with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                return method(batch.image)

        return predict

    def step(self, method: SegmentationMethod, batch: RaterBatch) -> Callable[[], None]:
        """Return a function that takes one training step."""
        step = training_step(method, batch, self.precision)

        def train() -> None:
            method.train()
            step()

        return train

    def peak(self, call: Callable[[], object]) -> float:
        """Return the peak memory of a call in GiB; NaN on the CPU, where it is not measured."""
        if self.device.type != "cuda":
            return float("nan")
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def methods_table(self, setting: Setting) -> str:
        """Return a table that compares every method with the plain U-Net."""
        batch = self.batch(setting)
        methods = {name: self.method(setting, f"method={name}") for name in METHODS}
        predictions = {name: self.prediction(method, batch) for name, method in methods.items()}
        steps = {name: self.step(method, batch) for name, method in methods.items()}
        predicting = side_by_side(predictions, setting.rounds, self.device)
        training = side_by_side(steps, setting.rounds, self.device)
        rows = [
            (
                name,
                ratio(predicting[name], predicting[REFERENCE]),
                ratio(training[name], training[REFERENCE]),
                f"{self.peak(steps[name]):.2f}",
            )
            for name in METHODS
        ]
        return table(("method", "prediction, ratio (quartiles)", "training step, ratio", "peak of a step, GiB"), rows)

    def layouts_table(self, setting: Setting) -> str:
        """Return a table with the speed-up of the plain U-Net and of EDUE by `channels_last` and by compilation."""
        batch = self.batch(setting)
        rows = []
        for name in LAYOUT_METHODS:
            # otherwise the compiler stops compiling after several networks of one kind
            torch.compiler.reset()
            methods = {}
            for layout, override in (("as configured", "false"), ("channels_last", "true")):
                chosen = (f"method={name}", f"network.channels_last={override}")
                methods[layout] = self.method(setting, *chosen)
                if self.compiled:
                    methods[f"{layout}, compiled"] = self.method(setting, *chosen)
                    methods[f"{layout}, compiled"].compile_networks()
            predicting = side_by_side(
                {layout: self.prediction(method, batch) for layout, method in methods.items()},
                setting.rounds,
                self.device,
            )
            training = side_by_side(
                {layout: self.step(method, batch) for layout, method in methods.items()}, setting.rounds, self.device
            )
            usual = next(iter(methods))
            rows += [
                (name, layout, ratio(predicting[usual], predicting[layout]), ratio(training[usual], training[layout]))
                for layout in methods
            ]
        return table(("method", "layout", "speed-up of a prediction (quartiles)", "speed-up of a training step"), rows)

    def profile_table(self, setting: Setting, trace: Path) -> str:
        """Return a table of the most expensive operations in a training step of EDUE, and the waits of the host."""
        step = self.step(self.method(setting, "method=edue"), self.batch(setting))
        for _ in range(2):
            step()
        on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
        with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiler:
            step()
            if on_gpu:
                torch.cuda.synchronize(self.device)
        profiler.export_chrome_trace(str(trace))
        # events of the device repeat the times of the operators that caused them
        events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
        cost = {
            event.key: float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) for event in events
        }
        whole = sum(cost.values())
        rows = [
            (name, f"{100 * cost[name] / whole:.1f} %") for name in sorted(cost, key=lambda name: -cost[name])[:KERNELS]
        ]
        counts = {event.key: event.count for event in events}
        waits = ", ".join(f"{name} {counts.get(name, 0)}" for name in WAITS)
        return (
            f"{table(('operation', 'share of the step'), rows)}\n\nThe host waits, in one step: {waits}. By aten::item "
            "the optimiser reads how often it was called, which lies on the CPU; one cudaDeviceSynchronize is our own."
        )


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make the GPU the current device, if there is one."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield


def ensemble_settings(device: torch.device, precision: torch.dtype | None, quick: bool) -> ensemble_cost.Setting:
    """Return the settings for `ensemble_cost`."""
    base = ensemble_cost.QUICK[0] if quick else ensemble_cost.Setting(5, 32, (256, 256), steps=5, rounds=5)
    return replace(base, device=str(device), precision=precision)


def report(bench: Bench, quick: bool, folder: Path) -> Iterator[str]:
    """Yield the parts of the report as they are measured."""
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    precision = "float32" if bench.precision is None else str(bench.precision).removeprefix("torch.")
    yield f"# On {name}\n\n{machine()}, {precision}"
    for number, setting in enumerate(QUICK if quick else SETTINGS):
        size = "x".join(map(str, setting.size))
        yield f"## {setting.cases} x {setting.channels} x {size}, {RATERS} raters, {setting.rounds} rounds"
        yield bench.methods_table(setting)
        yield bench.layouts_table(setting)
        yield bench.profile_table(setting, folder / f"trace_{number}.json")
    ensemble = ensemble_settings(bench.device, bench.precision, quick)
    yield f"## A deep ensemble of {ensemble.members} members, batches of {ensemble.cases} images of {ensemble.size}"
    yield ensemble_cost.training_table(ensemble)
    yield ensemble_cost.prediction_table(ensemble)
    epoch = QUICK_EPOCH if quick else EPOCH
    work = framework_cost.Work(epoch, bench.device, "32-true" if bench.precision is None else "bf16-mixed")
    yield f"## An epoch by the trainer and by a bare loop, {epoch.steps} steps of {epoch.batch} images"
    yield framework_cost.training_table(work, epoch.rounds, other=False)


def main() -> None:
    """Print the report part by part, and write it to a file."""
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    arguments.add_argument("--no-compile", action="store_true", help="skip torch.compile, which takes minutes")
    arguments.add_argument("--folder", type=Path, default=RESULTS, help="for gpu.md and the traces")
    asked = arguments.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        arguments.error("there is no GPU here; --quick --device cpu shows whether the script runs")
    keep_freed_memory()
    quiet_libraries()
    warnings.simplefilter("ignore")
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    precision = torch.bfloat16 if asked.precision == "bfloat16" else None
    asked.folder.mkdir(parents=True, exist_ok=True)
    written = asked.folder / "gpu.md"
    written.unlink(missing_ok=True)
    with on_device(device):
        for part in report(Bench(device, precision, not asked.no_compile), asked.quick, asked.folder):
            print(f"{part}\n", flush=True)
            # keep the finished parts if a later one fails
            with written.open("a") as file:
                file.write(f"{part}\n\n")


if __name__ == "__main__":
    main()
