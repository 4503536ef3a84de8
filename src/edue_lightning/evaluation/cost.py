"""Cost of a prediction, counted and timed, relative to the plain U-Net."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edue_lightning.methods import SegmentationMethod, parameter_count

ROUNDS = 11
_WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """Size of a method, and work and time of one prediction.

    Attributes:
        parameters: number of trained parameters.
        flops: floating point operations of one prediction, two per multiply-add. As torch's `FlopCounterMode`
            counts them: convolutions and matrix products only, without normalisation, activation, interpolation or
            random numbers.
        parameter_ratio: parameters relative to the reference.
        flop_ratio: operations relative to the reference.
        latency_ratio: time of a prediction relative to the reference: median over rounds of both, each ratio of times
            within one round, see `ratios`. Seconds would depend more on the machine and its load than on the method.
        latency_ratio_low: lower quartile of the ratios of the rounds.
        latency_ratio_high: upper quartile. Quartiles far apart mean that other work disturbed the measurement.
        networks: distinct networks that run in one prediction, see `count_passes`.
        forward_passes: runs of a network in one prediction (of one window, if images are predicted by window).
    """

    parameters: int
    flops: int
    parameter_ratio: float
    flop_ratio: float
    latency_ratio: float
    latency_ratio_low: float
    latency_ratio_high: float
    networks: int
    forward_passes: int


def measure_cost(method: SegmentationMethod, reference: SegmentationMethod, image: Tensor) -> Cost:
    """Measure the cost of a method's `predict` in evaluation mode.

    Both methods are timed in turn, so that other work on the machine affects both. The mode of each is unchanged.

    Args:
        method: method of any kind.
        reference: method to compare with, a plain single U-Net of the same width, on the same device.
        image: `[B, C, *S]`, on that device.
    """
    with _evaluating(method, reference):
        passes = count_passes(method, image)
        flops, reference_flops = (prediction_flops(one, image) for one in (method, reference))
        calls = {"method": lambda: method.predict(image), "reference": lambda: reference.predict(image)}
        with torch.inference_mode():
            seconds = side_by_side(calls, ROUNDS, image.device)
    parameters = parameter_count(method)
    low, middle, high = ratios(seconds["method"], seconds["reference"])
    return Cost(
        parameters=parameters,
        flops=flops,
        parameter_ratio=parameters / parameter_count(reference),
        flop_ratio=flops / reference_flops,
        latency_ratio=middle,
        latency_ratio_low=low,
        latency_ratio_high=high,
        networks=len(passes),
        forward_passes=sum(passes.values()),
    )


def count_passes(method: SegmentationMethod, image: Tensor) -> Counter[nn.Module]:
    """Count the runs of each network in one `predict` of one window, or of the image if it is predicted whole.

    The networks are the modules with parameters directly below the method, or below the methods and module lists that
    it consists of.

    Args:
        method: method of any kind, in the mode to count in.
        image: `[B, C, *S]`, on the method's device.
    """
    window = method.inference.window
    part = image if window is None else image[:, :, *(slice(edge) for edge in window)]
    counted: Counter[nn.Module] = Counter()
    hooks = [
        network.register_forward_pre_hook(lambda module, _: counted.update([module])) for network in _networks(method)
    ]
    try:
        # compiled networks skip hooks that are added later
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            method.predict(part)
    finally:
        for hook in hooks:
            hook.remove()
    return counted


def _networks(module: nn.Module) -> set[nn.Module]:
    found: set[nn.Module] = set()
    for child in module.children():
        if isinstance(child, SegmentationMethod | nn.ModuleList | nn.ModuleDict):
            found |= _networks(child)
        elif any(True for _ in child.parameters()):
            found.add(child)
    return found


def prediction_flops(method: SegmentationMethod, image: Tensor) -> int:
    """Return the floating point operations of one `predict` in the method's present mode, see `Cost.flops`.

    Args:
        method: method of any kind.
        image: `[B, C, *S]`, on the method's device.
    """
    # without gradients rather than in inference mode, where composite operations escape the counter
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        method.predict(image)
    return int(counter.get_total_flops())


def side_by_side(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls in turn, each once a round and in the opposite order every other round, after a warm-up.

    Args:
        calls: calls to time, by name.
        rounds: number of rounds.
        device: device of the calls; an accelerator is waited for before and after each. None for the CPU.
        clock: clock in seconds; `time.process_time` leaves out the time that other processes take on the CPU.

    Returns:
        seconds of each call in each round, so that times of one round can be compared.
    """
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            wait_for(device)
            start = clock()
            calls[name]()
            wait_for(device)
            seconds[name].append(clock() - start)
        order.reverse()
    return seconds


def ratios(seconds: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles, with the median in the middle, of the ratios of times within each round.

    Args:
        seconds: times of each round, see `side_by_side`.
        reference: times of the reference in the same rounds.
    """
    low, middle, high = np.percentile(np.array(seconds) / np.array(reference), [25, 50, 75]).tolist()
    return low, middle, high


def wait_for(device: torch.device | None) -> None:
    """Wait until an accelerator has finished its work; a CPU, or None, needs no wait."""
    if device is not None and device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, and afterwards every part of them back into the mode it was in."""
    found = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in found:
            part.training = training
