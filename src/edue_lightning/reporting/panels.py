"""Maps of a few cases, stored so that the same case can be drawn for several methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from edue_lightning.atomic import write_arrays
from edue_lightning.data.geometry import slice_directions
from edue_lightning.errors import UserError
from edue_lightning.metrics.ties import tied
from edue_lightning.uncertainty import Tie, majority, reached

PANEL_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)

LARGEST_WHOLE = 160
"""Longest edge in pixels of an image that is drawn whole; a larger one is cropped around the outlines."""

SMALLEST_CROP = 96

SMALLEST_PANEL = 24
"""Shortest edge in pixels of a map that is cropped to its structure."""

_MARGIN = 0.35
# slices from the feet up, rows from anterior to posterior, columns from the patient's right to the left
_RADIOLOGICAL = ("S", "P", "L")
# of a slice: the axis of columns is the first of its two, and rows and columns grow in these directions
_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_GROWING = frozenset("LPI")


@dataclass(frozen=True)
class Panel:
    """Maps of one case and structure: of a 2D image, or of the slice of a volume with the largest V*.

    Volumes and NIfTI slices are turned as radiologists see them, pictures are as they are stored.
    A large image is cropped around the outlines.

    Attributes:
        case_id: id of the case.
        structure: name of the structure.
        image: `[H, W]` or `[H, W, 3]`, scaled to [0, 1].
        masks: masks of the valid raters, `[R, H, W]` uint8.
        rater_variance: V*, `[H, W]`.
        member_variance: V, `[H, W]`; 0 for a single network, which has none.
        mean_probability: p, `[H, W]`.
        sv: sum of V over the whole image or volume, mm² or mm³ (pixels or voxels where the spacing is unknown); NaN for
            a single network.
        sv_star: sum of V*.
        sv_total: sum of p(1 - p); NaN in files of earlier versions.
        decision: map that the mask is taken from, `[H, W]`; None in files of earlier versions, where it was p.
        threshold: threshold of the decision.
        majority_tie: class of a pixel that exactly half of the raters marked, in the soft-majority mask.
        agreed: soft-majority mask of a structure that excludes others, whose masks it depends on, `[H, W]`; None for
            other structures.
    """

    case_id: str
    structure: str
    image: NDArray[np.float32]
    masks: NDArray[np.uint8]
    rater_variance: NDArray[np.float32]
    member_variance: NDArray[np.float32]
    mean_probability: NDArray[np.float32]
    sv: float
    sv_star: float
    sv_total: float = float("nan")
    decision: NDArray[np.float32] | None = None
    threshold: float = 0.5
    majority_tie: Tie = "foreground"
    agreed: NDArray[np.bool_] | None = None

    @property
    def has_members(self) -> bool:
        """Whether V is defined. Earlier versions stored 0 for a single network."""
        stored_as_zero = np.isnan(self.sv_total) and self.sv == 0 and not self.member_variance.any()
        return not (np.isnan(self.sv) or stored_as_zero)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Predicted mask, `[H, W]`."""
        return reached(self.mean_probability if self.decision is None else self.decision, self.threshold)

    @property
    def consensus(self) -> NDArray[np.bool_]:
        """Soft-majority mask of the raters, `[H, W]`."""
        if self.agreed is not None:
            return self.agreed
        return majority(torch.from_numpy(self.masks.mean(axis=0)), self.majority_tie).numpy()

    @property
    def total_variance(self) -> NDArray[np.float32]:
        """Map of p(1 - p), `[H, W]`."""
        return self.mean_probability * (1 - self.mean_probability)

    @property
    def model_variance(self) -> NDArray[np.float32]:
        """Map to draw beside V*: V, or p(1 - p) of a single network, `[H, W]`."""
        return self.member_variance if self.has_members else self.total_variance

    @property
    def model_variance_title(self) -> str:
        """Name of `model_variance`, with its sum over the whole image or volume where that is known."""
        name, total = ("SV", self.sv) if self.has_members else ("p(1 - p)", self.sv_total)
        return name if np.isnan(total) else f"{name} {total:.1f}"


def choose_panel_cases(sv_star: NDArray[np.float64]) -> list[int]:
    """Return the cases to draw: those at fixed quantiles of the raters' disagreement.

    They depend on the raters alone, so every method is drawn on the same cases.

    Args:
        sv_star: `[N]`; NaN for cases with fewer than two raters, which are not drawn.

    Returns:
        at most five positions, in order of increasing disagreement.
    """
    defined = np.flatnonzero(~np.isnan(sv_star))
    if not len(defined):
        return []
    ordered = defined[np.argsort(tied(sv_star[defined]), kind="stable")]
    ranks = [round(quantile * (len(ordered) - 1)) for quantile in PANEL_QUANTILES]
    return [int(ordered[rank]) for rank in dict.fromkeys(ranks)]


def most_disputed_slice(rater_variance: NDArray[np.float32]) -> int:
    """Return the first-axis position of a volume `[D, H, W]` with the largest sum of V*."""
    return int(rater_variance.sum(axis=(1, 2)).argmax())


