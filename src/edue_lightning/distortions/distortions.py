"""The distortions of a study, and their random draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edue_lightning.distortions.kinds import KIND_FUNCTIONS

KINDS = tuple(KIND_FUNCTIONS)
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Distortions:
    """Kinds of distortion and their severities.

    Attributes:
        kinds: names from `KINDS`, assigned to the cases in turn.
        severities: numbers from `SEVERITIES`.
        seed: seed of the random draws, such as noise; not negative.

    Raises:
        ValueError: if a kind or severity is unknown or listed twice, a list is empty, or the seed is not a
            non-negative integer.
    """

    kinds: Sequence[str] = ("noise", "blur", "contrast", "gamma", "resolution")
    severities: Sequence[int] = SEVERITIES
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, known in (("kinds", self.kinds, KINDS), ("severities", self.severities, SEVERITIES)):
            # 1.0 equals 1, but is not an index
            unknown = [value for value in values if value not in known or isinstance(value, float)]
            if unknown or not values or len(set(values)) != len(values):
                raise ValueError(
                    f"{name} must be distinct values from {', '.join(map(str, known))}, not {list(values)}"
                )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0, not {self.seed}")

    def kind_of(self, position: int, severity: int) -> str:
        """Return the kind of distortion of a case at a severity: all kinds in turn, the next one at the next severity.

        Args:
            position: position of the case in its split.
            severity: number from `severities`.
        """
        return self.kinds[(position + severity) % len(self.kinds)]

    def apply(self, image: Tensor, kind: str, severity: int, key: int) -> Tensor:
        """Return a distorted copy of an image.

        The random draws depend on `seed`, `kind`, `severity` and `key` alone; torch's random state is unchanged.

        Args:
            image: `[C, *S]` float32, two or three spatial axes, in main memory.
            kind: name from `KINDS`.
            severity: number from `SEVERITIES`.
            key: non-negative number, different for each case.

        Returns:
            `[C, *S]` float32.
        """
        state = np.random.SeedSequence([self.seed, KINDS.index(kind), severity, key]).generate_state(1, dtype=np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        return KIND_FUNCTIONS[kind](image, severity, generator)
