"""Files of one channel are known by their names; folders and other files have no channel."""

from pathlib import Path

import pytest

from edue_lightning.data.channel_names import channel_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CHUM-001__CT.nii.gz", ("CHUM-001", 0)),
        ("CHUM-001_pt.nii", ("CHUM-001", 1)),
        ("case_0003.nii.gz", ("case", 3)),
        ("case__2.mha", ("case", 1)),
        ("case_0003.png", None),
        ("case.nii.gz", None),
        ("series_0001", None),
        ("CHUM-001__CT", None),
        ("case_0001.dcm", None),
    ],
)
def test_a_name_gives_the_channel_of_an_image_alone(name: str, expected: tuple[str, int] | None) -> None:
    assert channel_of(Path(name)) == expected