def radiological(array: NDArray, affine: NDArray[np.float64]) -> NDArray:
    """Return a volume as radiologists see it: feet first, anterior on top, the patient's right on the left.

    Args:
        array: `[..., I, J, K]`.
        affine: affine from voxel indices to mm (RAS), `[4, 4]`.

    Returns:
        `[..., slices, rows, columns]`.
    """
    spatial_first = np.moveaxis(array, range(-3, 0), range(3))
    return np.moveaxis(apply_orientation(spatial_first, _turn(affine)), range(3), range(-3, 0))


def radiological_spacing(spacing: Sequence[float], affine: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the spacing of the axes of a volume reoriented by `radiological`."""
    return tuple(spacing[axis] for axis in np.argsort(_turn(affine)[:, 0]))


def _turn(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    turn: NDArray[np.float64] = ornt_transform(io_orientation(affine), axcodes2ornt(_RADIOLOGICAL))
    return turn


def radiological_slice(array: NDArray, storage: str | None) -> NDArray:
    """Return a 2D image as radiologists see its plane, if its file says how its axes run.

    Axial: anterior on top, the patient's right on the left; coronal: the head on top, the right on the left; sagittal:
    the head on top, anterior on the left. Pictures stay as they are.

    Args:
        array: `[..., H, W]`.
        storage: see `data.geometry.slice_storage`; None if it is unknown.
    """
    turn = _slice_turn(storage)
    if turn is None:
        return array
    swapped, flipped = turn
    turned = np.flip(array, tuple(axis - 2 for axis in range(2) if flipped[axis]))
    return np.swapaxes(turned, -1, -2) if swapped else turned


def radiological_slice_spacing(spacing: Sequence[float], storage: str | None) -> tuple[float, ...]:
    """Return the spacing of the axes of a 2D image turned by `radiological_slice`."""
    turn = _slice_turn(storage)
    return tuple(spacing) if turn is None or not turn[0] else tuple(spacing)[::-1]


def _slice_turn(storage: str | None) -> tuple[bool, tuple[bool, bool]] | None:
    """Return whether the axes of a slice are swapped, and which are flipped before; None to leave it as it is."""
    directions = slice_directions(storage) or ""
    if len(directions) != 2 or not set(directions) <= _AXES.keys():
        return None
    first, second = directions[0], directions[1]
    return _AXES[first] < _AXES[second], (first not in _GROWING, second not in _GROWING)


def view_window(marked: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the rows and columns to draw: all of a small image, a square around the marked pixels of a large one."""
    height, width = marked.shape
    if max(height, width) <= LARGEST_WHOLE or not marked.any():
        return slice(0, height), slice(0, width)
    low, high = marked_extent(marked)
    edge = max(SMALLEST_CROP, round(float((high - low).max()) * (1 + 2 * _MARGIN)))
    return _square(low, high, edge, marked.shape)


def marked_extent(marked: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first marked row and column, and those after the last."""
    positions = np.argwhere(marked)
    return positions.min(axis=0), positions.max(axis=0) + 1


def cropped(panel: Panel, smallest: int = SMALLEST_PANEL) -> Panel:
    """Return the part of a panel around the raters' outlines; all of it where no rater marked anything.

    The crop depends on the raters alone, so it is the same for every method.

    Args:
        panel: the panel.
        smallest: shortest edge of the crop in pixels.
    """
    marked = panel.masks.max(axis=0)
    if not marked.any():
        return panel
    low, high = marked_extent(marked)
    edge = max(smallest, round(float((high - low).max()) * (1 + 2 * _MARGIN)))
    rows, columns = _square(low, high, edge, marked.shape)
    maps: dict[str, Any] = {
        field.name: value[..., rows, columns]
        for field in fields(panel)
        if isinstance(value := getattr(panel, field.name), np.ndarray) and field.name != "image"
    }
    return replace(panel, image=panel.image[rows, columns], **maps)


def _square(low: NDArray[np.intp], high: NDArray[np.intp], edge: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of a square around an extent, within the image."""
    start = np.clip((low + high - edge) // 2, 0, np.maximum(np.array(shape) - edge, 0))
    stop = np.minimum(start + edge, shape)
    return slice(int(start[0]), int(stop[0])), slice(int(start[1]), int(stop[1]))


def displayable(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return channels `[C, H, W]` as a picture in [0, 1]: three channels as colours, otherwise the first as grey."""
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    low, high = np.percentile(picture, [0.5, 99.5])
    scaled: NDArray[np.float32] = np.clip((picture - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return scaled


def save_panels(panels: Sequence[Panel], path: Path) -> None:
    """Write panels as an `npz` archive of plain arrays."""
    arrays = {
        f"{number}/{field.name}": np.asarray(getattr(panel, field.name))
        for number, panel in enumerate(panels)
        for field in fields(Panel)
        if getattr(panel, field.name) is not None
    }
    write_arrays(path, arrays)


def load_panels(path: Path) -> list[Panel]:
    """Read the panels of a run.

    Raises:
        UserError: if the file does not exist or is damaged.
    """
    panels = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            for number in range(len({name.split("/")[0] for name in archive.files})):
                # files of earlier versions lack fields with a default
                stored = [field.name for field in fields(Panel) if f"{number}/{field.name}" in archive.files]
                values = {name: archive[f"{number}/{name}"] for name in stored}
                scalars = {name: value.item() for name, value in values.items() if value.ndim == 0}
                panels.append(Panel(**{**values, **scalars}))
    # decoders raise many types of error for damaged files
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({error}); run the evaluation again") from error
    return panels
