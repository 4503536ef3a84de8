"""Recovery of masks from outlines that a rater drew on a copy of the photograph.

The raw RIGA release (Almazroa et al., "Retinal fundus images for glaucoma analysis: the RIGA dataset", SPIE Medical
Imaging 2018) has no masks: each rater drew the outlines of disc and cup on a copy of the photograph, thin, in black or
blue. Photographs of one source were saved as JPEG before and after, so that photograph and copy differ not only in the
lines but also, by less, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import draw, morphology
from skimage.filters import apply_hysteresis_threshold
from skimage.morphology import convex_hull_image

from edue_lightning.data.images import ImageError
from edue_lightning.text import times

LONGEST_GAP = 20
"""Largest distance in pixels between two ends of a line that are joined."""

_GAPS = (0, 5, 10, LONGEST_GAP)
"""Lengths of gaps that are closed one after the other until the outlines are closed."""

_STEPS = 8
"""Number of pixels from which the direction of a line's end is taken."""

_STRAIGHT = 0.4
"""Cosine of the angle by which a line may turn in a gap."""

_BLACK = 24
"""Largest grey level of the frame around a fundus."""

_MOST_NOISE = 20
"""Grey levels that at most a tenth of the pixels may differ by: JPEG of a grainy photograph has 12, another eye 30."""

_BLOCK = 8
_PIXELS_OF_A_LINE = 6
"""Differing pixels of a block of 8 x 8 that a line crosses; where JPEG alone differs that much, it is in fewer."""

_SMALLEST_PART = 0.1
"""Size of a patch of such blocks that counts as part of the drawing, as a share of the largest patch."""

_MARGIN = 2 * LONGEST_GAP
"""Pixels kept around the drawing, so that nothing done to a line reaches the border."""

_ECHO = 8
"""Pixels around a line within which JPEG repeats it faintly."""

_FAINTEST = 0.35
"""Contrast that a line keeps where its colour is that of a vessel, as a share of its contrast close by."""

_SMALLEST_HOLE = 0.005
"""Share of the enclosed area; anything smaller lies between two strokes of one line."""

_MOST_HOLES = 4
"""Largest number of enclosed regions: the cup, and the pieces of the disc around it. More is no disc with a cup."""

_LONGEST_TAIL = 0.06
"""Largest length of a loose end that counts as a slip of the pen, as a share of the disc's outline."""

_CLEARLY_INNER = 0.2
"""Smallest margin by which the cup lies between the other holes more than any of these does, as a share of area."""

_LEAST_SOLIDITY = 0.8
"""Smallest share of its convex hull that a cup fills."""

_NO_LINE = "has no line that its photograph does not have too; draw the outlines, or remove the file"

# direct neighbours first, so that a corner is followed and not taken for a branch
_NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
_ALL_AROUND = np.ones((3, 3), dtype=np.bool_)

Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]
Distance = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Drawing:
    """Outlines of one rater.

    Attributes:
        disc: the outer outline, filled, `[H, W]`.
        cup: the inner outline, filled, `[H, W]`, a part of the disc; None if none was drawn.
    """

    disc: Mask
    cup: Mask | None


def recover(photograph: Picture, drawing: Picture) -> Drawing:
    """Fill the outlines of disc and cup that were drawn on a copy of a photograph.

    A mask ends at the centre of its line, so its size does not depend on the width of the pen.
    Gaps of up to `LONGEST_GAP` pixels are closed, with a straight line. A cup may touch the disc's line or share a part
    of it.

    Args:
        photograph: the untouched one, RGB, `[H, W, 3]`.
        drawing: the copy with the lines, RGB, `[H, W, 3]`. Both may have been saved as JPEG, each for itself.

    Raises:
        ImageError: if the two are not copies of one photograph, if there is no line, or if an outline is open by more
            than the longest gap; nothing is guessed.
    """
    if photograph.shape != drawing.shape:
        sizes = [times(picture.shape[:2]) for picture in (drawing, photograph)]
        raise ImageError(f"is {sizes[0]}, but its photograph is {sizes[1]}; replace it with a copy of the photograph")
    window = _locate(photograph, drawing)
    line = np.pad(_trace(photograph[window], drawing[window]), _MARGIN)
    # a loose end counts as a slip of the pen only if it cannot be joined to another end
    for longest_tail, longest_gap in product((0.0, _LONGEST_TAIL), _GAPS):
        found = _fill(_bridge(line, longest_gap) if longest_gap else line, longest_tail)
        if found is not None:
            disc, cup = found
            shape = photograph.shape[:2]
            return Drawing(_placed(disc, window, shape), None if cup is None else _placed(cup, window, shape))
    raise ImageError(
        f"has no closed outline of a disc with at most one cup in it; close gaps of more than {LONGEST_GAP} pixels, "
        "or remove the file"
    )


