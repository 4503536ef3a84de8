"""What a data set has to know: how its cases lie on disk (or are made), and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edue_lightning.data.sample import RaterSample

Split = Literal["train", "val", "test"]
Subset = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class CaseRecord:
    """A case before it is loaded.

    Attributes:
        case_id: unique within the source.
        group: the patient (or whatever else must not be torn apart); all its cases go into one split.
        split: the split that the data set itself prescribes, or None where it is to be drawn.
    """

    case_id: str
    group: str
    split: Split | None = None


class CaseSource(ABC):
    """A collection of multi-rater cases, readable in any order and from several processes.

    Attributes:
        spatial_dims: 2 or 3.
        channels: image channels C.
        structures: names of the K structures, in the order of the masks' axis.
    """

    spatial_dims: int
    channels: int
    structures: tuple[str, ...]

    @abstractmethod
    def cases(self) -> Sequence[CaseRecord]:
        """List every case, in an order that never changes.

        Raises:
            UserError: naming all that is wrong, if the data cannot be used.
        """

    @abstractmethod
    def load(self, case_id: str) -> RaterSample:
        """Load one case; the same `case_id` always gives the same sample."""
