"""Fingerprint of a data set: sizes, voxel sizes, intensities and raters of its training cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseSource
from edue_lightning.text import times

INTENSITY_PERCENTILES = (0.5, 50.0, 99.5)
"""Percentiles of the intensities inside the foreground, as nnU-Net records them."""

_VOXELS_PER_CASE = 10_000


@dataclass(frozen=True)
class CaseFingerprint:
    """One training case in numbers.

    Attributes:
        size: pixels or voxels along each spatial axis.
        spacing: mm along each spatial axis, or None if it is unknown.
        raters: number of raters who outlined it.
        foreground: values of voxels that a rater marked, `[C, n]`: all of them, or 10,000 that are drawn from a fixed
            seed where there are more.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None
    raters: int
    foreground: NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """The training cases of a data set in numbers.

    Attributes:
        sizes: pixels or voxels along each spatial axis, one tuple per case.
        spacings: mm along each spatial axis, one tuple per case; None if it is unknown.
        channels: number of image channels C.
        structures: names of the structures.
        raters: smallest and largest number of raters who outlined a case.
        intensities: `INTENSITY_PERCENTILES` of each channel inside the foreground of all cases, `[C][3]`; None where
            no voxel is marked.
        mixed_sizes: whether the images of the whole data set, not of training alone, differ in size.
    """

    sizes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...] | None, ...]
    channels: int
    structures: tuple[str, ...]
    raters: tuple[int, int]
    intensities: tuple[tuple[float, ...], ...] | None
    mixed_sizes: bool

    @classmethod
    def of(cls, source: CaseSource, cases: Sequence[CaseFingerprint]) -> Fingerprint:
        """Return the fingerprint of some cases of a source, at least one."""
        values = np.concatenate([case.foreground for case in cases], axis=1)
        percentiles = np.percentile(values, INTENSITY_PERCENTILES, axis=1).T if values.size else None
        numbers = [case.raters for case in cases]
        return cls(
            sizes=tuple(case.size for case in cases),
            spacings=tuple(case.spacing for case in cases),
            channels=source.channels,
            structures=tuple(source.structures),
            raters=(min(numbers), max(numbers)),
            intensities=None if percentiles is None else tuple(tuple(map(float, one)) for one in percentiles),
            mixed_sizes=source.mixed_sizes,
        )

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.sizes[0])

    @property
    def known_spacings(self) -> list[tuple[float, ...]]:
        """Voxel sizes of the cases that have them."""
        return [spacing for spacing in self.spacings if spacing is not None]

    def text(self) -> str:
        """Return the fingerprint as plain text."""
        low, high = self.raters
        lines = [
            f"fingerprint of the {len(self.sizes)} training cases",
            f"sizes           {_range(self.sizes)}",
            f"spacings        {_range(self.known_spacings)} mm" if self.known_spacings else "spacings        unknown",
            f"channels        {self.channels}",
            f"structures      {len(self.structures)} ({', '.join(self.structures)})",
            f"raters          {low if low == high else f'{low} to {high}'} per case",
        ]
        if self.intensities is None:
            return "\n".join([*lines, "intensities     undefined, no voxel is marked"])
        names = ", ".join(f"{percentile:g}" for percentile in INTENSITY_PERCENTILES)
        for channel, values in enumerate(self.intensities, start=1):
            shown = ", ".join(f"{value:.4g}" for value in values)
            lines.append(f"intensities     {shown} in channel {channel} (percentiles {names} of marked voxels)")
        return "\n".join(lines)


def measure_training_case(sample: RaterSample) -> CaseFingerprint:
    """Measure one training case."""
    marked = sample.masks[sample.valid].amax(dim=(0, 1)).bool()
    if sample.region is not None:
        marked = marked & sample.region
    values = sample.image[:, marked].numpy()
    if values.shape[1] > _VOXELS_PER_CASE:
        values = values[:, np.random.default_rng(0).choice(values.shape[1], _VOXELS_PER_CASE, replace=False)]
    return CaseFingerprint(
        size=tuple(sample.image.shape[1:]),
        spacing=sample.spacing,
        raters=int(sample.valid.sum()),
        foreground=values.astype(np.float32, copy=False),
    )


def _range(grids: Iterable[Sequence[float]]) -> str:
    """Return the smallest, median and largest value along each axis."""
    array = np.array(list(grids), dtype=np.float64)
    low, middle, high = (
        times(values, 4) for values in (array.min(axis=0), np.median(array, axis=0), array.max(axis=0))
    )
    return f"all {middle}" if low == high else f"{low} to {high}, median {middle}"
