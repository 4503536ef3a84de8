"""The list of predicted cases, those that a human must look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from edue_lightning.data.preparation import PreparedImage
from edue_lightning.prediction.estimate import Estimate
from edue_lightning.prediction.triage import Triage, scores_of

COLUMNS = (
    *("case", "structure", "flagged", "uncertainty", "score", "score_value", "threshold"),
    *(
        "out_of_distribution",
        "sv",
        "sv_total",
        "sv_normalised",
        "layer_agreement",
        "aula",
        "model_agreement",
        "entropy",
    ),
    *("volume", "volume_low", "volume_high", "unit"),
)
_WITHOUT_TRIAGE = "sv_total"


def triage_rows(
    case_id: str,
    prepared: PreparedImage,
    estimate: Estimate,
    structures: Sequence[str],
    triage: Triage | None,
    sensitivity: float | None,
) -> list[dict[str, Any]]:
    """Return a row for each structure of a case, plain values by `COLUMNS`.

    - `flagged`: whether the score reaches the threshold that, on the validation cases, finds `sensitivity` of the poor
      segmentations; None where there is no threshold.
    - `uncertainty`: the score, turned so that more is less sure, in interquartile ranges above the median of
      the validation cases. `score`, `score_value` and `threshold`: which one it is, as it was measured.
    - `out_of_distribution`: what lies outside of the training cases' range, empty where nothing does.
    - `volume`: of the mask, with the smallest and largest of the members' own; area of a picture.

    Args:
        case_id: of the case.
        prepared: what the network saw.
        estimate: what it says of it.
        structures: names of the K structures.
        triage: what the checkpoint knows of other cases, or None.
        sensitivity: share of the poor cases to be flagged, or None without `triage`.
    """
    rows = []
    intensities = [] if triage is None else triage.outside(prepared.image, prepared.spacing is not None)
    for k, structure in enumerate(structures):
        scores = scores_of(estimate, k)
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"case": case_id, "structure": structure, **{name: scores[name] for name in COLUMNS if name in scores}}
        if triage is None or sensitivity is None:
            row |= {"score": _WITHOUT_TRIAGE, "score_value": scores[_WITHOUT_TRIAGE]}
            row["uncertainty"] = scores[_WITHOUT_TRIAGE]
        else:
            known = triage.structures[structure]
            uncertainty = known.uncertainty(scores)
            threshold = known.threshold(sensitivity).value
            row |= {
                "score": known.score,
                "score_value": known.value(scores),
                "uncertainty": known.relative(uncertainty),
                "threshold": None if threshold is None else known.measured(threshold),
                "flagged": None if threshold is None else uncertainty >= threshold,
                "out_of_distribution": "; ".join([*intensities, *known.outside(scores)]),
            }
        members = estimate.member_areas[:, k]
        row |= {
            "volume": scores["predicted_area"],
            "volume_low": float(members.min()),
            "volume_high": float(members.max()),
            "unit": _unit(prepared),
        }
        rows.append(row)
    return rows


def triage_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the content of `triage.csv`: the cases by their largest uncertainty, the least sure first."""
    frame = pd.DataFrame([dict(row) for row in rows], columns=list(COLUMNS))
    largest = frame.groupby("case", sort=False)["uncertainty"].transform("max").astype(float)
    order = pd.DataFrame({"largest": largest, "own": frame["uncertainty"].astype(float), "case": frame["case"]})
    order = order.sort_values(["largest", "case", "own"], ascending=[False, True, False], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)


def _unit(prepared: PreparedImage) -> str:
    dims = prepared.image.ndim - 1
    return f"mm{dims}" if prepared.spacing else {2: "pixels", 3: "voxels"}[dims]
