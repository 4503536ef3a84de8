"""Cases are recognised by name, patient and content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patients import LPS, Patient, affine_of
from PIL import Image

from edue_lightning.data import (
    CaseRecord,
    CaseSource,
    HecktorSource,
    LidcContours,
    ManifestSource,
    RaterDataModule,
    RaterSample,
    SyntheticFundus,
)
from edue_lightning.data.conversion import write_manifest
from edue_lightning.data.identity import CaseIdentity, identities, overlapping
from edue_lightning.runs.record import TRAINING_SPACING, training_entries


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


def test_blank_images_are_no_copies_of_each_other() -> None:
    blank = replace(sample(0, 32), image=torch.full((2, 32, 32), 0.5))
    trained = [CaseIdentity.of(CaseRecord(name, "p1"), blank) for name in ("a", "b")]
    measured = [CaseIdentity.of(CaseRecord("x", "p2"), blank), identity(1)]
    assert not overlapping(measured, [*trained, identity(2)], same_data=False)
    # patients and names count as ever
    assert set(overlapping([CaseIdentity.of(CaseRecord("x", "p1"), blank)], trained, same_data=False)) == {"x"}
    assert set(overlapping([CaseIdentity.of(CaseRecord("a", "p3"), blank)], trained, same_data=True)) == {"a"}
    # a single channel that varies identifies a case
    varying = replace(blank, image=torch.cat([blank.image, sample(3, 32).image]))
    first, copy = (CaseIdentity.of(CaseRecord(name, name), varying) for name in ("c", "d"))
    assert set(overlapping([copy], [first], same_data=False)) == {"d"}


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


def pictures(folder: Path, ending: str = "png") -> Path:
    """Write a manifest of three pictures, each of two raters."""
    folder.mkdir(parents=True)
    rows = ["case_id,image,mask,rater,structure"]
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"i{number}.{ending}")
        Image.fromarray(pixels > 99).save(folder / f"m{number}.png")
        rows += [f"c{number},i{number}.{ending},m{number}.png,{rater},s" for rater in "AB"]
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def scans(folder: Path, axes: Any = LPS) -> Path:
    for number in range(3):
        shape = (24, 22, 10)
        affine = affine_of((1, 1, 3), (5, -8, 100), shape, axes)
        Patient(f"CHUM-00{number}", ct_affine=affine, is_marked=True).write(folder)
    return folder


def all_of(source: CaseSource) -> list[CaseIdentity]:
    return identities(source, source.cases())


@pytest.mark.parametrize("cache", [False, True])
def test_a_copy_of_the_training_data_is_known_however_it_is_prepared(tmp_path: Path, cache: bool) -> None:
    kept = str(tmp_path / "cache") if cache else None
    trained = all_of(ManifestSource(str(pictures(tmp_path / "a")), cache=kept))
    for ending in ("png", "tif"):
        copy = str(pictures(tmp_path / ending, ending))
        measured = all_of(ManifestSource(copy, standardise=False, cache=kept))
        assert not {case.image for case in measured} & {case.image for case in trained}
        renamed = [replace(case, case_id=f"new {case.case_id}", group=case.case_id) for case in measured]
        assert len(overlapping(renamed, trained, same_data=False)) == 3
    trained = all_of(HecktorSource(str(scans(tmp_path / "scans")), cache=kept))
    settings = {"spacing": [2.0, 2.0, 3.0], "ct_window": [-100.0, 200.0]}
    measured = all_of(HecktorSource(str(scans(tmp_path / "copy")), **settings, cache=kept))
    assert len(overlapping(measured, trained, same_data=False)) == 3
    # what an earlier version stored still identifies equal images alone
    earlier = [CaseIdentity.from_list(case.as_list()[:5]) for case in trained]
    assert earlier == trained
    assert not overlapping(measured, earlier, same_data=False)
    assert len(overlapping(trained, earlier, same_data=False)) == 3


@pytest.mark.parametrize("source", [SyntheticFundus, LidcContours])
def test_generated_images_have_the_same_content_on_machines_that_round_differently(source: Any) -> None:
    made = source(size=48)
    first = next(iter(made.cases()))
    loaded = made.load(first.case_id)
    rounded = replace(loaded, image=torch.nextafter(loaded.image, torch.tensor(torch.inf)))
    known, again = CaseIdentity.of(first, loaded), CaseIdentity.of(first, rounded)
    assert known.content == again.content
    assert known.image != again.image
    others = {CaseIdentity.of(record, made.load(record.case_id)).content for record in list(made.cases())[:20]}
    assert len(others) == 20
    larger = source(size=56)
    assert CaseIdentity.of(first, larger.load(first.case_id)).content == known.content


def test_an_identity_keeps_its_digests_in_a_checkpoint() -> None:
    known = identity(0)
    assert CaseIdentity.from_list(known.as_list()).images == known.images
    # as earlier versions stored it
    for length in (5, 6, 7):
        assert CaseIdentity.from_list(known.as_list()[:length]) == known
    with pytest.raises(ValueError, match="damaged"):
        CaseIdentity.from_list([*known.as_list()[:6], [1]])


def test_the_voxel_size_is_kept_and_compared_where_it_is_recorded() -> None:
    record, sizes = CaseRecord("a", "a"), [None, (0.5, 0.8), (0.5, 0.8000000001), (5.0, 8.0)]
    unknown, known, rounded, other = (CaseIdentity.of(record, replace(sample(0), spacing=size)) for size in sizes)
    assert CaseIdentity.from_list(known.as_list()).spacing == known.spacing
    assert not CaseIdentity.from_list(known.as_list()).same_spacing(other)
    earlier = CaseIdentity.from_list(other.as_list()[:7])
    assert all(known.same_spacing(one) and one.same_spacing(known) for one in (rounded, earlier))
    assert unknown.same_spacing(CaseIdentity.from_list(unknown.as_list()))
    assert not known.same_spacing(unknown)
    assert not CaseIdentity.from_list(unknown.as_list()).same_spacing(known)
    entries = [training_entries({"train": [case], "val": []}) for case in (unknown, known, rounded, other)]
    assert entries[1] == entries[2]
    for one in (entries[0], entries[3]):
        assert {key for key in one if entries[1][key] != one[key]} == {TRAINING_SPACING}


def renamed(cases: Sequence[CaseIdentity]) -> list[CaseIdentity]:
    return [replace(case, case_id=f"new {case.case_id}", group=f"new {case.group}") for case in cases]


@pytest.mark.parametrize("kind", ["pictures", "scans"])
def test_what_convert_writes_of_the_training_data_is_known_with_any_preparation(tmp_path: Path, kind: str) -> None:
    origin, other = tmp_path / "origin", {"standardise": False}
    if kind == "pictures":
        source: CaseSource = ManifestSource(str(pictures(origin)))
    else:
        source = HecktorSource(str(scans(origin)), spacing=[2.0, 2.0, 3.0])
    write_manifest(RaterDataModule("origin", source), tmp_path / "written")
    trained = all_of(source)
    # checkpoints of earlier versions know the prepared image, too
    earlier = [CaseIdentity.from_list(case.as_list()[:6]) for case in trained]
    for settings in ({}, other):
        measured = all_of(ManifestSource(str(tmp_path / "written"), **settings))
        for known in (trained, earlier):
            assert len(overlapping(renamed(measured), known, same_data=False)) == 3
            assert len(overlapping(renamed(known), measured, same_data=False)) == 3


@pytest.mark.parametrize("scale", [1 / 255, 257.0, -1.0])
def test_a_copy_with_scaled_values_is_known_unless_it_is_inverted(tmp_path: Path, scale: float) -> None:
    trained = all_of(ManifestSource(str(pictures(tmp_path / "a"))))
    copy = pictures(tmp_path / "b", "tif")
    for path in copy.glob("i*.tif"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.float32) * np.float32(scale)).save(path)
    found = overlapping(renamed(all_of(ManifestSource(str(copy)))), trained, same_data=False)
    assert len(found) == (3 if scale > 0 else 0)


def test_flat_drawings_and_ramps_of_one_order_are_no_copies_of_each_other() -> None:
    disc = torch.zeros(1, 32, 32)
    disc[:, 8:20, 8:20] = 1
    ramp = torch.arange(1024.0).reshape(1, 32, 32)
    for image in (disc, ramp):
        first, second = (replace(sample(0, 32), image=image * factor) for factor in (1, 3))
        trained, measured = CaseIdentity.of(CaseRecord("a", "a"), first), CaseIdentity.of(CaseRecord("b", "b"), second)
        assert not overlapping([measured], [trained], same_data=False)
