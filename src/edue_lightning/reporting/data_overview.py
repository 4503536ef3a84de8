"""Numbers on a data set: its images, the cases of each rater, and the disagreement between the raters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data import CaseRecord, RaterSample
from edue_lightning.data.source import Split
from edue_lightning.text import counted, times
from edue_lightning.uncertainty import model_agreement, pair_overlap

PERCENTILES = (1, 50, 99)
CASES_COLUMNS = (
    *("case_id", "patient", "split", "stratum", "n_raters", "size", "spacing"),
    *("structure", "n_empty", "mean_volume", "pairwise_dice", "mean_v_star", "sv_star"),
)

_LABEL_WIDTH = 16


@dataclass(frozen=True)
class CaseOverview:
    """One case in numbers; n is the number of its valid raters.

    Attributes:
        record: the case.
        valid: whether each of the R raters drew on it, `[R]`.
        size: pixels or voxels along each spatial axis.
        spacing: mm along each spatial axis, or None where it is unknown.
        intensity: the `PERCENTILES` of each channel, `[C, 3]`.
        mask_sizes: voxels of each valid rater's mask, `[K, n]`.
        marked_by: number of voxels that 0, 1, ..., n of the raters marked, `[K, n + 1]`; see `marking_histogram`.
        pairwise_dice: mean Dice over the pairs of raters, `[K]`; two empty masks count 1. NaN for fewer than two.
    """

    record: CaseRecord
    valid: tuple[bool, ...]
    size: tuple[int, ...]
    spacing: tuple[float, ...] | None
    intensity: NDArray[np.float64]
    mask_sizes: NDArray[np.float64]
    marked_by: NDArray[np.int64]
    pairwise_dice: NDArray[np.float64]

    @property
    def n_raters(self) -> int:
        """Number of valid raters n."""
        return sum(self.valid)

    @property
    def kind(self) -> tuple[int, int]:
        """Numbers of spatial axes and channels, which must be the same for all cases."""
        return len(self.size), len(self.intensity)

    @property
    def voxel_size(self) -> float:
        """Size of a voxel, mm² or mm³; 1 where the spacing is unknown."""
        return 1.0 if self.spacing is None else float(np.prod(self.spacing))

    @property
    def unit(self) -> str:
        """Unit of `volumes` and `sv_star`."""
        return volume_unit(len(self.size), self.spacing is not None)

    @property
    def volumes(self) -> NDArray[np.float64]:
        """Area or volume of each valid rater's mask, `[K, n]`, see `unit`."""
        return self.mask_sizes * self.voxel_size

    @property
    def empty(self) -> NDArray[np.int64]:
        """Number of valid raters who drew nothing, `[K]`."""
        count: NDArray[np.int64] = (self.mask_sizes == 0).sum(axis=1)
        return count

    @property
    def sv_star(self) -> NDArray[np.float64]:
        """Sum of V* over the image, `[K]`, see `unit`; NaN for fewer than two raters."""
        return self._summed_variance * self.voxel_size

    @property
    def mean_v_star(self) -> NDArray[np.float64]:
        """Mean of V* over the voxels that at least one rater marked, `[K]`; NaN where no rater marked any."""
        voxels = self.marked_by[:, 1:].sum(axis=1)
        return self._summed_variance / np.where(voxels > 0, voxels, np.nan)

    @property
    def _summed_variance(self) -> NDArray[np.float64]:
        if self.n_raters < 2:
            return np.full(len(self.marked_by), np.nan)
        # exact, so the order of the raters or voxels does not matter
        marked = np.arange(self.n_raters + 1)
        summed: NDArray[np.float64] = self.marked_by @ (marked * (self.n_raters - marked)) / self.n_raters**2
        return summed


