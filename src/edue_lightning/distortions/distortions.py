"""Which distortions a study applies, and how they are drawn."""

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
        kinds: names out of `KINDS`, dealt to the cases in turn.
        severities: out of `SEVERITIES`.
        seed: of what is drawn, such as noise; not negative.

    Raises:
        ValueError: for a kind or severity that is unknown, listed twice, or missing altogether, or a seed that is no
            whole number from 0 on.
    """

    kinds: Sequence[str] = ("noise", "blur", "contrast", "gamma", "resolution")
    severities: Sequence[int] = SEVERITIES
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, known in (("kinds", self.kinds, KINDS), ("severities", self.severities, SEVERITIES)):
            # 1.0 equals 1, but picks no strength
            unknown = [value for value in values if value not in known or isinstance(value, float)]
            if unknown or not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be different ones of {', '.join(map(str, known))}, not {list(values)}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0 on, not {self.seed}")

    def kind_of(self, position: int, severity: int) -> str:
        """Return the kind that a case meets at a severity: all in turn, another one at each severity.

        Args:
            position: of the case in its split.
            severity: of `severities`.
        """
        return self.kinds[(position + severity) % len(self.kinds)]

    def apply(self, image: Tensor, kind: str, severity: int, key: int) -> Tensor:
        """Return a distorted copy of an image.

        What is drawn follows from `seed`, `kind`, `severity` and `key` alone; torch's own random state is left alone.

        Args:
            image: `[C, *S]` float32, two or three spatial axes, in main memory.
            kind: of `KINDS`.
            severity: of `SEVERITIES`.
            key: not negative, differs from case to case.

        Returns:
            `[C, *S]` float32.
        """
        state = np.random.SeedSequence([self.seed, KINDS.index(kind), severity, key]).generate_state(1, dtype=np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        return KIND_FUNCTIONS[kind](image, severity, generator)
