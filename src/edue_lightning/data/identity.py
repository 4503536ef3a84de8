"""Identity of cases: names and digests, by which a later command recognises the cases of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edue_lightning.data.sample import RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource, Split
from edue_lightning.errors import UserError
from edue_lightning.text import counted, named, times


@dataclass(frozen=True)
class CaseIdentity:
    """Names and content of a case.

    Attributes:
        case_id: id of the case.
        group: patient, see `CaseRecord`.
        size: `*S`, spatial size of the prepared image.
        image: digest of the prepared image.
        masks: digest of all masks, of which raters are valid, and of the region if there is one.
        content: digest of the image before it was prepared, the same for every preparation; None in a checkpoint of an
            earlier version. Cases with equal images are equal whether or not it is known.
        blank: whether every channel of the prepared image is constant, so that its digests identify no case; not known
            of a case from a checkpoint.
        spacing: mm along each axis of `size`, compared by `same_spacing`; None if it is unknown.
        copies: further digests by which copies of the image are recognised: of the prepared image as a file would hold
            it, of the image before it was prepared as if it had been prepared, and of the order of their values.
        spacing_recorded: whether `spacing` is that of the case; not in a checkpoint of an earlier version.
    """

    case_id: str
    group: str
    size: tuple[int, ...]
    image: str
    masks: str
    content: str | None = field(default=None, compare=False)
    blank: bool = field(default=False, compare=False)
    spacing: tuple[float, ...] | None = field(default=None, compare=False)
    copies: tuple[str, ...] = field(default=(), compare=False)
    spacing_recorded: bool = field(default=True, compare=False)

    @classmethod
    def of(cls, record: CaseRecord, sample: RaterSample) -> CaseIdentity:
        """Return the identity of a loaded case."""
        size = tuple(sample.image.shape[1:])
        masks = _masks_digest(sample)
        blank = all(bool(channel.amin() == channel.amax()) for channel in sample.image)
        prepared = content_digest([sample.image.numpy()])
        image = prepared[1]
        content, *raw = sample.content or prepared
        copies = tuple(dict.fromkeys([*raw, *prepared]))
        return cls(record.case_id, record.group, size, image, masks, content, blank, sample.spacing, copies)

    @property
    def images(self) -> tuple[str, ...]:
        """All known digests of the image."""
        return (self.image, *([] if self.content is None else [self.content]), *self.copies)

    def as_list(self) -> list[Any]:
        """Return plain values, for a checkpoint."""
        spacing = None if self.spacing is None else [float(length) for length in self.spacing]
        names = [self.case_id, self.group, list(self.size)]
        return [*names, self.image, self.masks, self.content, list(self.copies), spacing]

    def same_spacing(self, other: CaseIdentity) -> bool:
        """Return whether two cases have one voxel size, or both an unknown one, as far as both are recorded."""
        recorded = self.spacing_recorded and other.spacing_recorded
        return not recorded or self.spacing_text == other.spacing_text

    @property
    def spacing_text(self) -> str | None:
        """Voxel size as text, the same on machines that round differently; None if it is unknown."""
        return None if self.spacing is None else times(self.spacing, 6)

    @classmethod
    def from_list(cls, stored: Sequence[Any]) -> CaseIdentity:
        """Return the identity of `as_list`.

        Raises:
            ValueError: if it is damaged.
        """
        case_id, group, size, image, masks, *more = stored
        # earlier versions stored fewer entries
        content = more[0] if more else None
        copies = tuple(more[1]) if len(more) > 1 else ()
        spacing = tuple(map(float, more[2])) if len(more) > 2 and more[2] is not None else None
        texts = (case_id, group, image, masks, content or "", *copies)
        if len(more) > 3 or not all(isinstance(text, str) for text in texts):
            raise ValueError("an identity of a case is damaged")
        size = tuple(int(length) for length in size)
        recorded = len(more) > 2
        return cls(
            case_id,
            group,
            size,
            image,
            masks,
            content,
            spacing=spacing,
            copies=copies,
            spacing_recorded=recorded,
        )


# smallest share of neighbours with a larger value, and with a smaller one, for an order that identifies an image
_LEAST_STEPS = 0.05

TrainingCases = Mapping[Split, Sequence[CaseIdentity]]
"""Cases that a method was trained (`train`) and validated (`val`) on."""


def content_digest(images: Sequence[NDArray]) -> tuple[str, ...]:
    """Return digests of images as they were read, before they are cut, resampled or their values are changed.

    The first is that of the values. The second is the digest that the images have as a prepared image, by which a file
    written from a prepared image is recognised; it is left out if the channels differ in size. The last is that of the
    order of neighbouring values, which is the same after a change of scale; it is left out for images that are mostly
    flat or a ramp, which may have one order without being copies.

    Args:
        images: images of a case, `[C, *S]` each, in the order of the channels; volumes with an affine are turned to one
            orientation, see `images.canonical`.
    """
    channels = [np.ascontiguousarray(channel, dtype=np.float32) for image in images for channel in image]
    tensors = [torch.from_numpy(channel) for channel in channels]
    found = [_digest(*tensors)]
    if len({channel.shape for channel in channels}) == 1:
        found.append(_digest_of_shape((len(channels), *channels[0].shape), *tensors))
    order = _order_digest(channels)
    return (*found, *([] if order is None else [order]))


def generated_content(*decisive: object) -> tuple[str, ...]:
    """Return the digest of an image that code generates, the same on machines that round differently.

    Args:
        decisive: plain values that decide what the image shows, whatever its size.
    """
    return (hashlib.blake2b(repr(decisive).encode(), digest_size=16).hexdigest(),)


def content_of(sample: RaterSample) -> str:
    """Return the digest of the values of a case's image before it was prepared."""
    return _digest(*sample.image) if sample.content is None else sample.content[0]


