"""The table of predicted cases, `triage.csv`, with the cases to review first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from edue_lightning.data.preparation import PreparedImage
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.prediction.triage import (
    CANDIDATES,
    EXPECTED_DICE,
    SIZE_SCORES,
    StructureTriage,
    Triage,
    scores_of,
)
from edue_lightning.text import times

COLUMNS = (
    *("case", "structure", "flagged", "flag_reason", "uncertainty", "score", "score_value", "threshold"),
    *("out_of_distribution", "voxel_size", "sv", "sv_total", "sv_normalised"),
    *("layer_agreement", "aula", "model_agreement", "entropy"),
    *("volume", "volume_low", "volume_high", "unit"),
)
OUTSIDE = "outside of the training's range"
UNKNOWN = "unknown"
_WITHOUT_TRIAGE = "sv_total"
_SEPARATOR = "; "


def triage_rows(
    case_id: str,
    prepared: PreparedImage,
    estimate: Estimate,
    structures: Sequence[str],
    triage: Triage | None,
    sensitivity: float | None,
    spaced: bool,
    unusual: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per structure of a case, plain values by `COLUMNS`.

    - `flagged`: true if the case lies outside of the training's range, whatever its score; else whether the score
      reaches the threshold that flags `sensitivity` of the poor segmentations among the validation cases; None if there
      is no threshold, or the score cannot be compared with it, since it is a size and the voxel size of this image is
      unknown.
    - `flag_reason`: why it is flagged, an empty text if it is not.
    - `uncertainty`: the share of the validation cases that are surer, in per cent; None without `triage`.
    - `score`, `score_value`, `threshold`: name and value of the score, and the value from which on a case is flagged;
      None for an infinite one, which only an undefined score reaches.
    - `out_of_distribution`: properties outside of the training's range, an empty text if there are none; None without
      `triage` and `unusual`. Then `uncertainty` is None, and so is the value of a score that is an estimate, the
      expected Dice, since both hold within the range alone.
    - `voxel_size`: of the file in mm along each axis, such as `0.7x0.7x2.5`, or `unknown`.
    - `volume`: volume of the mask; area for a picture. `volume_low` and `volume_high`: the smallest and largest volume
      among this mask and the members', which are cut at one half whatever rule the mask has (see `MaskRule`). They are
      measured on the voxels that the network saw: where an image is resampled, the mask on the voxels of its file, cut
      after interpolation, has another volume.
    - `unit`: unit of volumes and sums: mm² or mm³ if `spaced`, else pixels or voxels (of the file for volumes, of the
      image that the network saw for sums).

    Args:
        case_id: name of the case.
        prepared: image as the network saw it.
        estimate: the prediction, with sizes in pixels or voxels.
        structures: names of the K structures.
        triage: triage data of the checkpoint, or None.
        sensitivity: share of the poor cases to flag, None without `triage`.
        spaced: whether sizes are in mm² or mm³.
        unusual: what the density of the training images says of this one, see `Density.outside`; None if it is unknown.
    """
    # NaN makes every size undefined that would be in another unit
    voxel_size = 1.0 if not spaced else math.nan if prepared.spacing is None else prepared.voxel_size
    unit = f"mm{prepared.image.ndim - 1}" if spaced else {2: "pixels", 3: "voxels"}[prepared.image.ndim - 1]
    # without spacing, volumes count in voxels of the file
    on_file = 1.0 if spaced else _file_voxels(prepared)
    of_image = [*(unusual or ()), *([] if triage is None else triage.outside(prepared.image))]
    rows = []
    for k, structure in enumerate(structures):
        scores = {
            name: value * voxel_size if name in SIZE_SCORES else value for name, value in scores_of(estimate, k).items()
        }
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"case": case_id, "structure": structure, **{name: scores[name] for name in COLUMNS if name in scores}}
        row |= {"flag_reason": "", "voxel_size": _voxel_size(prepared)}
        outside = list(of_image)
        if triage is None or sensitivity is None:
            row |= {"score": _WITHOUT_TRIAGE, "score_value": scores[_WITHOUT_TRIAGE]}
        else:
            known = triage.structures[structure]
            outside += known.outside(scores)
            row |= _compared(known, scores, sensitivity, comparable=not (known.needs_unit and math.isnan(voxel_size)))
        if triage is not None or unusual is not None:
            row["out_of_distribution"] = _SEPARATOR.join(outside)
        if outside:
            row |= {
                "flagged": True,
                "flag_reason": f"{OUTSIDE}: {', '.join(properties_of(row['out_of_distribution']))}",
                "uncertainty": None,
            }
            if row["score"] == EXPECTED_DICE:
                row["score_value"] = None
        volume = scores["predicted_area"] * on_file
        # the mask has a rule of its own, and need not lie between the members' masks
        sizes = [volume, *(estimate.member_areas[:, k] * voxel_size * on_file).tolist()]
        row |= {
            "volume": volume,
            "volume_low": float(np.min(sizes)),
            "volume_high": float(np.max(sizes)),
            "unit": unit,
        }
        rows.append(row)
    return rows


