"""Identity of cases: names and digests, by which a later command recognises the cases of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource


@dataclass(frozen=True)
class CaseIdentity:
    """Names and content of a case.

    Attributes:
        case_id: id of the case.
        group: patient, see `CaseRecord`.
        size: `*S`, spatial size of the prepared image.
        image: digest of the prepared image, of values at regular steps.
        masks: digest of all masks, of which raters are valid, and of the region if there is one.
    """

    case_id: str
    group: str
    size: tuple[int, ...]
    image: str
    masks: str

    @classmethod
    def of(cls, record: CaseRecord, sample: RaterSample) -> CaseIdentity:
        """Return the identity of a loaded case."""
        size = tuple(sample.image.shape[1:])
        return cls(record.case_id, record.group, size, _digest(sample.image), _masks_digest(sample))

    def as_list(self) -> list[Any]:
        """Return plain values, for a checkpoint."""
        return [self.case_id, self.group, list(self.size), self.image, self.masks]

    @classmethod
    def from_list(cls, stored: Sequence[Any]) -> CaseIdentity:
        """Return the identity of `as_list`.

        Raises:
            ValueError: if it is damaged.
        """
        case_id, group, size, image, masks = stored
        if not all(isinstance(text, str) for text in (case_id, group, image, masks)):
            raise ValueError("an identity of a case is damaged")
        return cls(case_id, group, tuple(int(length) for length in size), image, masks)


def identities(source: CaseSource, records: Sequence[CaseRecord]) -> list[CaseIdentity]:
    """Load cases one after the other and return their identities."""
    return [CaseIdentity.of(record, source.load(record.case_id)) for record in records]


def overlapping(
    measured: Sequence[CaseIdentity], trained: Sequence[CaseIdentity], same_data: bool
) -> Mapping[str, CaseIdentity]:
    """Return the measured cases that are known from a training, each with the case of the training.

    A case is known if its image is, whatever its name; if its patient is, where patients have names of their own; or if
    its name is, unless it belongs to other data and its image differs, as for the case `001` of another hospital.

    Args:
        measured: cases to measure.
        trained: cases of the training.
        same_data: whether both lie in one folder, so that a name means the same case even if its image has changed.
    """
    by_image = {case.image: case for case in trained}
    by_name = {case.case_id: case for case in trained}
    by_group = {case.group: case for case in trained if same_data or case.group != case.case_id}
    found = {}
    for case in measured:
        known = by_image.get(case.image) or by_group.get(case.group)
        if known is None and same_data:
            known = by_name.get(case.case_id)
        if known is not None:
            found[case.case_id] = known
    return found


def _masks_digest(sample: RaterSample) -> str:
    return _digest(sample.masks, sample.valid, *([] if sample.region is None else [sample.region]))


def _digest(values: Tensor, *more: Tensor) -> str:
    digest = hashlib.blake2b(repr(tuple(values.shape)).encode(), digest_size=16)
    for part in (values, *more):
        digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
