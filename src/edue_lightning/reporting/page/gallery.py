"""Gallery of a report: one case per group, the raters and all methods side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from edue_lightning.reporting.figures import COLOURS, CONSENSUS_COLOUR, LARGEST_VARIANCE, PREDICTION_COLOUR
from edue_lightning.reporting.page.elements import method_name
from edue_lightning.reporting.panels import Panel, cropped

_SMALLEST_EDGE, _LARGEST_EDGE = 144, 220
_PALETTE = 128


def case_gallery(panels: Mapping[str, Panel], unit: str) -> str:
    """Return one case as HTML: a tile of the raters, and one tile per method with outline, V and p(1 - p).

    Args:
        panels: panels of the same case and structure, by method.
        unit: unit of the sums of variances; empty where it is unknown.
    """
    shown = {label: cropped(panel) for label, panel in panels.items()}
    tiles = [_raters_tile(next(iter(shown.values())), unit)]
    tiles += [_method_tile(label, panel, unit) for label, panel in shown.items()]
    return f'<div class="gallery">{"".join(tiles)}</div>'


def gallery_key() -> str:
    """Return the meaning of outlines and colours, as HTML."""
    outlines = (
        f'<span class="key" style="--key:{PREDICTION_COLOUR}"></span> prediction, '
        f'<span class="key dashed" style="--key:{CONSENSUS_COLOUR}"></span> soft majority of the raters'
    )
    ramp = ", ".join(matplotlib.colors.to_hex(matplotlib.colormaps["inferno"](share)) for share in np.linspace(0, 1, 7))
    return (
        f'<p class="gallery-key">Outlines: {outlines}. Maps: 0 <span class="ramp" '
        'style="background:linear-gradient(90deg,'
        f'{ramp})"></span> {LARGEST_VARIANCE}.</p>'
    )


def _raters_tile(panel: Panel, unit: str) -> str:
    masks = [(mask > 0, COLOURS[number % len(COLOURS)], False) for number, mask in enumerate(panel.masks)]
    rows = [
        (
            f"Image with the outlines of {len(panel.masks)} raters",
            f"{len(panel.masks)} raters",
            _outlined(panel.image, masks),
        ),
        ("Variance between the raters", f"V*, sum {_sum(panel.sv_star, unit)}", _coloured(panel.rater_variance)),
    ]
    return _tile("<b>raters</b>", rows)


def _method_tile(label: str, panel: Panel, unit: str) -> str:
    outlines = [(panel.consensus, CONSENSUS_COLOUR, True), (panel.mask, PREDICTION_COLOUR, False)]
    marked = "" if panel.mask.any() else ": empty"
    rows: list[tuple[str, str, Image.Image | None]] = [
        (f"Prediction of {label} on the image{marked}", f"prediction{marked}", _outlined(panel.image, outlines))
    ]
    if panel.has_members:
        rows.append(
            (
                f"Variance between the members of {label}",
                f"V, sum {_sum(panel.sv, unit)}",
                _coloured(panel.member_variance),
            )
        )
    else:
        rows.append(("", "single network: no V", None))
    total = "" if np.isnan(panel.sv_total) else f", sum {_sum(panel.sv_total, unit)}"
    rows.append((f"p(1 - p) of {label}", f"p(1 - p){total}", _coloured(panel.total_variance)))
    return _tile(f"<b>{method_name(label)}</b>", rows, label)


def _sum(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def _tile(heading: str, rows: Sequence[tuple[str, str, Image.Image | None]], method: str | None = None) -> str:
    marked = f' data-method="{html.escape(method)}"' if method else ""
    parts = "".join(_pictured(alt, caption, picture) for alt, caption, picture in rows)
    return f'<div class="tile"{marked}>{heading}{parts}</div>'


def _pictured(alt: str, caption: str, picture: Image.Image | None) -> str:
    if picture is None:
        return f'<div class="map"><div class="no-map"></div><small>{html.escape(caption)}</small></div>'
    # the page enlarges it
    size = f'width="{picture.width}" height="{picture.height}"'
    image = f'<img alt="{html.escape(alt)}" {size} loading="lazy" src="{_encoded(picture)}">'
    return f'<div class="map">{image}<small>{html.escape(caption)}</small></div>'


def _scale(shape: Sequence[int]) -> int:
    return max(1, min(round(_SMALLEST_EDGE / max(shape)) or 1, _LARGEST_EDGE // max(shape) or 1))


def _coloured(variance: NDArray[np.float32]) -> Image.Image:
    shares = np.clip(variance / LARGEST_VARIANCE, 0, 1)
    colours = np.round(255 * matplotlib.colormaps["inferno"](shares)[..., :3]).astype(np.uint8)
    return Image.fromarray(colours)


def _outlined(image: NDArray[np.float32], outlines: Sequence[tuple[NDArray[np.bool_], str, bool]]) -> Image.Image:
    """Return an enlarged image with the borders of masks, dashed ones with gaps."""
    grey = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
    picture = np.asarray(_enlarged(np.round(255 * np.clip(grey, 0, 1)).astype(np.uint8))).copy()
    scale = _scale(image.shape[:2])
    for mask, colour, dashed in outlines:
        border = _border(np.kron(mask, np.ones((scale, scale), dtype=bool)))
        if dashed:
            rows, columns = np.indices(border.shape)
            border &= (rows + columns) % 8 < 5
        picture[border] = np.round(255 * np.array(to_rgb(colour)))
    return Image.fromarray(picture)


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that have a neighbour outside of it, or lie at the image's edge."""
    padded = np.pad(mask, 2)
    inner = padded.copy()
    for axis in (0, 1):
        for step in (-2, 2):
            inner &= np.roll(padded, step, axis=axis)
    found: NDArray[np.bool_] = (padded & ~inner)[2:-2, 2:-2]
    return found


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    scale = _scale(pixels.shape[:2])
    return Image.fromarray(np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1))


def _encoded(picture: Image.Image) -> str:
    """Return a picture as the address of a PNG with few colours."""
    buffer = io.BytesIO()
    picture.quantize(_PALETTE).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def gallery_cases(panels: Mapping[tuple[str, str], Mapping[str, Panel]], unit: str) -> Iterator[tuple[str, str]]:
    """Yield heading and HTML of each case.

    Args:
        panels: panels by case and structure, then by method.
        unit: unit of the sums of variances; empty where it is unknown.
    """
    for (case_id, structure), of_case in panels.items():
        yield f"Case {case_id}, {structure}", case_gallery(of_case, unit)
