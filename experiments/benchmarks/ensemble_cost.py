"""Speed-up of training, or predicting with, the members of a deep ensemble at the same time.

    python experiments/benchmarks/ensemble_cost.py

The members run one after the other on all cores, in two processes with half of the cores each, and in one process as a
single vectorised network (`torch.func`). Two processes can at best halve the time of one thread, so the ratio of the
times with one and two threads limits their gain; the times of the operators explain it. The script first checks that
the vectorised training does the same work: in float64 it ends with the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self, cast

import torch
from common import CLIP, image_format, machine, method_of, parser, random_batch, ratio, table, training_step
from torch import Tensor, multiprocessing, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.profiler import ProfilerActivity, profile

from edue_lightning.data import RaterBatch
from edue_lightning.evaluation.cost import side_by_side, wait_for
from edue_lightning.methods import SegmentationMethod
from edue_lightning.methods.base import NetworkMethod
from edue_lightning.methods.targets import member_target
from edue_lightning.runtime.startup import keep_freed_memory
from edue_lightning.text import counted

PROCESSES = 2
RATERS = 4
OPERATORS = 8
USUAL, ONE_THREAD = "one after the other", "one after the other, 1 thread"
# tolerance for all weights after a few steps in float64; the two orders of summation differ in the last digits only
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Setting:
    """Settings of the trainings, and number of repetitions.

    Attributes:
        members: number of members of the ensemble.
        cases: number of images in a batch.
        size: size of an image.
        steps: number of steps of each member in a timed call.
        rounds: number of rounds.
        device: device of the trainings.
        precision: precision of the forward pass under autocast; None for float32.
    """

    members: int
    cases: int
    size: tuple[int, ...]
    steps: int
    rounds: int
    device: str = "cpu"
    precision: torch.dtype | None = None


SETTINGS = (Setting(4, 16, (48, 48), steps=5, rounds=5), Setting(4, 8, (256, 256), steps=1, rounds=3))
QUICK = (Setting(2, 2, (32, 32), steps=1, rounds=2),)


class Ensemble:
    """Members, each with its own weights and batch, the same in every process.

    Args:
        setting: see `Setting`.
    """

    def __init__(self, setting: Setting) -> None:
        images = image_format(len(setting.size))
        method = method_of(images, "method=deep_ensemble", f"method.members={setting.members}").to(setting.device)
        self.members: Sequence[SegmentationMethod] = method.trainees()
        self.batches = [
            random_batch(images, setting.cases, setting.size, RATERS, seed).to(setting.device)
            for seed in range(setting.members)
        ]
        self.setting = setting

    @property
    def networks(self) -> list[nn.Module]:
        """The members' networks."""
        return [cast(NetworkMethod, member).network for member in self.members]

    def training(self, positions: Sequence[int], threads: int | None = None) -> Callable[[], None]:
        """Return a function that trains some members one after the other on a number of threads."""
        steps = [training_step(self.members[i], self.batches[i], self.setting.precision) for i in positions]

        def train() -> None:
            if threads is not None:
                torch.set_num_threads(threads)
            for step in steps:
                for _ in range(self.setting.steps):
                    step()

        return train

    def vectorised_training(self, threads: int | None = None) -> Callable[[], None]:
        """Return a function that trains all members as one network whose weights have a leading axis of members."""
        step = Vectorised(self.networks).training_step(self)

        def train() -> None:
            if threads is not None:
                torch.set_num_threads(threads)
            for _ in range(self.setting.steps):
                step()

        return train


