"""The table of predicted cases, `triage.csv`, with the cases to review first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from edue_lightning.data.preparation import PreparedImage
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.prediction.triage import CANDIDATES, SIZE_SCORES, Triage, scores_of

COLUMNS = (
    *("case", "structure", "flagged", "uncertainty", "score", "score_value", "threshold"),
    *("out_of_distribution", "sv", "sv_total", "sv_normalised"),
    *("layer_agreement", "aula", "model_agreement", "entropy"),
    *("volume", "volume_low", "volume_high", "unit"),
)
NEEDS_VOXEL_SIZE = "needs the voxel size"
_WITHOUT_TRIAGE = "sv_total"


def triage_rows(
    case_id: str,
    prepared: PreparedImage,
    estimate: Estimate,
    structures: Sequence[str],
    triage: Triage | None,
    sensitivity: float | None,
    unusual: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one row per structure of a case, plain values by `COLUMNS`.

    - `flagged`: whether the score reaches the threshold that flags `sensitivity` of the poor segmentations among the
      validation cases; None if there is no threshold, or the score cannot be compared with it, since it is a size and
      the voxel size of this image is unknown.
    - `uncertainty`: the share of the validation cases that are surer, in per cent; None without `triage`.
    - `score`, `score_value`, `threshold`: name and value of the score, and the value from which on a case is flagged;
      None for an infinite one, which only an undefined score reaches.
    - `out_of_distribution`: properties outside the range of the training cases, an empty text if there are none; None
      without `triage` and `unusual`.
    - `volume`: volume of the mask, with the smallest and largest volume of the members' masks; area for a picture.
    - `unit`: unit of volumes and sums, the same in all rows of a model: mm² or mm³ if it was trained on images of known
      voxel size, else pixels or voxels (of the file for volumes, of the image that the network saw for sums).

    Args:
        case_id: name of the case.
        prepared: image as the network saw it.
        estimate: the prediction, with sizes in pixels or voxels.
        structures: names of the K structures.
        triage: triage data of the checkpoint, or None.
        sensitivity: share of the poor cases to flag, None without `triage`.
        unusual: what the density of the training images says of this one, see `Density.outside`; None if it is unknown.
    """
    spaced = triage is not None and triage.spaced
    # NaN makes every size undefined that would be in another unit
    voxel_size = 1.0 if not spaced else math.nan if prepared.spacing is None else prepared.voxel_size
    unit = f"mm{prepared.image.ndim - 1}" if spaced else {2: "pixels", 3: "voxels"}[prepared.image.ndim - 1]
    # without spacing, volumes count the voxels of the file, as the mask that is written does
    on_file = 1.0 if spaced else math.prod(prepared.file) / math.prod(prepared.image.shape[1:])
    intensities = [] if triage is None else triage.outside(prepared.image, prepared.spacing is not None)
    rows = []
    for k, structure in enumerate(structures):
        scores = {
            name: value * voxel_size if name in SIZE_SCORES else value for name, value in scores_of(estimate, k).items()
        }
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"case": case_id, "structure": structure, **{name: scores[name] for name in COLUMNS if name in scores}}
        if triage is None or sensitivity is None:
            row |= {"score": _WITHOUT_TRIAGE, "score_value": scores[_WITHOUT_TRIAGE]}
            row["out_of_distribution"] = None if unusual is None else "; ".join(unusual)
        else:
            known = triage.structures[structure]
            threshold = known.threshold(sensitivity).value
            row |= {"score": known.score, "score_value": known.value(scores)}
            if threshold is not None and math.isfinite(threshold):
                row["threshold"] = known.measured(threshold)
            outside = [*(unusual or ()), *intensities, *known.outside(scores)]
            if known.needs_unit and math.isnan(voxel_size):
                outside.append(f"not flagged: {known.score} {NEEDS_VOXEL_SIZE}")
            else:
                uncertainty = known.uncertainty(scores)
                row["uncertainty"] = known.percentile(uncertainty)
                row["flagged"] = None if threshold is None else uncertainty >= threshold
            row["out_of_distribution"] = "; ".join(outside)
        members = estimate.member_areas[:, k] * voxel_size * on_file
        row |= {
            "volume": scores["predicted_area"] * on_file,
            "volume_low": float(members.min()),
            "volume_high": float(members.max()),
            "unit": unit,
        }
        rows.append(row)
    return rows


def triage_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the content of `triage.csv`: the cases by their largest uncertainty, the least sure first.

    Cases that could not be compared with the validation cases come first. Among cases of equal uncertainty, as of those
    less sure than all validation cases, the order is that of their scores among the rows.
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
