"""The page on which predicted cases are looked at, `triage.html`, and the pictures that it shows."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.prediction.result_files import png_of
from edue_lightning.prediction.triage import EXPECTED_DICE
from edue_lightning.prediction.triage_table import OUTSIDE, UNKNOWN
from edue_lightning.reporting.figures import LARGEST_VARIANCE
from edue_lightning.reporting.overlay import CaseMaps
from edue_lightning.reporting.page.elements import script_json
from edue_lightning.uncertainty import reached

PAGE_FILE = "triage.html"

_MOST_SLICES = 64
_LONGEST_EDGE = 512
_CAUTION = "A flag says which cases to look at first, not which need no look."


def layers_name(case_id: str, structure: str, structures: int) -> str:
    """Return the name of the script with the pictures of a case and structure.

    Args:
        case_id: name of the case.
        structure: name of the structure.
        structures: number of structures, K.
    """
    return f"{case_id}__layers__{structure}.js" if structures > 1 else f"{case_id}__layers.js"


def layers_script(name: str, maps: CaseMaps, variance: str, images: dict[int, str] | None = None) -> str:
    """Return the content of a script that hands the pictures of one case and structure to the page.

    A script, since a page that is opened from a folder may read no other file.

    Args:
        name: name of the script's file.
        maps: maps of the case; of a volume at most 64 slices are kept, the most disputed one among them.
        variance: name of the map of disagreement.
        images: encoded slices of the image by position, to which those that are missing are added: the structures of
            a case share them.
    """
    images = {} if images is None else images
    if maps.slices:
        first = maps.most_disputed
        spread = np.linspace(0, maps.slices - 1, min(maps.slices, _MOST_SLICES - 1)).round().astype(int)
        chosen = sorted({first, *spread.tolist()})
        names = [f"{at + 1} of {maps.slices} from the feet" for at in chosen]
    else:
        first, chosen, names = 0, [0], [""]
    slices = []
    for at, where in zip(chosen, names, strict=True):
        one = maps.slice(at) if maps.slices else maps
        if at not in images:
            images[at] = _encoded(one.image)
        slices.append({"name": where, "image": images[at], "maps": _encoded(_stacked(one))})
    content = {"variance": variance, "aspect": maps.aspect, "first": chosen.index(first), "slices": slices}
    return f"edueLayers({script_json(name)}, {script_json(content)});\n"


def _stacked(maps: CaseMaps) -> NDArray[np.float32]:
    """Return three maps in [0, 1] as red, green and blue `[H, W, 3]`: probability, disagreement up to 1/4, and mask."""
    shares = (maps.probability, maps.disagreement / LARGEST_VARIANCE, reached(maps.decision, maps.threshold))
    return np.stack(shares, axis=-1).astype(np.float32)


def _encoded(values: NDArray[np.float32]) -> str:
    """Return a picture of values in [0, 1] as PNG in base64, a large one reduced."""
    picture = Image.fromarray(np.round(np.clip(values, 0, 1) * 255).astype(np.uint8))
    scale = _LONGEST_EDGE / max(picture.size)
    if scale < 1:
        width, height = (max(1, round(edge * scale)) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    return base64.b64encode(png_of(picture)).decode()


def triage_page(frame: pd.DataFrame, structures: int, key: str, rate: str = "") -> str:
    """Return the page: a list of the cases and a viewer, without references to anything but the pictures' scripts.

    Args:
        frame: content of `triage.csv`.
        structures: number of structures, K.
        key: text by which a browser tells what was noted on this prediction from others.
        rate: share of cases like those of the training that lie outside of its range, in words, see
            `limits.rate_in_words`.
    """
    rows = [_row(row, structures) for row in cast(list[dict[str, Any]], frame.to_dict("records"))]
    data = {"key": key, "cases": frame["case"].nunique(), "caution": _CAUTION, "rate": rate, "rows": rows}
    template = files("edue_lightning.prediction").joinpath("triage_page.html").read_text(encoding="utf-8")
    return template.replace("@DATA@", script_json(data))


def _row(row: Mapping[str, Any], structures: int) -> dict[str, Any]:
    outside = str(_known(row["out_of_distribution"]) or "")
    # details of what lies outside of the range, without its short names
    reason = f"{OUTSIDE}: {outside}" if outside else str(_known(row["flag_reason"]) or "")
    withheld = OUTSIDE if outside and row["score"] == EXPECTED_DICE else ""
    size = _text(row["volume"]), _text(row["volume_low"]), _text(row["volume_high"])
    values = [
        ("Score", f"{row['score']} {withheld or _text(row['score_value'])}"),
        ("Flagged from", _text(row["threshold"])),
        ("Size of the mask", f"{size[0]} {row['unit']}, with the members {size[1]} to {size[2]}" if size[0] else ""),
        ("Voxel size", _in_mm(row["voxel_size"])),
        *((name, _text(row[name])) for name in ("sv", "sv_total", "model_agreement", "entropy")),
    ]
    flagged, uncertainty = _known(row["flagged"]), _known(row["uncertainty"])
    return {
        "case": str(row["case"]),
        "structure": str(row["structure"]),
        "flagged": None if flagged is None else bool(flagged),
        "uncertainty": None if uncertainty is None else float(uncertainty),
        "unusual": bool(outside),
        "reason": reason,
        "values": [(name, value) for name, value in values if value],
        "layers": layers_name(str(row["case"]), str(row["structure"]), structures),
    }


def _known(value: Any) -> Any:
    """Return a cell, None if it is empty, not a number or infinite."""
    if value is None or value is pd.NA:
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_mm(voxel_size: Any) -> str:
    known = str(_known(voxel_size) or "")
    return known if known in ("", UNKNOWN) else f"{known} mm"


def _text(value: Any) -> str:
    known = _known(value)
    return "" if known is None else f"{float(known):.4g}"