class Vectorised:
    """Networks of the same architecture as a single network, whose weights have a leading axis of members.

    Args:
        networks: are left as they are.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        parameters, self.buffers = stack_module_state(list(networks))
        self.parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        self._form = copy.deepcopy(networks[0]).to("meta")

    def __call__(self, images: Tensor, shared: bool = False) -> Tensor:
        """Return the logits of every member, `[members, B, 1, K, *S]`, for its own images or the `shared` ones."""

        def call(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], image: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._form, (dict(parameters), dict(buffers)), (image,))
            return logits

        result: Tensor = vmap(call, in_dims=(0, 0, None if shared else 0))(self.parameters, self.buffers, images)
        return result

    def training_step(self, ensemble: Ensemble) -> Callable[[], None]:
        """Return a function that takes one step of every member of an ensemble, each on its own batch."""
        settings = ensemble.members[0].optimizer_settings
        optimiser = torch.optim.AdamW(
            self.parameters.values(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        images = torch.stack([batch.image for batch in ensemble.batches])
        target = torch.cat([member_target(batch, "majority") for batch in ensemble.batches], dim=1)
        loss_of = cast(NetworkMethod, ensemble.members[0]).loss
        precision = ensemble.setting.precision

        def step() -> None:
            optimiser.zero_grad()
            with torch.autocast(images.device.type, precision, enabled=precision is not None):
                loss = loss_of(self(images)[:, :, 0].transpose(0, 1), target).mean(dim=0).sum()
            loss.backward()
            self._clip()
            optimiser.step()

        return step

    def _clip(self) -> None:
        """Clip each member's gradient by its own norm."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = sum(gradient.flatten(1).square().sum(dim=1) for gradient in gradients) ** 0.5
        factor = (CLIP / (cast(Tensor, norm) + 1e-6)).clamp_max(1)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.ndim - 1)))