def identities(source: CaseSource, records: Sequence[CaseRecord]) -> list[CaseIdentity]:
    """Load cases one after the other and return their identities.

    Raises:
        UserError: naming cases that no rater outlined; such a case is no empty mask.
    """
    found, unrated = [], []
    for record in records:
        sample = source.load(record.case_id)
        if not sample.valid.any():
            unrated.append(record.case_id)
        found.append(CaseIdentity.of(record, sample))
    if unrated:
        raise UserError(
            f"{counted(len(unrated), 'case')} without a valid rater: {named(unrated)}; a case that nobody outlined "
            "is no empty mask, so leave it out of the data"
        )
    return found


def overlapping(
    measured: Sequence[CaseIdentity], trained: Sequence[CaseIdentity], same_data: bool
) -> Mapping[str, CaseIdentity]:
    """Return the measured cases that are known from a training, each with the case of the training.

    A case is known if its image is, whatever its name and however it is prepared or scaled, unless it is blank; if its
    patient is, where patients have names of their own; or if its name is, unless it belongs to other data and its image
    differs, as for the case `001` of another hospital.

    Args:
        measured: cases to measure.
        trained: cases of the training.
        same_data: whether both lie in one folder, so that a name means the same case even if its image has changed.
    """
    by_image = {image: case for case in trained for image in case.images}
    by_name = {case.case_id: case for case in trained}
    by_group = {case.group: case for case in trained if same_data or case.group != case.case_id}
    found = {}
    for case in measured:
        images = () if case.blank else case.images
        known = next((by_image[image] for image in images if image in by_image), None) or by_group.get(case.group)
        if known is None and same_data:
            known = by_name.get(case.case_id)
        if known is not None:
            found[case.case_id] = known
    return found


def _masks_digest(sample: RaterSample) -> str:
    return _digest(sample.masks, sample.valid, *([] if sample.region is None else [sample.region]))


def _digest(values: Tensor, *more: Tensor) -> str:
    return _digest_of_shape(tuple(values.shape), values, *more)


def _digest_of_shape(shape: tuple[int, ...], *parts: Tensor) -> str:
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=16)
    for part in parts:
        digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _order_digest(channels: Sequence[NDArray]) -> str | None:
    """Return the digest of which values are larger and smaller than their neighbour on the last axis, or None."""
    digest = hashlib.blake2b(b"order", digest_size=16)
    telling = False
    for channel in channels:
        before, after = channel[..., :-1], channel[..., 1:]
        digest.update(repr(channel.shape).encode())
        steps = [after > before, after < before]
        for step in steps:
            digest.update(np.packbits(step).data)
        telling |= all(np.count_nonzero(step) > _LEAST_STEPS * step.size for step in steps)
    return digest.hexdigest() if telling else None
