"""Contact sheet: a few cases of a data set with every rater's outlines, to look at before training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from edue_lightning.metrics.ties import tied
from edue_lightning.reporting.figures import COLOURS
from edue_lightning.reporting.panels import (
    displayable,
    marked_extent,
    radiological,
    radiological_slice,
    radiological_slice_spacing,
    radiological_spacing,
    view_window,
)

MOST_CASES = 12
MOST_CHANNELS = 4
"""Largest number of channels drawn side by side."""

_COLUMNS = 4
_MOST_PICTURES_ABREAST = 6
_PICTURE_INCHES = 2.9
_CHANNEL_INCHES = 2.3
_TITLE_LINE_INCHES = 0.12
# widths of a legend's line and of one letter
_HANDLE_INCHES, _LETTER_INCHES = 0.6, 0.07
_GAP = 3
_MARGIN = 0.35
_SMALLEST_MARGIN = 10
_WINDOW_PERCENTILES = (0.5, 99.5)
# solid, dashed, dotted, dash and dot
_LINE_STYLES: Sequence[tuple[float, Sequence[float]]] = ((0, ()), (0, (3, 1.2)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_SHADOW = "#00000070"
# without black, which is invisible on a dark image
_RATER_COLOURS = COLOURS[:-1]


@dataclass(frozen=True)
class SheetPanel:
    """One case as it is drawn.

    Attributes:
        title: lines above the picture.
        pictures: one picture per channel, or one in colours; each `[H, W]` or `[H, W, 3]` in [0, 1].
        masks: masks of all raters, `[R, K, H, W]`; zero for a rater without outlines.
        aspect: height of a pixel over its width.
    """

    title: str
    pictures: Sequence[NDArray[np.float32]]
    masks: NDArray[np.uint8]
    aspect: float


def choose_sheet_cases(sv_star: NDArray[np.float64]) -> list[int]:
    """Return the cases to draw, at evenly spaced quantiles of the raters' disagreement.

    Args:
        sv_star: `[N]`; NaN for cases with fewer than two raters. They are drawn only if no case has two raters, then
            evenly spaced in their order.

    Returns:
        at most `MOST_CASES` positions, from least to most disagreement.
    """
    defined = np.flatnonzero(~np.isnan(sv_star))
    ordered = defined[np.argsort(tied(sv_star[defined]), kind="stable")] if len(defined) else np.arange(len(sv_star))
    ranks = np.linspace(0, len(ordered) - 1, min(MOST_CASES, len(ordered))).round().astype(int)
    return ordered[ranks].tolist()


def sheet_panel(
    case_id: str,
    caption: str,
    image: NDArray[np.float32],
    masks: NDArray[np.uint8],
    valid: NDArray[np.bool_],
    spacing: Sequence[float] | None = None,
    affine: NDArray[np.float64] | None = None,
    storage: str | None = None,
) -> SheetPanel:
    """Choose the part of a case to draw: the slice of a volume with the largest sum of V*, a crop of a large image.

    A volume with an affine is cut axially and shown as radiologists see it, the patient's right on the left and
    anterior on top; one without is cut along its first axis. Where no rater disagrees, the slice with most marked
    voxels is drawn.

    Args:
        case_id: first line of the title.
        caption: second line.
        image: `[C, *S]`. Three channels in 2D are drawn as colours, others side by side.
        masks: `[R, K, *S]` in {0, 1}; zero for raters without outlines.
        valid: `[R]`, whether the rater gave outlines.
        spacing: mm along each spatial axis, or None.
        affine: affine of a volume from voxel indices to mm (RAS), `[4, 4]`, or None.
        storage: how the file of a 2D image stores its axes, see `radiological_slice`.
    """
    lines = [case_id, caption]
    spacing = tuple(spacing or (1.0,) * (image.ndim - 1))
    if image.ndim == 4:
        if affine is not None:
            image, masks = radiological(image, affine), radiological(masks, affine)
            spacing = radiological_spacing(spacing, affine)
        shown = _slice_to_draw(masks[valid])
        plane = "slice" if affine is None else "axial slice"
        lines.append(f"{plane} {shown + 1} of {image.shape[1]}")
        pictured, masks, spacing = _channels(image[:, shown]), masks[:, :, shown], spacing[1:]
    else:
        image, masks = radiological_slice(image, storage), radiological_slice(masks, storage)
        spacing = radiological_slice_spacing(spacing, storage)
        pictured = [image] if len(image) == 3 else _channels(image)
    outlined = masks.max(axis=(0, 1))
    rows, columns = view_window(outlined)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if (height, width) != masks.shape[2:]:
        lines.append(f"{height}x{width} of {masks.shape[2]}x{masks.shape[3]} pixels")
    if len(image) > MOST_CHANNELS:
        lines.append(f"channels 1 to {MOST_CHANNELS} of {len(image)}")
    return SheetPanel(
        title="\n".join([*lines[:2], ", ".join(lines[2:])]).rstrip(),
        pictures=[_picture(channels[:, rows, columns], outlined[rows, columns]) for channels in pictured],
        masks=masks[:, :, rows, columns].copy(),
        aspect=spacing[0] / spacing[1],
    )


def contact_sheet(
    panels: Sequence[SheetPanel], raters: Sequence[str], structures: Sequence[str], notes: Sequence[str] = ()
) -> Figure:
    """Draw cases with every rater's outlines: one colour per rater, one line style per structure.

    Args:
        panels: at least one case.
        raters: names of the R raters.
        structures: names of the K structures.
        notes: caveats to show below the pictures.
    """
    abreast = max(len(panel.pictures) for panel in panels)
    columns = min(len(panels), _COLUMNS if abreast == 1 else _MOST_PICTURES_ABREAST // abreast)
    rows = -(-len(panels) // columns)
    edge = _PICTURE_INCHES if abreast == 1 else _CHANNEL_INCHES
    # wide enough for the legend and the notes of a single case
    width = edge * max(columns * abreast, 2)
    handles = _legend_handles(raters, structures)
    longest = max(len(str(handle.get_label())) for handle in handles)
    legend_columns = max(1, int(width / (_HANDLE_INCHES + _LETTER_INCHES * longest)))
    titles = _TITLE_LINE_INCHES * max(panel.title.count("\n") + 2 for panel in panels)
    around = 0.2 * (1 + len(notes) - (-len(handles) // legend_columns))
    size = (width, rows * (edge + titles) + around)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for drawn, panel in zip(axes, panels, strict=False):
        _draw(drawn, panel)
    for drawn in axes:
        drawn.axis("off")
    figure.legend(handles=handles, loc="outside upper center", ncols=legend_columns, fontsize=8, frameon=False)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=8)
    return figure


def _legend_handles(raters: Sequence[str], structures: Sequence[str]) -> list[Line2D]:
    of_raters = [
        Line2D([], [], color=colour, label=name) for colour, name in zip(_colours(len(raters)), raters, strict=True)
    ]
    if len(structures) < 2:
        return of_raters
    of_structures = [Line2D([], [], color="0.2", linestyle=_line_style(k), label=n) for k, n in enumerate(structures)]
    return of_raters + of_structures


def _slice_to_draw(masks: NDArray[np.uint8]) -> int:
    """Return the first-axis position to draw of valid raters' masks `[n, K, D, H, W]`."""
    depth = masks.shape[2]
    if not masks.any():
        return depth // 2
    # one slice at a time: shares of a whole volume would take many times the memory of its masks
    shares = (masks[:, :, position].mean(axis=0) for position in range(depth))
    disputed, marked = np.array([((share * (1 - share)).sum(), share.sum()) for share in shares]).T
    return int((disputed if disputed.any() else marked).argmax())