def _locate(photograph: Picture, drawing: Picture) -> tuple[slice, slice]:
    """Return the window with the drawing.

    Raises:
        ImageError: if the pictures differ everywhere or nowhere.
    """
    channels = np.maximum(photograph, drawing) - np.minimum(photograph, drawing)
    difference = np.maximum(np.maximum(channels[..., 0], channels[..., 1]), channels[..., 2])
    sample, lit = difference[::4, ::4], photograph[::4, ::4].max(axis=-1) > _BLACK
    # the frame around a fundus is black in both and would hide the noise
    noise = float(np.quantile(sample[lit] if lit.any() else sample, 0.9))
    if noise > _MOST_NOISE:
        raise ImageError("differs from its photograph everywhere; replace it with a drawing on that photograph")
    counts = _count_in_blocks(difference > 3 * noise + 6)
    counts[counts < _PIXELS_OF_A_LINE] = 0
    patches, _ = ndimage.label(ndimage.binary_dilation(counts, _ALL_AROUND), _ALL_AROUND)
    sizes = np.bincount(patches.ravel(), counts.ravel())
    if not sizes.any():
        raise ImageError(_NO_LINE)
    drawn = (counts > 0) & (sizes >= _SMALLEST_PART * sizes.max())[patches]
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) * _BLOCK for axis in (1, 0))
    return (
        slice(max(0, int(rows[0]) - _MARGIN), int(rows[-1]) + _BLOCK + _MARGIN),
        slice(max(0, int(columns[0]) - _MARGIN), int(columns[-1]) + _BLOCK + _MARGIN),
    )


