"""Cases to measure that were used to train a method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edue_lightning.data import RaterDataModule
from edue_lightning.data.identity import CaseIdentity, TrainingCases, identities, overlapping
from edue_lightning.data.source import Split, Subset
from edue_lightning.text import named

log = logging.getLogger(__name__)

_USES: Mapping[Split, str] = {"train": "training", "val": "validation", "test": "test"}


def seen_cases(
    cases: TrainingCases | None,
    data: RaterDataModule,
    same_data: bool,
    split: Subset,
    path: Path,
    measured: Sequence[CaseIdentity] | None = None,
) -> str | None:
    """Say which of the cases to measure were used to train the method, or to choose among its checkpoints.

    Measuring the training or validation split says so by its name: training cases are allowed in `train`, validation
    cases in `val`, and none in `test` and `all`.

    Args:
        cases: cases of the training and validation of the method, None if they are not recorded.
        data: data to measure.
        same_data: whether it is the data set of the training, see `same_place`.
        split: part of the data to measure.
        path: checkpoint of the method, for messages.
        measured: identities of the cases to measure, several of one case if it consists of several images; None to
            load the cases for them.

    Returns:
        how many they are, with the names of some; None if there are none, or if that is unknown.
    """
    if split == "train":
        return None
    if cases is None:
        log.warning(
            "%s: does not record its training cases (earlier version), so an overlap with split=%s cannot be found",
            path,
            split,
        )
        return None
    used: tuple[Split, ...] = ("train",) if split == "val" else ("train", "val")
    known = [case for name in used for case in cases[name]]
    if measured is None:
        measured = identities(data.source, data.records(split))
    found = overlapping(measured, known, same_data)
    if found:
        shown = [name if name == case.case_id else f"{name} (there {case.case_id})" for name, case in found.items()]
        return (
            f"{path}: {len(found)} of the {len(data.records(split))} cases of split={split}, or their patients, were "
            f"in its {' or '.join(_USES[name] for name in used)}: {named(shown)}"
        )
    _warn_of_names([record.case_id for record in data.records(split)], known, split, path)
    return None


def _warn_of_names(measured: Sequence[str], known: Sequence[CaseIdentity], split: Subset, path: Path) -> None:
    """Warn of cases of another folder with names of the training but other images: they may be copies of these."""
    names = {case.case_id for case in known}
    alike = [case_id for case_id in measured if case_id in names]
    if alike:
        log.warning(
            "%s: %d of the %d cases of split=%s have the names of cases of its training or validation (%s), with other "
            "images; if they are resampled or otherwise changed copies, their results are not those of unseen cases",
            path,
            len(alike),
            len(measured),
            split,
            named(alike),
        )


def same_place(node: Mapping[str, Any] | None, trained: Mapping[str, Any] | None) -> bool:
    """Return whether two data sets are read by one source from one folder."""
    first, second = ((one or {}).get("source") or {} for one in (node, trained))
    if first == second:
        return True
    if first.get("_target_") != second.get("_target_") or "root" not in first or "root" not in second:
        return False
    roots = [None if one["root"] is None else Path(one["root"]).resolve() for one in (first, second)]
    return roots[0] == roots[1]
