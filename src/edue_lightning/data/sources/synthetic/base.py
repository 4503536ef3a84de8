"""Base of the synthetic sources: deterministic cases, raters with habits, and the known truth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data.identity import generated_content
from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource
from edue_lightning.data.sources.synthetic.level_set import LevelSets, draw_habits, expected_variance
from edue_lightning.errors import UserError

# independent streams of random numbers
_PANEL, _SCENE, _RATERS, _MISSING = range(4)


class SyntheticSource(CaseSource):
    """Cases drawn at random, each determined by the seed and its number.

    Args:
        n_cases: number of cases.
        size: edge of the image in pixels or voxels.
        raters: number of raters R, the same in every case, each with individual habits.
        seed: seed of all draws.
        missing_rater_rate: probability that a rater skipped a case; where all skip it, one of them, drawn at random,
            is kept.

    Raises:
        UserError: if a number is out of range.
    """

    prefix: ClassVar[str]
    smallest_size: ClassVar[int]
    voxel_spacing: ClassVar[float | None]

    def __init__(self, n_cases: int, size: int, raters: int, seed: int, missing_rater_rate: float) -> None:
        if n_cases < 1 or raters < 1 or seed < 0 or not 0 <= missing_rater_rate <= 1:
            raise UserError(
                "data.source needs n_cases and raters of at least 1, a seed of at least 0 and a missing_rater_rate in "
                f"[0, 1], not {n_cases}, {raters}, {seed} and {missing_rater_rate}"
            )
        if size < self.smallest_size:
            raise UserError(f"data.source.size must be at least {self.smallest_size}, not {size}")
        self.n_cases = n_cases
        self.size = size
        self.seed = seed
        self.missing_rater_rate = missing_rater_rate
        self.raters: tuple[str, ...] = tuple(f"rater {number}" for number in range(1, raters + 1))
        self.habits = draw_habits(raters, size, np.random.default_rng([seed, _PANEL]))

    def cases(self) -> Sequence[CaseRecord]:
        """List the cases, one per patient."""
        ids = [f"{self.prefix}_{number:04d}" for number in range(self.n_cases)]
        return [CaseRecord(case_id, case_id) for case_id in ids]

    def load(self, case_id: str) -> RaterSample:
        """Draw a case."""
        image, truth = self.scene(self._rng(case_id, _SCENE))
        masks = truth.draw_masks(self.habits, self._rng(case_id, _RATERS))
        valid = self._valid(case_id)
        masks[~valid] = 0
        spacing = None if self.voxel_spacing is None else (self.voxel_spacing,) * self.spatial_dims
        return RaterSample(
            image=torch.from_numpy(image.astype(np.float32)),
            masks=torch.from_numpy(masks),
            valid=torch.from_numpy(valid),
            case_id=case_id,
            spacing=spacing,
            content=generated_content(type(self).__name__, self.seed, case_id),
        )

    def expected_probability(self, case_id: str) -> Tensor:
        """Return the probability that each rater marks each voxel, `[R, K, *S]` float64, in closed form."""
        truth = self.scene(self._rng(case_id, _SCENE))[1]
        return torch.from_numpy(truth.marking_probability(self.habits))

    def expected_disagreement(self, case_id: str) -> Tensor:
        """Return the expectation of V* over redrawn masks of the case's valid raters, `[K, *S]` float64."""
        probability = self.expected_probability(case_id).numpy()[self._valid(case_id)]
        return torch.from_numpy(expected_variance(probability))

    @abstractmethod
    def scene(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], LevelSets]:
        """Draw an image `[C, *S]` and the truth behind it."""

    def _rng(self, case_id: str, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, int(case_id.rpartition("_")[2])])

    def _valid(self, case_id: str) -> NDArray[np.bool_]:
        rng = self._rng(case_id, _MISSING)
        valid = rng.random(len(self.habits)) >= self.missing_rater_rate
        if not valid.any():
            valid[rng.integers(len(self.habits))] = True
        return valid
