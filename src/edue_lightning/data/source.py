"""Interface of a data set: the list of its cases, and the loading of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from edue_lightning.data.preparation import Preparation, Stacked
from edue_lightning.data.sample import RaterSample

Split = Literal["train", "val", "test"]
Subset = Literal["train", "val", "test", "all"]


@dataclass(frozen=True)
class CaseRecord:
    """A case before it is loaded.

    Attributes:
        case_id: unique within the source.
        group: patient (or another unit that must not be divided); all its cases go into one split.
        split: split prescribed by the data set, or None if it is to be drawn.
        stratum: centre or camera of the case; every drawn split has its share of each, see `SplitFractions.draw`.
        unit: lesion or volume that several cases of the patient show, such as the nodule of a slice; empty if the case
            stands alone. See `train_draw` of `RaterDataModule`.
    """

    case_id: str
    group: str
    split: Split | None = None
    stratum: str = ""
    unit: str = ""


class ProbabilityChannels(NamedTuple):
    """The channels of an array of nnU-Net's probabilities that make up each structure.

    Attributes:
        parts: positions of the channels whose sum is the structure's probability, one list per structure.
        exclusive: whether the channels are labels, which exclude each other and add up to 1 with the background, and
            not regions.
    """

    parts: Sequence[Sequence[int]]
    exclusive: bool


class CaseSource(ABC):
    """A collection of multi-rater cases, readable in any order and from several processes.

    Attributes:
        spatial_dims: 2 or 3.
        channels: image channels C.
        structures: names of the K structures, in the order of the masks' axis.
        exclusive: whether the structures exclude each other: no rater gives a voxel to two of them. Models then have a
            softmax over the structures and the background.
        raters: names of the R raters, in the order of the masks' axis; None if a position on that axis is nobody in
            particular.
        votes: whether only the raters' votes are known, so that the rater axis holds nested level masks, see
            `data.votes`.
        problems: one line per problem, with the file, the case and the fix.
        mixed_sizes: whether the images differ in size.
        smallest_shape: smallest length of the images along each axis, or None if it is unknown.
        storage: how all files of 2D images store their axes, see `geometry.slice_storage`; `geometry.DIFFERING_SLICES`
            if NIfTI slices differ, None if it is unknown.
        official_splits: whether the splits that cases prescribe are those of the publication, and complete, so that no
            further case is drawn for them.
        facts: numbers that only this data set has, such as its nodules, by their labels, for the summary of `check`.
    """

    spatial_dims: int
    channels: int
    structures: tuple[str, ...]
    raters: tuple[str, ...] | None = None
    exclusive: bool = False
    votes: bool = False
    problems: Sequence[str] = ()
    mixed_sizes: bool = False
    smallest_shape: tuple[int, ...] | None = None
    storage: str | None = None
    official_splits: bool = True
    facts: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def preparation(cls, settings: Mapping[str, Any]) -> Preparation:  # noqa: ARG003
        """Return the preparation of image files as this source prepares them, for images without raters.

        Args:
            settings: arguments of the source, as in its configuration.
        """
        return Stacked()

    def storage_of(self, case_id: str) -> str | None:  # noqa: ARG002
        """Return how the file of a 2D image stores its axes, see `geometry.slice_storage`; None if it is unknown."""
        return self.storage

    @property
    def turned_probabilities(self) -> bool:
        """Whether nnU-Net turns the axes of its probabilities, so that they are not those of the file."""
        return False

    def probability_channels(self, channels: int) -> ProbabilityChannels | None:
        """Return the channels that make up each structure in an array of nnU-Net's probabilities.

        Args:
            channels: number of channels of the array: one per label with the background first, or one per region.

        Returns:
            the channels; None if their number is another.
        """
        structures = len(self.structures)
        if channels not in (structures, structures + 1):
            return None
        first = channels - structures
        return ProbabilityChannels([[position] for position in range(first, channels)], exclusive=first == 1)

    @classmethod
    def new_image_caveat(cls, settings: Mapping[str, Any]) -> str:  # noqa: ARG003
        """Return what a prediction of new images warns of, beyond their preparation; usually empty.

        Args:
            settings: arguments of the source, as in its configuration.
        """
        return ""

    @abstractmethod
    def cases(self) -> Sequence[CaseRecord]:
        """List every case, in an order that never changes.

        Raises:
            UserError: if anything is wrong, with all problems; no case is left out silently.
        """

    def healthy(self) -> Sequence[CaseRecord]:
        """List the cases that can be read, whether or not others can."""
        return self.cases()

    @abstractmethod
    def load(self, case_id: str) -> RaterSample:
        """Load one case; the same `case_id` always gives the same sample."""
