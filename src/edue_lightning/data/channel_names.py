"""Names of files that hold one channel of an image, as data sets give them."""

from __future__ import annotations

import re
from pathlib import Path

from edue_lightning.data.images import PICTURES, VOLUMES
from edue_lightning.data.listing import stem_of

FIRST_NUMBER = "0000"
"""nnU-Net's number of the first channel."""

NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""Names that end in four digits: nnU-Net's channels, or numbers of cases."""

# HECKTOR's CT and PET, nnU-Net's channels, those that `convert` writes
_NAMES = (
    (re.compile(r"(?P<case>.+?)_{1,2}(?P<channel>CT|PT|ct|pt)"), ("ct", "pt")),
    (NUMBERED, tuple(f"{number:04d}" for number in range(100))),
    (re.compile(r"(?P<case>.+)__(?P<channel>[1-9])"), tuple(map(str, range(1, 10)))),
)


def channel_of(path: Path) -> tuple[str, int] | None:
    """Return the case and the channel's number, from 0, in an image's name; None without them or for another file.

    >>> channel_of(Path("CHUM-001__PT.nii.gz"))
    ('CHUM-001', 1)
    """
    if not path.name.lower().endswith(PICTURES + VOLUMES):
        return None
    stem = stem_of(path, PICTURES + VOLUMES)
    for pattern, channels in _NAMES:
        named = pattern.fullmatch(stem)
        # numbers of pictures, which hold their colours in one file, count the cases
        is_number = pattern is NUMBERED and path.name.lower().endswith(PICTURES)
        if named is not None and not is_number and named["channel"].lower() in channels:
            return named["case"], channels.index(named["channel"].lower())
    return None