def measure_case(record: CaseRecord, sample: RaterSample) -> CaseOverview:
    """Measure one case."""
    masks = sample.masks[sample.valid].flatten(2)
    if sample.region is not None:
        masks = masks[..., sample.region.flatten()]
    overlap = pair_overlap(masks.transpose(0, 1))
    return CaseOverview(
        record=record,
        valid=tuple(sample.valid.tolist()),
        size=tuple(sample.image.shape[1:]),
        spacing=sample.spacing,
        intensity=np.percentile(sample.image.flatten(1).numpy(), PERCENTILES, axis=1).T.astype(np.float64),
        mask_sizes=overlap.size.numpy(),
        marked_by=marking_histogram(masks).numpy(),
        pairwise_dice=model_agreement(overlap.dice()).numpy(),
    )


def marking_histogram(masks: Tensor) -> Tensor:
    """Count the voxels that 0, 1, ..., n raters marked.

    Args:
        masks: masks of the n raters over V voxels, `[n, K, V]` in {0, 1}.

    Returns:
        `[K, n + 1]` int64.
    """
    raters = len(masks)
    marked = masks.sum(dim=0, dtype=torch.int16)
    return torch.stack([torch.bincount(structure, minlength=raters + 1) for structure in marked])


def fleiss_kappa(histograms: Iterable[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return Fleiss' kappa over all voxels of some cases, each voxel an item that is marked or not.

    For a voxel that m of the n raters of its case marked, `P = [m(m - 1) + (n - m)(n - m - 1)] / [n(n - 1)]` is the
    share of its pairs of raters who agree, and `q = m / n`. With the means of both over all voxels of all cases,
    `kappa = (mean P - P_e) / (1 - P_e)` where `P_e = (mean q)^2 + (1 - mean q)^2`. With equally many raters in every
    case this is the kappa of Fleiss (Psychological Bulletin 76, 1971); where n differs between cases each voxel keeps
    the n of its own case and all voxels count alike, as in Gwet (Handbook of Inter-Rater Reliability, 2014).

    The background counts: the smaller a structure in its image, the lower `1 - P_e`, so kappas of differently cropped
    images are not comparable. Large images weigh more than small ones.

    Args:
        histograms: one per case with two raters or more, `[K, n + 1]`, at least one; see `marking_histogram`.

    Returns:
        `[K]`, at most 1; NaN where no rater marked any voxel, or all raters every one.
    """
    disagreement, marked, voxels = (np.zeros(1) for _ in range(3))
    for histogram in histograms:
        raters = histogram.shape[1] - 1
        share = _shares(raters)
        # 1 - P is twice this
        unbiased_variance = _variance_of_share(share) * raters / (raters - 1)
        disagreement = disagreement + _sum_over_voxels(histogram, unbiased_variance)
        marked = marked + _sum_over_voxels(histogram, share)
        voxels = voxels + histogram.sum(axis=1)
    by_chance = _variance_of_share(marked / voxels)
    return 1 - disagreement / voxels / np.where(by_chance > 0, by_chance, np.nan)


def volume_unit(spatial_dims: int, known_spacing: bool) -> str:
    """Return the unit of areas or volumes."""
    names = ("mm²", "mm³") if known_spacing else ("pixels", "voxels")
    return names[spatial_dims - 2]


def number_text(value: float) -> str:
    """Return a number with four digits; a whole or large number without decimals.

    >>> number_text(0.123456), number_text(1200.7), number_text(4.0), number_text(float("nan"))
    ('0.1235', '1201', '4', 'undefined')
    """
    if math.isnan(value):
        return "undefined"
    return f"{value:.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class DataOverview:
    """Numbers on a data set.

    Attributes:
        name: name of the data set.
        note: caveat to show with every result on this data set, or None.
        structures: names of the K structures.
        raters: names of the R raters, or None where raters are not identified across cases.
        cases: readable cases in their order, all of one `kind`.
        splits: split by case id; empty where the data cannot be divided.
        facts: see `CaseSource.facts`.
    """

    name: str
    note: str | None
    structures: Sequence[str]
    raters: Sequence[str] | None
    cases: Sequence[CaseOverview]
    splits: Mapping[str, Split]
    facts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def disputable(self) -> list[CaseOverview]:
        """Cases with two raters or more; disagreement is undefined for others."""
        return [case for case in self.cases if case.n_raters >= 2]

    def cases_frame(self) -> pd.DataFrame:
        """Return the table with one row per case and structure, with `CASES_COLUMNS`.

        - split: drawn or prescribed split; empty where the data cannot be divided and no split is prescribed.
        - size, spacing: such as 64x64 and 0.7x0.7; spacing in mm, empty where unknown.
        - n_empty: number of valid raters who drew nothing. mean_volume: mean over the valid raters' masks, mm² or mm³
          (pixels or voxels where the spacing is unknown).
        - pairwise_dice, mean_v_star, sv_star: see `CaseOverview`.
        """
        rows = [
            (
                *(case.record.case_id, case.record.group, self._split(case.record), case.record.stratum),
                *(case.n_raters, times(case.size, 6), times(case.spacing or (), 6), structure, case.empty[k]),
                case.volumes[k].mean() if case.n_raters else np.nan,
                *(case.pairwise_dice[k], case.mean_v_star[k], case.sv_star[k]),
            )
            for case in self.cases
            for k, structure in enumerate(self.structures)
        ]
        return pd.DataFrame(rows, columns=pd.Index(CASES_COLUMNS))

    def structures_frame(self) -> pd.DataFrame:
        """Return numbers on the masks, one column per structure, for at least one case.

        The median is over the valid raters' masks that are not empty; NaN where all are empty. "Drawn by some" counts
        the cases where some but not all valid raters drew something.
        """
        frame = pd.DataFrame(index=pd.Index(self.structures))
        volumes = [np.concatenate([case.volumes[k] for case in self.cases]) for k in range(len(self.structures))]
        drawn = [volume[volume > 0] for volume in volumes]
        kind = "area" if len(self.cases[0].size) == 2 else "volume"
        frame["masks"] = [len(volume) for volume in volumes]
        frame["empty masks"] = np.sum([case.empty for case in self.cases], axis=0)
        some = [(case.empty > 0) & (case.empty < case.n_raters) for case in self.cases]
        frame["cases drawn by some raters, not all"] = np.sum(some, axis=0)
        frame[f"median {kind} of non-empty masks, {self._unit}"] = [
            np.median(volume) if len(volume) else np.nan for volume in drawn
        ]
        return frame.T

    def disagreement_frame(self) -> pd.DataFrame:
        """Return the disagreement between raters over the `disputable` cases, one column per structure.

        Means are over the cases that define the number; kappa is over all voxels of all of them, see `fleiss_kappa`.
        """
        measured = {
            "mean pairwise Dice": [case.pairwise_dice for case in self.disputable],
            "mean V* where any rater marked": [case.mean_v_star for case in self.disputable],
            f"mean SV*, {self._unit}": [case.sv_star for case in self.disputable],
        }
        frame = pd.DataFrame({name: pd.DataFrame(np.stack(values)).mean() for name, values in measured.items()})
        frame.insert(1, "Fleiss' kappa over all voxels", fleiss_kappa(case.marked_by for case in self.disputable))
        frame.index = pd.Index(self.structures)
        return frame.T

    def text(self) -> str:
        """Return everything as plain text."""
        patients = len({case.record.group for case in self.cases})
        lines = [f"data={self.name}: {counted(len(self.cases), 'case')} of {counted(patients, 'patient')}"]
        if self.note:
            lines.append(f"note: {self.note}")
        if not self.cases:
            return "\n".join(lines)
        sections = [self._facts(), self._grid(), self._intensities(), _table(self.structures_frame())]
        return "\n\n".join(["\n".join(lines), *sections, self._disagreement()])

    def _facts(self) -> str:
        raters = sorted(Counter(case.n_raters for case in self.cases).items())
        facts = {
            **self.facts,
            "splits": self._split_sizes(),
            "strata": self._strata(),
            "images": f"{len(self.cases[0].size)}D, {counted(len(self.cases[0].intensity), 'channel')}",
            "sizes": _different(case.size for case in self.cases),
            "spacings": self._spacings(),
            "structures": ", ".join(self.structures),
            "raters per case": ", ".join(f"{counted(n, 'rater')} in {counted(cases, 'case')}" for n, cases in raters),
            "cases per rater": self._cases_of_each_rater(),
        }
        return "\n".join(f"{label:<{_LABEL_WIDTH}}{value}" for label, value in facts.items() if value)

    def _strata(self) -> str:
        counts = Counter(case.record.stratum for case in self.cases)
        return _listed(counts) if any(counts) else ""

    def _split_sizes(self) -> str:
        if not self.splits:
            return "not drawn because of the problems below"
        sizes = Counter(self.splits.values())
        return ", ".join(f"{split} {sizes[split]}" for split in get_args(Split))

    def _spacings(self) -> str:
        known = [case.spacing for case in self.cases if case.spacing is not None]
        unknown = f"unknown in {counted(len(self.cases) - len(known), 'case')}"
        if not known:
            return unknown
        return _different(known) if len(known) == len(self.cases) else f"{_different(known)}, {unknown}"

    def _cases_of_each_rater(self) -> str:
        if self.raters is None:
            return "unknown: raters are not identified across cases"
        counts = np.sum([case.valid for case in self.cases], axis=0)
        return _listed(dict(zip(self.raters, counts.tolist(), strict=True)))

    def _grid(self) -> str:
        grids: dict[str, list[tuple[float, ...]]] = {
            f"size, {volume_unit(len(self.cases[0].size), known_spacing=False)}": [case.size for case in self.cases],
            "spacing, mm": [case.spacing for case in self.cases if case.spacing is not None],
        }
        rows = {
            f"{name}, axis {axis}": (min(values), float(np.median(values)), max(values))
            for name, grid in grids.items()
            for axis, values in enumerate(zip(*grid, strict=True), start=1)
        }
        return _table(pd.DataFrame.from_dict(rows, orient="index", columns=["min", "median", "max"]))

    def _intensities(self) -> str:
        mean = np.mean([case.intensity for case in self.cases], axis=0)
        named = [f"intensity of channel {channel}, mean over cases" for channel in range(1, len(mean) + 1)]
        return _table(pd.DataFrame(mean, index=pd.Index(named), columns=["1st percentile", "median", "99th"]))

    def _disagreement(self) -> str:
        apart = len(self.cases) - len(self.disputable)
        if not self.disputable:
            return (
                "No case has two raters: guidance (method=edue) needs two raters per case, and every measure of\n"
                "disagreement is undefined."
            )
        text = f"disagreement over {counted(len(self.disputable), 'case')} with two raters or more"
        if apart:
            text += f"; {counted(apart, 'case')} with fewer left out"
        return f"{text}\n{_table(self.disagreement_frame())}"

    def _split(self, record: CaseRecord) -> str:
        return self.splits.get(record.case_id) or record.split or ""

    @property
    def _unit(self) -> str:
        known, unknown = (volume_unit(len(self.cases[0].size), known_spacing=flag) for flag in (True, False))
        with_spacing = sum(case.spacing is not None for case in self.cases)
        if not with_spacing:
            return unknown
        return known if with_spacing == len(self.cases) else f"{known} ({unknown} where the spacing is unknown)"


def _shares(raters: int) -> NDArray[np.float64]:
    return np.arange(raters + 1) / raters


def _variance_of_share(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return share * (1 - share)


def _sum_over_voxels(histogram: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum a value that depends on the number of markings alone, `[n + 1]`, over all voxels of `[K, n + 1]`."""
    return histogram @ value


def _different(grids: Iterable[tuple[float, ...]]) -> str:
    different = len(set(grids))
    return "all the same" if different == 1 else f"{different} different"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'none'} {count}" for name, count in sorted(counts.items()))


def _table(frame: pd.DataFrame) -> str:
    return frame.map(number_text).to_string()
