"""Loading of cases into batches; every random draw depends only on seed, epoch and case."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
from monai.data import CacheDataset
from monai.transforms import Compose, Transform
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from edue_lightning.data.augmentation import augment
from edue_lightning.data.patches import PatchSampling, foreground_points
from edue_lightning.data.sample import RaterBatch, RaterSample, collate_samples
from edue_lightning.data.source import CaseSource


class SampleKey(NamedTuple):
    """Key of a draw: a case's position in its split, the epoch, and the number of earlier draws of it in this epoch."""

    position: int
    epoch: int
    draw: int = 0


class KeyedSample(NamedTuple):
    """A loaded case with its position and its draw key (see `RaterBatch`)."""

    sample: RaterSample
    position: int
    draw_key: int


def draw_key(seed: int, epoch: int, position: int, draw: int = 0) -> int:
    """Return 63 random bits that differ per seed, epoch, case and draw.

    Args:
        seed: seed of the training.
        epoch: number of the epoch.
        position: position of the case in its split.
        draw: number of earlier draws of this case in the epoch.
    """
    state = np.random.SeedSequence([seed, epoch, position, draw]).generate_state(1, dtype=np.uint64)
    return int(state[0] >> np.uint64(1))


def load_case(source: CaseSource, case_id: str, raters: Sequence[int] | None = None) -> RaterSample:
    """Load a case with all its raters, or only with those at the given positions (see `RaterSample.of_raters`)."""
    sample = source.load(case_id)
    return sample if raters is None else sample.of_raters(raters)


class _LoadCase(Transform):
    # MONAI caches the result of its own transforms only, so loading has to be one
    def __init__(self, source: CaseSource, list_foreground: bool, raters: Sequence[int] | None) -> None:
        self.source = source
        self.list_foreground = list_foreground
        self.raters = raters

    def __call__(self, case_id: str) -> RaterSample:
        sample = load_case(self.source, case_id, self.raters)
        if self.list_foreground and sample.foreground is None:
            return replace(sample, foreground=foreground_points(sample.masks))
        return sample


class CaseDataset(Dataset[KeyedSample]):
    """The cases of one split.

    Args:
        source: collection of the cases.
        case_ids: ids of the split's cases.
        seed: seed of every draw.
        cache_cases: largest number of samples kept in memory, loaded once before the first epoch.
        transform: augmentation, or None.
        patch: choice of a patch, or None for the whole case.
        raters: positions of the raters to load, or None for all.
    """

    def __init__(
        self,
        source: CaseSource,
        case_ids: Sequence[str],
        seed: int,
        cache_cases: int,
        transform: Compose | None = None,
        patch: PatchSampling | None = None,
        raters: Sequence[int] | None = None,
    ) -> None:
        self.seed = seed
        self.transform = transform
        self.patch = patch
        # copying a cached sample would double the cost of a step; samples are never changed in place
        self.samples = CacheDataset(
            list(case_ids),
            _LoadCase(source, list_foreground=patch is not None, raters=raters),
            cache_num=cache_cases,
            num_workers=None,
            progress=False,
            copy_cache=False,
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> KeyedSample:
        sample: RaterSample = self.samples[key.position]
        random_key = draw_key(self.seed, key.epoch, key.position, key.draw)
        if self.patch is not None:
            sample = self.patch.draw(sample, random_key)
        if self.transform is not None:
            sample = augment(sample, self.transform, random_key)
        return KeyedSample(sample, key.position, random_key)


class CaseSampler(Sampler[SampleKey]):
    """Order of the cases, divided among the processes of a distributed run.

    Args:
        n_cases: number of cases in the split.
        seed: seed of the order.
        shuffle: whether to draw a new order every epoch, and to repeat a few cases so that every process gets equally
            many; otherwise the order is kept and none is repeated, so that an evaluation counts each case once.
        draws: number of draws per case and epoch.
        units: unit of each case if only one case per unit is drawn, anew for each epoch and draw; None for all cases.

    Attributes:
        skipped: number of this process' cases to leave out at the start of the next iteration.
    """

    def __init__(
        self, n_cases: int, seed: int, shuffle: bool, draws: int = 1, units: Sequence[str] | None = None
    ) -> None:
        self.draws = draws
        self.members = np.arange(n_cases)[:, None]
        self.sizes = np.ones(n_cases, dtype=np.int64)
        if units is not None:
            places: dict[str, list[int]] = {}
            for position, unit in enumerate(units):
                places.setdefault(unit, []).append(position)
            self.sizes = np.array([len(own) for own in places.values()])
            # the cases of each unit, padded to the largest
            self.members = np.array([np.resize(own, self.sizes.max()) for own in places.values()])
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order comes next (called by the trainer)."""
        self.epoch = epoch

    def _own_cases(self) -> np.ndarray:
        rank, processes = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            rank, processes = distributed.get_rank(), distributed.get_world_size()
        order = np.arange(len(self.members) * self.draws)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
            order = np.resize(order, -(-len(order) // processes) * processes)
        own = order[rank::processes]
        # every process needs a case to take part in collective calls; a case that comes twice counts once
        return own if len(own) else order[:1]

    def __len__(self) -> int:
        return len(self._own_cases())

    def __iter__(self) -> Iterator[SampleKey]:
        skipped, self.skipped = self.skipped, 0
        # the same in all processes
        shares = np.random.default_rng([self.seed, self.epoch, 1]).random((self.draws, len(self.members)))
        chosen = (shares * self.sizes).astype(np.int64)
        numbered = (divmod(int(number), len(self.members)) for number in self._own_cases()[skipped:])
        return (SampleKey(int(self.members[unit, chosen[draw, unit]]), self.epoch, draw) for draw, unit in numbered)


class ResumableLoader(DataLoader[KeyedSample]):
    """A loader that can start within an epoch; its sampler must be a `CaseSampler`.

    The trainer stores `state_dict` in its checkpoints.
    """

    _done = 0
    _to_skip = 0

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches of the epoch that were handed out."""
        return {"batches": self._done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Start the next epoch after this number of batches, or a new one if those were all."""
        self._to_skip = state["batches"] % len(self)

    def __iter__(self) -> Iterator[RaterBatch]:  # type: ignore[override]
        self._done, self._to_skip = self._to_skip, 0
        # as a generator, it starts when its first batch is asked for: the trainer sets the epoch before
        cast(CaseSampler, self.sampler).skipped = self._done * cast(int, self.batch_size)
        with _stop_signals_blocked():
            # starts the loader processes, which inherit what is blocked
            batches = super().__iter__()
        for batch in batches:
            self._done += 1
            yield cast(RaterBatch, batch)


_STOP_SIGNALS = {signal.SIGTERM, signal.SIGUSR1}
_CAN_WAIT = hasattr(signal, "sigwaitinfo")


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Leave the stop signals pending in this thread and in processes that start here, whose handlers would obey them.

    A process that starts here is to call `ignore_stop_signals`.
    """
    if not _CAN_WAIT:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals(worker: int) -> None:  # noqa: ARG001
    """Ignore the signals by which a scheduler stops all processes of a job, in this loader process.

    The training keeps loading until it has saved. It then ends its loaders, if need be by SIGTERM, which is obeyed when
    it comes from the training's own process.
    """
    if not _CAN_WAIT:
        return

    def wait() -> None:
        while signal.sigwaitinfo(_STOP_SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    threading.Thread(target=wait, daemon=True).start()


def collate(keyed: Sequence[KeyedSample]) -> RaterBatch:
    """Stack keyed samples into a batch."""
    samples, positions, keys = zip(*keyed, strict=True)
    return collate_samples(samples, positions, keys)
