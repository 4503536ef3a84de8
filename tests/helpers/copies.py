"""Checks that copies of training images are recognised whatever their names and preparation."""

from __future__ import annotations

from dataclasses import replace

from edue_lightning.data import CaseSource
from edue_lightning.data.identity import identities, overlapping


def require_known(first: CaseSource, copy: CaseSource) -> None:
    """Check that every case of a copy is known by its content alone: names, patients and prepared images differ."""
    trained = identities(first, first.cases())
    copied = identities(copy, copy.cases())
    assert len({case.content for case in trained}) == len(trained) > 1
    renamed = [replace(case, case_id=f"new {case.case_id}", group=f"new {case.group}") for case in copied]
    assert not {case.image for case in renamed} & {case.image for case in trained}
    found = overlapping(renamed, trained, same_data=False)
    assert set(found) == {case.case_id for case in renamed}
    assert {case.case_id for case in found.values()} == {case.case_id for case in trained}