def _channels(image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [image[channel : channel + 1] for channel in range(min(len(image), MOST_CHANNELS))]


def _picture(channels: NDArray[np.float32], marked: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return colours unchanged, and grey values scaled to the intensities near the marked voxels.

    This acts as a reading window: otherwise air or bone further away would leave no contrast at the outlines.
    """
    if len(channels) == 3 or not marked.any():
        return displayable(channels)
    low, high = marked_extent(marked)
    margin = max(_SMALLEST_MARGIN, round(float((high - low).max()) * _MARGIN))
    rows, columns = (slice(max(start - margin, 0), stop + margin) for start, stop in zip(low, high, strict=True))
    darkest, brightest = np.percentile(channels[0, rows, columns], _WINDOW_PERCENTILES)
    spread: NDArray[np.float32] = np.clip((channels[0] - darkest) / max(brightest - darkest, 1e-6), 0, 1)
    return spread


def _draw(axes: Axes, panel: SheetPanel) -> None:
    height, width = panel.masks.shape[2:]
    for number, picture in enumerate(panel.pictures):
        left = number * (width + _GAP)
        shown = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=shown)
        _draw_outlines(axes, panel.masks, left)
        if len(panel.pictures) > 1:
            shadow = patheffects.withStroke(linewidth=1.5, foreground="black")
            named = axes.text(left, 0, f"channel {number + 1}", va="top", fontsize=6, color="white")
            named.set_path_effects([shadow])
    axes.set(xlim=(-1, len(panel.pictures) * (width + _GAP) - _GAP), ylim=(height, -1))
    axes.set_aspect(panel.aspect)
    axes.set_title(panel.title, fontsize=7)


def _draw_outlines(axes: Axes, masks: NDArray[np.uint8], left: int) -> None:
    raters, structures, height, width = masks.shape
    colours = _colours(raters)
    # a rim around the image closes outlines that touch the edge
    across, down = np.arange(-1, width + 1) + left, np.arange(-1, height + 1)
    for rater, structure in itertools.product(range(raters), range(structures)):
        if not masks[rater, structure].any():
            continue
        rimmed = np.pad(masks[rater, structure], 1)
        # a shadow below all lines keeps a line visible on pixels of its own colour
        for order, colour, line_width in ((2, _SHADOW, 2.0), (3, colours[rater], 1.0)):
            axes.contour(
                *(across, down, rimmed),
                levels=[0.5],
                colors=[colour],
                linestyles=[_line_style(structure)],
                linewidths=line_width,
                zorder=order,
            )


def _colours(raters: int) -> list[str]:
    if raters <= len(_RATER_COLOURS):
        return list(_RATER_COLOURS[:raters])
    spectrum = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, raters))
    return [matplotlib.colors.to_hex(colour) for colour in spectrum]


def _line_style(structure: int) -> tuple[float, Sequence[float]]:
    return _LINE_STYLES[structure % len(_LINE_STYLES)]
