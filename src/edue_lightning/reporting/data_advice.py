"""Settings that fit a data set, as far as its cases show: advice of `check`, never a reason to refuse the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edue_lightning.data import CaseSource
from edue_lightning.data.patches import default_patch_size
from edue_lightning.reporting.data_overview import CaseOverview
from edue_lightning.text import times

FEW_PATIENTS = 60
"""Number of patients below which a single division leaves fewer than 15 of them to test."""

_LARGEST = {2: 512 * 512, 3: 128**3}
"""Pixels, or voxels, of an image that a GPU of 10 GB can train on whole, some at a time."""

_MANY_CASES = 5
"""Mean number of cases per unit from which large units fill an epoch."""


def advice(data: Mapping[str, Any], source: CaseSource, cases: Sequence[CaseOverview]) -> list[str]:
    """Return one line per setting that fits the cases better than what is configured, with the reason.

    Args:
        data: node `data` of the configuration.
        source: source of the data.
        cases: readable cases, all of one kind.
    """
    if not cases:
        return []
    return [*_patches(data, cases), *_folds(data, cases), *_units(data, cases), *_raters(data, source, cases)]


def _patches(data: Mapping[str, Any], cases: Sequence[CaseOverview]) -> list[str]:
    sizes = {case.size for case in cases}
    smallest = tuple(min(lengths) for lengths in zip(*sizes, strict=True))
    largest = tuple(max(lengths) for lengths in zip(*sizes, strict=True))
    configured = (data.get("patch") or {}).get("size")
    fitting = default_patch_size(smallest)
    setting = f"data.patch.size=[{','.join(map(str, fitting))}]"
    if configured is not None:
        wanted = [min(length, edge) for length, edge in zip(configured, largest, strict=False)]
        if wanted != list(configured):
            return [f"{setting}: patches of {times(configured)} are larger than every image, and padded with zeros"]
        return []
    if len(sizes) > 1:
        range_ = f"{times(smallest)} to {times(largest)}"
        return [
            f"{setting}: images of {range_} are trained in patches, by default of this size; or data.batch_size=1 for "
            "whole images"
        ]
    voxels = 1
    for length in smallest:
        voxels *= length
    if voxels > _LARGEST[len(smallest)]:
        return [f"{setting}: whole images of {times(smallest)} need much memory; evaluation still uses them whole"]
    return []


def _folds(data: Mapping[str, Any], cases: Sequence[CaseOverview]) -> list[str]:
    patients = len({case.record.group for case in cases})
    prescribed = any(case.record.split is not None for case in cases)
    if patients >= FEW_PATIENTS or prescribed or data.get("folds") is not None:
        return []
    return [
        f"data.folds=5 data.fold=0,1,2,3,4 (with --multirun): {patients} patients leave few to test in one division; "
        "`report` pools the folds"
    ]


def _units(data: Mapping[str, Any], cases: Sequence[CaseOverview]) -> list[str]:
    units = Counter((case.record.group, case.record.unit) for case in cases if case.record.unit)
    if not units or data.get("train_draw") is not None or len(cases) < _MANY_CASES * len(units):
        return []
    most = max(units.values())
    return [
        f"data.train_draw=one_per_unit: {len(cases)} cases show {len(units)} units, up to {most} cases the same one; "
        "large ones fill an epoch"
    ]


def _raters(data: Mapping[str, Any], source: CaseSource, cases: Sequence[CaseOverview]) -> list[str]:
    lines = []
    if all(case.n_raters < 2 for case in cases):
        lines.append("method=single: no case has two raters, which guidance and measures of disagreement need")
    elif source.votes:
        lines.append("method.target=soft_majority, for baselines: the votes are known, but not who gave them")
    elif source.raters is None and data.get("training_raters") is not None:
        lines.append("data.training_raters=null: a position on the rater axis is nobody in particular")
    return lines
