"""Maps of one prediction, and their picture over the image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib import colors, font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edue_lightning.reporting.figures import COLOURS, LARGEST_VARIANCE
from edue_lightning.reporting.panels import most_disputed_slice
from edue_lightning.uncertainty import reached

_TITLES = {"disagreement": "variance between members", "total_variance": "p(1 - p) of a single network"}
# sizes in pixels: width of a panel, space between and around panels, scale of colours with its numbers, line of text
_PANEL, _GAP, _BAR, _NUMBERS, _LINE, _FONT = 330, 12, 12, 40, 18, 13
_FLATTEST, _TALLEST = 0.4, 2.5
_SHADES = 256


@dataclass(frozen=True)
class CaseMaps:
    """A picture, or a volume in radiological orientation, with its prediction.

    Attributes:
        image: `[H, W]` or `[H, W, 3]` in [0, 1]; of a volume `[D, H, W]` or `[D, H, W, 3]`, slices from the feet up.
        probability: p, `[H, W]` or `[D, H, W]`.
        disagreement: variance, likewise.
        decision: map that the mask is taken from, likewise.
        threshold: value from which on it is in the mask.
        aspect: height of a pixel over its width.
    """

    image: NDArray[np.float32]
    probability: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    decision: NDArray[np.float32]
    threshold: float
    aspect: float

    @property
    def slices(self) -> int:
        """Number of slices of a volume; 0 for a picture."""
        return len(self.probability) if self.probability.ndim == 3 else 0

    @property
    def most_disputed(self) -> int:
        """Position of a volume's slice with the most disagreement."""
        return most_disputed_slice(self.disagreement)

    def slice(self, position: int) -> CaseMaps:
        """Return a slice of a volume, as maps of a picture."""
        return CaseMaps(
            self.image[position],
            self.probability[position],
            self.disagreement[position],
            self.decision[position],
            self.threshold,
            self.aspect,
        )


def overlay_picture(overlay: CaseMaps, title: str, variance: str) -> Image.Image:
    """Draw the image with the mask's outline, the mean probability, and the disagreement over the image.

    With Pillow alone, since Matplotlib takes about a hundred times as long for such a picture.

    Args:
        overlay: the picture to draw, or the volume whose most disputed slice is drawn.
        title: lines above the picture.
        variance: `disagreement` between members, or `total_variance` of a single network.
    """
    lines = title.splitlines()
    if overlay.slices:
        shown_slice = overlay.most_disputed
        lines.append(f"slice {shown_slice + 1} of {overlay.slices} from the feet, the most disputed one")
        overlay = overlay.slice(shown_slice)
    height, width = overlay.probability.shape
    # the whole panel, or so much of it as the aspect of the image needs
    ratio = height * overlay.aspect / width
    edge = round(_PANEL * min(max(ratio, _FLATTEST), _TALLEST))
    size = (min(_PANEL, round(edge / ratio)), min(edge, round(_PANEL * ratio)))
    scale = _BAR + _NUMBERS + _GAP
    canvas_width = 4 * _GAP + 3 * _PANEL + 2 * scale
    lines = [part for line in lines for part in _wrapped(line, canvas_width - 2 * _GAP)]
    top = _GAP + _LINE * len(lines)
    canvas = Image.new("RGB", (canvas_width, top + _LINE + edge + 2 * _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((canvas_width / 2, _GAP + number * _LINE), line, "black", _font(), anchor="ma")
    mask = reached(overlay.decision, overlay.threshold)
    picture = overlay.image if overlay.image.ndim == 3 else np.repeat(overlay.image[..., None], 3, axis=2)
    probability, disagreement = overlay.probability, overlay.disagreement
    if size[0] < width or size[1] < height:
        # a large image is made smaller before it is coloured
        picture = np.stack([_reduced(picture[..., channel], size) for channel in range(3)], axis=2)
        probability, disagreement = _reduced(probability, size), _reduced(disagreement, size)
    outlined = _enlarged(_bytes(picture), size)
    if mask.any() and not mask.all():
        _draw_outline(outlined, mask)
    panels = (
        ("mask" if mask.any() else "mask: empty here", outlined, None, 1.0),
        ("mean probability", _shaded(picture, probability, 1.0, "viridis", size), "viridis", 1.0),
        (
            _TITLES[variance],
            _shaded(picture, disagreement, LARGEST_VARIANCE, "magma", size),
            "magma",
            LARGEST_VARIANCE,
        ),
    )
    left, top = _GAP, top + _LINE + _GAP
    for name, shown, palette, largest in panels:
        draw.text((left + _PANEL / 2, top - _LINE), name, "black", _font(), anchor="ma")
        corner = left + (_PANEL - size[0]) // 2, top + (edge - size[1]) // 2
        canvas.paste(shown, corner)
        left += _PANEL + _GAP
        if palette is not None:
            _draw_scale(canvas, (left, corner[1]), size[1], palette, largest)
            left += scale
    return canvas


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return found


def _enlarged(picture: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Return a picture at another size; pixels that are enlarged stay squares."""
    return Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)


def _reduced(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map at another size, means of its pixels."""
    small = Image.fromarray(values.astype(np.float32, copy=False)).resize(size, Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _shaded(
    picture: NDArray[np.float32], values: NDArray[np.float32], largest: float, palette: str, size: tuple[int, int]
) -> Image.Image:
    """Return the picture under the colours of a map; the image stays visible where the values are small."""
    shares = np.clip(values / largest, 0, 1)
    colours = _palette(palette)[np.minimum((shares * _SHADES).astype(np.intp), _SHADES - 1)]
    opacity = np.clip(shares / 0.2, 0, 0.85)[..., None]
    return _enlarged(_bytes(picture * (1 - opacity) + colours * opacity), size)


def _draw_outline(shown: Image.Image, mask: NDArray[np.bool_]) -> None:
    """Draw the edges between voxels of the mask and others, two pixels wide."""
    large = np.asarray(Image.fromarray(mask).resize(shown.size, Image.Resampling.NEAREST))
    padded = np.pad(large, 1, mode="edge")
    edge = np.zeros_like(large)
    for across in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        edge |= large != across
    shown.paste(_rgb(COLOURS[1]), (0, 0), Image.fromarray(edge))


def _draw_scale(canvas: Image.Image, corner: tuple[int, int], height: int, palette: str, largest: float) -> None:
    """Draw the colours of a map from 0 to its largest value, with five numbers."""
    ramp = _palette(palette)[np.linspace(_SHADES - 1, 0, height).round().astype(np.intp)]
    canvas.paste(Image.fromarray(_bytes(np.repeat(ramp[:, None], _BAR, axis=1))), corner)
    draw = ImageDraw.Draw(canvas)
    for share in np.linspace(0, 1, 5):
        y = corner[1] + (1 - share) * (height - 1)
        draw.text((corner[0] + _BAR + 4, y), f"{share * largest:.4g}", "black", _font(), anchor="lm")


def _wrapped(line: str, width: int) -> list[str]:
    """Return a line in parts that fit a width."""
    parts = [""]
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}" if parts[-1] else word
        if parts[-1] and _font().getlength(longer) > width:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts


@cache
def _palette(name: str) -> NDArray[np.float64]:
    """Return the colours of a map of Matplotlib, `[256, 3]` in [0, 1]."""
    found: NDArray[np.float64] = mpl.colormaps[name](np.linspace(0, 1, _SHADES))[:, :3]
    return found


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colors.to_rgb(colour))
    return red, green, blue


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Matplotlib brings this font, which has the letters of most names of cases
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), _FONT)
