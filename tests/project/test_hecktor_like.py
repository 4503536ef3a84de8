"""The script that writes a cohort like HECKTOR's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edue_lightning.data import HecktorSource

COHORT = Path(__file__).parents[2] / "experiments" / "hecktor_like" / "cohort.py"


def test_the_cohort_is_read_by_the_loader(tmp_path: Path) -> None:
    command = [sys.executable, str(COHORT), str(tmp_path / "scans"), "--large", "0", "--small", "1"]
    subprocess.run(command, check=True)
    source = HecktorSource(str(tmp_path / "scans"))
    (record,) = source.cases()
    sample = source.load(record.case_id)
    assert len(sample.valid) == 4
    assert sample.masks.any()
