"""Cases are recognised by name, patient and content."""

from __future__ import annotations

from dataclasses import replace

import torch

from edue_lightning.data import CaseRecord, RaterSample
from edue_lightning.data.identity import CaseIdentity, overlapping


def sample(number: int, size: int = 128) -> RaterSample:
    """Return a case whose content is its number's own."""
    generator = torch.Generator().manual_seed(number)
    image = torch.rand(1, size, size, generator=generator)
    masks = (torch.rand(3, 2, size, size, generator=generator) > 0.5).to(torch.uint8)
    return RaterSample(image, masks, torch.ones(3, dtype=torch.bool), str(number))


def identity(number: int, case_id: str | None = None, group: str | None = None) -> CaseIdentity:
    name = case_id or str(number)
    return CaseIdentity.of(CaseRecord(name, group or name), sample(number))


def test_an_identity_changes_with_image_masks_and_validity() -> None:
    first, record = sample(0), CaseRecord("a", "a")
    same = CaseIdentity.of(record, first)
    assert CaseIdentity.of(record, sample(0)) == same
    assert CaseIdentity.from_list(same.as_list()) == same
    masks = first.masks.clone()
    masks[2, 1, 127, 127] ^= 1
    changed = [
        replace(first, image=first.image + 1e-3),
        replace(first, masks=masks),
        replace(first, valid=torch.tensor([True, True, False])),
        replace(first, image=first.image.transpose(1, 2).contiguous()),
    ]
    assert all(CaseIdentity.of(record, one) != same for one in changed)


def test_a_case_is_known_by_its_image_whatever_its_name() -> None:
    found = overlapping([identity(1, "x"), identity(2, "y")], [identity(1, "a"), identity(3, "y")], same_data=False)
    assert {name: case.case_id for name, case in found.items()} == {"x": "a"}


def test_a_name_counts_in_the_same_folder_alone() -> None:
    measured, trained = [identity(1, "001")], [identity(2, "001")]
    assert set(overlapping(measured, trained, same_data=True)) == {"001"}
    assert not overlapping(measured, trained, same_data=False)


def test_a_patient_with_a_name_of_its_own_counts_everywhere() -> None:
    measured, trained = [identity(1, "p1_left", "p1")], [identity(2, "p1_right", "p1")]
    assert set(overlapping(measured, trained, same_data=True)) == {"p1_left"}
    assert set(overlapping(measured, trained, same_data=False)) == {"p1_left"}


def test_every_value_of_an_image_counts() -> None:
    image = torch.zeros(1, 64, 128, 128)
    masks, valid = torch.zeros(1, 1, 64, 128, 128, dtype=torch.uint8), torch.ones(1, dtype=torch.bool)
    found = set()
    for position in (1, 2, 500_001):
        changed = image.flatten().clone()
        changed[position] = 1.0
        sample = RaterSample(changed.reshape(image.shape), masks, valid, "a")
        found.add(CaseIdentity.of(CaseRecord("a", "a"), sample).image)
    assert len(found) == 3
