"""The command that makes the pictures of the pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from browser import needs_browser
from PIL import Image
from processes import PATIENCE

from edue_lightning.prediction.triage_page import layers_script, triage_page
from edue_lightning.prediction.triage_table import COLUMNS
from edue_lightning.reporting.overlay import CaseMaps

SCRIPT = Path(__file__).parents[2] / "experiments" / "figures" / "screenshots.py"


@needs_browser
def test_the_pictures_of_the_pages_are_made(tmp_path: Path) -> None:
    edge = np.linspace(0, 1, 32, dtype=np.float32)
    maps = CaseMaps(*[np.outer(edge, edge)] * 4, 0.5, 1.0)
    row = {**dict.fromkeys(COLUMNS), "case": "a", "structure": "node", "flagged": True, "score": "sv", "unit": "pixels"}
    (tmp_path / "a__layers.js").write_text(layers_script("a__layers.js", maps, "disagreement"))
    (tmp_path / "triage.html").write_text(triage_page(pd.DataFrame([row], columns=list(COLUMNS)), 1, "key"))
    (tmp_path / "report.html").write_text("<body style='background: #123456'>")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--triage", str(tmp_path), "--report", str(tmp_path), "--output", str(tmp_path)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "triage.png"), str(tmp_path / "report.png")]
    report = Image.open(tmp_path / "report.png").convert("RGB")
    assert report.getpixel((5, 5)) == (0x12, 0x34, 0x56)
    assert len(Image.open(tmp_path / "triage.png").convert("RGB").getcolors() or ()) > 20
