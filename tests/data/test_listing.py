"""Listing the files of a data set."""

from __future__ import annotations

from pathlib import Path

from edue_lightning.data.listing import ListingProblems, find_files


def test_a_link_to_a_hidden_folder_of_the_data_set_is_followed(tmp_path: Path) -> None:
    for folder in (".store/anna", "shown"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.nii").write_bytes(b"")
    (tmp_path / "labels_anna").symlink_to(tmp_path / ".store" / "anna")
    # found where it lies
    (tmp_path / "again").symlink_to(tmp_path / "shown")
    problems = ListingProblems(tmp_path)
    found = find_files(problems, lambda _: False)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["labels_anna/a.nii", "shown/a.nii"]
    assert not problems.lines