def _count_in_blocks(pixels: Mask) -> NDArray[np.int64]:
    """Return the number of true pixels per block; the last blocks are padded."""
    missing = [(0, -size % _BLOCK) for size in pixels.shape]
    whole = np.pad(pixels, missing)
    rows, columns = (size // _BLOCK for size in whole.shape)
    counts: NDArray[np.int64] = whole.reshape(rows, _BLOCK, columns, _BLOCK).sum(axis=(1, 3))
    return counts


def _trace(photograph: Picture, drawing: Picture) -> Mask:
    """Return the pixels of the drawn lines.

    Raises:
        ImageError: if no pixel differs by more than the noise.
    """
    signed = drawing.astype(np.float32) - photograph
    # smooth the signed difference, in which noise cancels, before taking the distance, in which it would not
    distance = np.linalg.norm(ndimage.gaussian_filter(signed, (0.8, 0.8, 0)), axis=-1)
    noise = float(np.median(distance))
    # any closed line in the window has at least this number of pixels
    some = min(distance.shape)
    contrast = float(np.partition(distance.ravel(), -some)[-some])
    enough = np.maximum(5 * noise + 3, _FAINTEST * ndimage.maximum_filter(distance, 2 * _ECHO + 1))
    line: Mask = apply_hysteresis_threshold(np.where(distance >= enough, distance, 0), 0, contrast / 2)
    if not line.any():
        raise ImageError(_NO_LINE)
    return line


def _bridge(line: Mask, longest: int) -> Mask:
    """Close the gaps that are not longer than `longest`."""
    thickness = _thickness(line)
    pruned = int(thickness)
    places, directions = _ends(line, pruned)
    gaps = places[None] - places[:, None]
    lengths = np.linalg.norm(gaps, axis=-1)
    # both ends must point at each other, or the disc's outline would be joined to the cup's
    ahead = (gaps * directions[:, None]).sum(axis=-1) > _STRAIGHT * lengths
    # a skeleton ends half of the pen's width before its line does, even where it is not pruned
    close = lengths <= longest + thickness + 2 * pruned
    firsts, seconds = np.nonzero(np.triu(ahead & ahead.T & close, 1))
    bridged = line.copy()
    joined: set[int] = set()
    for first, second in sorted(zip(firsts.tolist(), seconds.tolist(), strict=True), key=lambda pair: lengths[pair]):
        if not joined & {first, second}:
            joined |= {first, second}
            bridged[draw.line(*places[first], *places[second])] = True
    return bridged


def _ends(line: Mask, pruned: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ends of the lines, `[N, 2]`, and the outward unit vectors there, `[N, 2]`.

    First, `pruned` pixels of the skeleton are removed from each end: a skeleton has short spurs towards every corner of
    the line, and forks at its ends.
    """
    skeleton = morphology.skeletonize(line)
    for _ in range(pruned):
        # thin again: a pixel at a corner would have two neighbours, and the end would be missed
        skeleton = morphology.skeletonize(skeleton & ~_tips(skeleton))
    tips = np.argwhere(_tips(skeleton))
    paths = [path for row, column in tips if len(path := _walk(skeleton, (int(row), int(column)))) > 1]
    places = np.array([path[0] for path in paths], dtype=np.int64).reshape(-1, 2)
    directions = places - np.array([path[-1] for path in paths]).reshape(-1, 2)
    return places, directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _tips(skeleton: Mask) -> Mask:
    """Return the pixels of a skeleton with one neighbour."""
    tips: Mask = skeleton & (ndimage.convolve(skeleton.astype(np.int8), _ALL_AROUND.astype(np.int8)) == 2)
    return tips


def _walk(skeleton: Mask, start: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the pixels of a skeleton from one of its ends, up to a branch or for `_STEPS`."""
    path = [start]
    while len(path) <= _STEPS:
        row, column = path[-1]
        near = [(row + down, column + right) for down, right in _NEIGHBOURS]
        ahead = [place for place in near if skeleton[place] and place not in path]
        branches = len(ahead) > 1 and max(abs(ahead[0][axis] - ahead[1][axis]) for axis in (0, 1)) > 1
        if not ahead or branches:
            break
        path.append(ahead[0])
    return path


def _fill(line: Mask, longest_tail: float) -> tuple[Mask, Mask | None] | None:
    """Return disc and cup; None if an outline is open or the two cannot be told apart.

    The lines divide the plane into the outside, the cup and the rest of the disc; that is one hole around the cup, or,
    where the cup touches the disc's line, one or more beside it.
    """
    thickness = _thickness(line)
    regions, _ = ndimage.label(~line)
    outside = regions == regions[0, 0]
    holes, slits = _holes(regions, thickness)
    # a slit beside the only hole may be the rim of a large cup, or lie between two strokes of one line
    if not 1 <= len(holes) <= _MOST_HOLES or (slits and len(holes) == 1):
        return None
    distances = np.stack([ndimage.distance_transform_edt(~region) for region in (outside, *holes)])
    circumference = 2 * np.sqrt(np.pi * np.count_nonzero(holes))
    nearest, second_nearest = np.partition(distances, 1, axis=0)[:2]
    width = 2 * ndimage.maximum_filter(nearest, int(4 * thickness))
    tails = line & (second_nearest > width + 3)
    dot = 2 * thickness + 2
    if _longest(tails) > max(dot, longest_tail * circumference) or _longest(_strays(line, distances)) > dot:
        return None
    # where the lines of disc and cup merge, each keeps half of the pen's width
    half = thickness / 2 + 1
    disc = _whole(distances[0] >= np.minimum(distances[1:].min(axis=0), half))
    if len(holes) == 1:
        return disc, None
    inner = _innermost(holes)
    if inner is None:
        return None
    others = np.delete(distances, 1 + inner, axis=0).min(axis=0)
    return disc, disc & _whole(distances[1 + inner] <= np.minimum(others, half))


def _thickness(line: Mask) -> float:
    """Return the usual width of the lines in pixels."""
    depth = ndimage.distance_transform_edt(line)
    ridge = line & (depth == ndimage.maximum_filter(depth, 3))
    return 2 * float(np.median(depth[ridge])) - 1


def _holes(regions: NDArray[np.int32], thickness: float) -> tuple[list[Mask], bool]:
    """Return the regions enclosed by lines, and whether there are further ones, no wider than two lines."""
    sizes = np.bincount(regions.ravel())
    sizes[[0, regions[0, 0]]] = 0
    depths = ndimage.maximum(ndimage.distance_transform_edt(regions), regions, np.arange(len(sizes)))
    large, wide = sizes > _SMALLEST_HOLE * sizes.sum(), np.asarray(depths) > thickness
    return [regions == number for number in np.flatnonzero(large & wide)], bool((large & ~wide).any())


def _strays(line: Mask, distances: Distance) -> Mask:
    """Return the lines with a single region all around, which enclose nothing."""
    parts, count = ndimage.label(line, _ALL_AROUND)
    closest = [np.asarray(ndimage.minimum(distance, parts, np.arange(count + 1))) for distance in distances]
    stray: Mask = line & (np.sum(np.array(closest) < 2, axis=0) < 2)[parts]
    return stray


def _longest(pixels: Mask) -> float:
    """Return the diagonal of the largest part's box."""
    parts, _ = ndimage.label(pixels, _ALL_AROUND)
    boxes = ndimage.find_objects(parts)
    return max((float(np.hypot(*(side.stop - side.start for side in box))) for box in boxes), default=0.0)


def _innermost(holes: Sequence[Mask]) -> int | None:
    """Return the index of the hole between the others, which is the cup; None if it is not clear."""
    between = []
    for number, hole in enumerate(holes):
        others = np.any([other for index, other in enumerate(holes) if index != number], axis=0)
        between.append(float(convex_hull_image(others)[hole].mean()))
    *_, second, first = np.argsort(between)
    solid = holes[first].sum() >= _LEAST_SOLIDITY * convex_hull_image(holes[first]).sum()
    return int(first) if solid and between[first] - between[second] >= _CLEARLY_INNER else None


def _whole(mask: Mask) -> Mask:
    """Return the largest part of a mask, without holes."""
    parts, _ = ndimage.label(ndimage.binary_fill_holes(mask))
    largest: Mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return largest


def _placed(mask: Mask, window: tuple[slice, slice], shape: tuple[int, ...]) -> Mask:
    """Return a mask of a padded window in the whole picture."""
    whole = np.zeros(shape, dtype=np.bool_)
    whole[window] = mask[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return whole
