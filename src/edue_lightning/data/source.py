"""What a data set has to know: how its cases lie on disk (or are made), and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edue_lightning.data.preparation import Preparation, Stacked
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
        stratum: the centre or camera that the case comes from; every drawn split holds its share of each.
    """

    case_id: str
    group: str
    split: Split | None = None
    stratum: str = ""


class CaseSource(ABC):
    """A collection of multi-rater cases, readable in any order and from several processes.

    Attributes:
        spatial_dims: 2 or 3.
        channels: image channels C.
        structures: names of the K structures, in the order of the masks' axis.
        raters: names of the R raters, in the order of the masks' axis; None where a place on that axis means nobody in
            particular.
        problems: one line for each thing that is wrong, with the file, the case and the mend.
        mixed_sizes: whether the images differ in size.
    """

    spatial_dims: int
    channels: int
    structures: tuple[str, ...]
    raters: tuple[str, ...] | None = None
    problems: Sequence[str] = ()
    mixed_sizes: bool = False

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Preparation:  # noqa: ARG003
        """Return how image files become the channels of this source's cases, for images without raters.

        Args:
            settings: arguments of the source, as its configuration gives them.
        """
        return Stacked()

    @abstractmethod
    def cases(self) -> Sequence[CaseRecord]:
        """List every case, in an order that never changes.

        Raises:
            UserError: naming all that is wrong, if anything is: no case is left out without a word.
        """

    def healthy(self) -> Sequence[CaseRecord]:
        """List the cases that can be read, whatever is wrong with others."""
        return self.cases()

    @abstractmethod
    def load(self, case_id: str) -> RaterSample:
        """Load one case; the same `case_id` always gives the same sample."""
