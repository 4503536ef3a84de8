"""Tables of a measurement, from the statistics of its cases: quality control, and detection of distorted images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from edue_lightning.metrics import SCORES, CaseStatistics, MetricSettings, QualityControl, quality_control_curves
from edue_lightning.metrics.detection import ood_aupr, ood_auroc
from edue_lightning.runs.files import CLEAN, DENSITY, DETECTION_COLUMNS, IDENTITY, POOLED_KINDS, POOLED_SEVERITY


def quality_control_table(cases: CaseStatistics, structures: Sequence[str], settings: MetricSettings) -> pd.DataFrame:
    """Return the content of `quality_control.csv` without the identity of the run, one curve per structure and score.

    A curve is over the cases whose score and Dice are defined. The scores are in the order of `SCORES`; a score that no
    case defines, such as the variance between the members of a single network, has no curve.

    Args:
        cases: statistics of the cases.
        structures: names of the K structures.
        settings: settings of the metrics.
    """
    parts = [pd.DataFrame(columns=["structure", "score", *QualityControl._fields])]
    curves = {
        score: quality_control_curves(cases, structures, settings, score, sign)
        for score, sign in SCORES.values()
        # measurements of earlier versions lack the later scores
        if score in cases.columns
    }
    for k, structure in enumerate(structures):
        for score, of_structures in curves.items():
            # without a case, the curve is its start alone
            if len(of_structures[k].flagged) > 1:
                parts.append(pd.DataFrame({"structure": structure, "score": score, **of_structures[k]._asdict()}))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def detection_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the content of `detection.csv` without the identity of the run: how well scores find distorted cases.

    One row per structure, score, kind of distortion (or `all`) and severity (0 for all of them): AUROC and AUPR of the
    distorted cases against the clean images of the same cases. An image with an undefined score is left out alone, not
    its case.

    Args:
        cases: content of `distorted_cases.csv`.
    """
    # measurements of earlier versions lack the later scores
    scores = [(score, sign) for score, sign in (*SCORES.values(), (DENSITY, 1)) if score in cases]
    rows = [
        (structure, score, kind, severity, *_detection(chosen, clean, score, sign))
        for structure, own in cases.groupby("structure", sort=False)
        for clean, distorted in [(own[own["distortion"] == CLEAN], own[own["distortion"] != CLEAN])]
        for kind, of_kind in _with_all(distorted, "distortion", POOLED_KINDS)
        for severity, chosen in _with_all(of_kind, "severity", POOLED_SEVERITY)
        for score, sign in scores
    ]
    return pd.DataFrame(rows, columns=[column for column in DETECTION_COLUMNS if column not in IDENTITY])


def _with_all(frame: pd.DataFrame, column: str, pooled: str | int) -> Iterator[tuple[str | int, pd.DataFrame]]:
    yield pooled, frame
    yield from frame.groupby(column, sort=False)  # type: ignore[misc]


def _detection(distorted: pd.DataFrame, clean: pd.DataFrame, score: str, sign: int) -> tuple[float, float, int, int]:
    counterparts = clean[clean["case_id"].isin(distorted["case_id"])]
    values = [sign * frame[score].dropna().to_numpy(dtype=np.float64) for frame in (counterparts, distorted)]
    n_clean, n_distorted = (len(part) for part in values)
    scores = torch.from_numpy(np.concatenate(values))
    positive = torch.arange(len(scores)) >= n_clean
    return float(ood_auroc(scores, positive)), float(ood_aupr(scores, positive)), n_clean, n_distorted
