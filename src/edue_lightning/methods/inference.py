"""How a network that was trained on patches sees a whole image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from monai.inferers import sliding_window_inference
from torch import Tensor


@dataclass(frozen=True)
class Inference:
    """Member logits of a whole image, at once or window by window.

    Attributes:
        window: voxels along each axis of the part that the network sees, as in training; None for the whole image. An
            image that is smaller is padded with zeros, the result cut back.
        overlap: share of a window that its neighbour sees too; the logits are averaged with Gaussian weights
            (Isensee et al., Nature Methods 2021), member by member.
        batch_size: windows in one forward pass.

    Raises:
        ValueError: for a window, overlap or number that is none.
    """

    window: Sequence[int] | None = None
    overlap: float = 0.25
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and (len(self.window) not in (2, 3) or min(self.window) < 1):
            raise ValueError(f"inference.window must be two or three positive numbers, not {list(self.window)}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap is a share from 0 to less than 1, not {self.overlap}")
        if self.batch_size < 1:
            raise ValueError(f"inference.batch_size must be at least 1, not {self.batch_size}")

    def __call__(self, network: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Return member logits `[B, M, K, *S]` for images `[B, C, *S]` of any size.

        Args:
            network: `[N, C, *window]` to logits `[N, M, K, *window]`.
            image: `[B, C, *S]`.

        Raises:
            ValueError: if the window has another number of axes than the image.
        """
        if self.window is None:
            return network(image)
        if len(self.window) != image.ndim - 2:
            raise ValueError(f"inference.window={list(self.window)}: the images are {image.ndim - 2}D")
        members = 0

        def flat(part: Tensor) -> Tensor:
            nonlocal members
            logits = network(part)
            members = logits.shape[1]
            return logits.flatten(1, 2)

        logits = sliding_window_inference(
            image, list(self.window), self.batch_size, flat, overlap=self.overlap, mode="gaussian"
        )
        return cast(Tensor, logits).unflatten(1, (members, -1))