class Processes:
    """Workers that each train a share of the members, and wait between calls."""

    def __init__(self, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._workers = []
        for number in range(PROCESSES):
            own, other = context.Pipe()
            positions = list(range(number, setting.members, PROCESSES))
            worker = context.Process(target=_work, args=(other, setting, positions), daemon=True)
            worker.start()
            self._ends.append(own)
            self._workers.append(worker)

    def __call__(self) -> None:
        """Train all members, and return when the last worker is done."""
        for end in self._ends:
            end.send(True)
        for end in self._ends:
            end.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end, worker in zip(self._ends, self._workers, strict=True):
            end.send(False)
            worker.join()


def _work(end: Connection, setting: Setting, positions: Sequence[int]) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    train = Ensemble(setting).training(positions)
    while end.recv():
        train()
        wait_for(torch.device(setting.device))
        end.send(True)


def _double(batch: RaterBatch) -> RaterBatch:
    return replace(batch, image=batch.image.double())


def _weights(ensemble: Ensemble) -> Tensor:
    """Return a copy of all members' weights in the order of `Vectorised.parameters`, flat."""
    parameters, _ = stack_module_state(ensemble.networks)
    return torch.cat([value.detach().flatten() for value in parameters.values()])


def check_equal_work(setting: Setting) -> str:
    """Return the difference between the weights of a vectorised and of a usual training in float64.

    Raises:
        SystemExit: if it is more than rounding.
    """
    ensemble = Ensemble(replace(setting, steps=3))
    for member in ensemble.members:
        member.double()
    ensemble.batches = [_double(batch) for batch in ensemble.batches]
    first = _weights(ensemble)
    vectorised = Vectorised(ensemble.networks)
    step = vectorised.training_step(ensemble)
    ensemble.training(range(setting.members))()
    for _ in range(ensemble.setting.steps):
        step()
    usual = _weights(ensemble)
    at_once = torch.cat([value.detach().flatten() for value in vectorised.parameters.values()])
    moved, apart = (float((usual - other).abs().max()) for other in (first, at_once))
    if not apart < TOLERANCE * moved:
        raise SystemExit(
            f"the vectorised training differs from the usual one: weights {apart:.1e} apart after moving {moved:.1e}"
        )
    return (
        f"{ensemble.setting.steps} steps in float64 move weights by up to {moved:.1e} and leave them {apart:.1e} apart"
    )


def training_table(setting: Setting) -> str:
    """Return a table with the speed-up of each way to train; on the CPU also the upper limit for two processes."""
    cores = torch.get_num_threads()
    everyone = range(setting.members)
    on_cpu = setting.device == "cpu"
    with Processes(setting) as processes:
        calls: dict[str, Callable[[], object]] = {
            USUAL: Ensemble(setting).training(everyone, cores),
            f"{PROCESSES} processes, 1 thread each": processes,
            "vectorised": Ensemble(setting).vectorised_training(cores),
        }
        if on_cpu:
            calls[ONE_THREAD] = Ensemble(setting).training(everyone, 1)
        seconds = side_by_side(calls, setting.rounds, torch.device(setting.device))
    torch.set_num_threads(cores)
    rows = [(name, ratio(seconds[USUAL], seconds[name])) for name in calls]
    if on_cpu:
        # time of processes without any interference
        best = [alone / PROCESSES for alone in seconds[ONE_THREAD]]
        rows.append((f"{PROCESSES} processes at best", ratio(seconds[USUAL], best)))
    return table(("training", "speed-up (quartiles)"), rows)


def prediction_table(setting: Setting) -> str:
    """Return a table with the speed-up of each way to predict with all members."""
    cores = torch.get_num_threads()
    ensemble = Ensemble(setting)
    image = ensemble.batches[0].image
    networks = [network.eval() for network in ensemble.networks]
    vectorised = Vectorised(networks)
    autocast = partial(torch.autocast, image.device.type, setting.precision, enabled=setting.precision is not None)

    # the number of threads, inference mode and autocast belong to the thread that sets them
    @torch.inference_mode()
    def predict(threads: int, network: Callable[[Tensor], Tensor]) -> None:
        torch.set_num_threads(threads)
        with autocast():
            network(image)

    with ThreadPoolExecutor(PROCESSES) as pool:
        calls: dict[str, Callable[[], object]] = {
            USUAL: lambda: [predict(cores, network) for network in networks],
            "vectorised": lambda: predict(cores, partial(vectorised, shared=True)),
        }
        if setting.device == "cpu":
            calls[f"{PROCESSES} at a time, 1 thread each"] = lambda: list(pool.map(partial(predict, 1), networks))
        seconds = side_by_side(calls, setting.rounds, image.device)
    torch.set_num_threads(cores)
    rows = [(name, ratio(seconds[USUAL], seconds[name])) for name in calls]
    return table(("prediction", "speed-up (quartiles)"), rows)


def operator_table(setting: Setting) -> str:
    """Return a table of the operators of a training step: share of the time, and speed-up with a second thread."""
    cores = torch.get_num_threads()
    train = Ensemble(setting).training([0])
    found: dict[int, dict[str, float]] = {}
    for threads in (1, cores):
        torch.set_num_threads(threads)
        train()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            train()
        found[threads] = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    alone, together = found[1], found[cores]
    whole = sum(alone.values())
    largest = sorted(alone, key=lambda name: -alone[name])[:OPERATORS]
    rows = [
        (name, f"{100 * alone[name] / whole:.0f} %", f"{alone[name] / max(together.get(name, 0), 1e-9):.2f}")
        for name in largest
    ]
    rest = [sum(times.values()) - sum(times.get(name, 0) for name in largest) for times in (alone, together)]
    rows.append(("all others", f"{100 * rest[0] / whole:.0f} %", f"{rest[0] / rest[1]:.2f}"))
    rows.append(("together", "100 %", f"{whole / sum(together.values()):.2f}"))
    return table(("operator", "share of one thread's time", f"speed-up, {cores} threads"), rows)


def main() -> None:
    """Print the tables of each setting."""
    quick = parser(__doc__).parse_args().quick
    keep_freed_memory()
    print(machine())
    for setting in QUICK if quick else SETTINGS:
        size = "x".join(map(str, setting.size))
        print(
            f"\n{setting.members} members, batches of {setting.cases} images of {size}, "
            f"{counted(setting.steps, 'step')} per member, {setting.rounds} rounds\n"
        )
        for part in (check_equal_work, training_table, prediction_table, operator_table):
            print(part(setting), end="\n\n")


if __name__ == "__main__":
    main()