def _compared(
    known: StructureTriage, scores: Mapping[str, float], sensitivity: float, comparable: bool
) -> dict[str, Any]:
    """Return the columns that compare a case's score with those of the validation cases.

    Args:
        known: results of the validation cases.
        scores: scores of the case by name.
        sensitivity: share of the poor cases to flag.
        comparable: whether the score has the unit of the validation cases'.
    """
    threshold = known.threshold(sensitivity).value
    row: dict[str, Any] = {"score": known.score, "score_value": known.value(scores)}
    if threshold is not None and math.isfinite(threshold):
        row["threshold"] = known.measured(threshold)
    if comparable:
        uncertainty = known.uncertainty(scores)
        row["uncertainty"] = known.percentile(uncertainty)
        if threshold is not None:
            row["flagged"] = uncertainty >= threshold
            row["flag_reason"] = known.reason(scores, threshold) if row["flagged"] else ""
    return row


def properties_of(outside: str) -> list[str]:
    """Return the names of the properties in `out_of_distribution`, without their values."""
    return [one.partition(" outside ")[0].rpartition(" ")[0] for one in outside.split(_SEPARATOR)]


def _file_spacing(prepared: PreparedImage, spacing: Sequence[float]) -> list[float]:
    """Return the voxel size of a case's file in mm along each axis, from that of the image that the network saw."""
    if prepared.file_grid is not None:
        sizes: list[float] = voxel_sizes(prepared.file_grid.affine.numpy()).tolist()
        return sizes
    lengths = zip(spacing, prepared.image.shape[1:], prepared.file, strict=True)
    return [size * own / file for size, own, file in lengths]


def _file_voxels(prepared: PreparedImage) -> float:
    """Return how many voxels of a case's file have the size of one voxel of the image that the network saw."""
    if prepared.spacing is None:
        return math.prod(prepared.file) / math.prod(prepared.image.shape[1:])
    return prepared.voxel_size / math.prod(_file_spacing(prepared, prepared.spacing))


def _voxel_size(prepared: PreparedImage) -> str:
    """Return the voxel size of a case's file in words."""
    return UNKNOWN if prepared.spacing is None else times(_file_spacing(prepared, prepared.spacing), 4)


def triage_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the content of `triage.csv`: the cases by their largest uncertainty, the least sure first.

    Cases that could not be compared with the validation cases come first, such as those outside of the training's
    range. Among cases of equal uncertainty, as of those less sure than all validation cases, the order is that of their
    scores among the rows.
    """
    frame = pd.DataFrame([dict(row) for row in rows], columns=list(COLUMNS))
    order = pd.DataFrame({"case": frame["case"], "own": frame["uncertainty"].astype(float)})
    # without triage data no row has an uncertainty, and the scores alone order the cases
    order["own"] = order["own"].fillna(math.inf)
    sign = frame["score"].map(CANDIDATES).astype(float)
    signed = (sign * frame["score_value"].astype(float)).fillna(math.inf)
    order["rank"] = signed.groupby(frame["structure"]).rank(pct=True)
    for column in ("own", "rank"):
        order[f"largest_{column}"] = order.groupby("case", sort=False)[column].transform("max")
    by = ["largest_own", "largest_rank", "case", "own", "rank"]
    order = order.sort_values(by, ascending=[False, False, True, False, False], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)
