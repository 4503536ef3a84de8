"""Time until the page of 500 predicted cases is open, and until the next case is shown, in headless Chromium.

    python experiments/benchmarks/triage_page.py

A short training, a prediction of new pictures with the command, and its `triage.html` opened from its folder: from the
request until the first case is drawn, in a new browser each time; and from the key J until the next case is drawn,
within the page. Needs Chromium and playwright.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, parser, run_command, table
from PIL import Image
from playwright.sync_api import sync_playwright

CASES, EDGE, ROUNDS = 500, 128, 5
OPEN_IN, NEXT_IN = 2.0, 0.1
"""Seconds that opening the page and showing the next case may take."""

_DRAWN = "document.getElementById('canvas').dataset.drawn"
# milliseconds from the key to each drawn case
_STEPS = """async steps => {
  const canvas = document.getElementById("canvas"), times = [];
  for (let step = 0; step < steps; step++) {
    const before = canvas.dataset.drawn, start = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}));
    while (canvas.dataset.drawn === before) await new Promise(resolve => setTimeout(resolve, 0));
    times.push(performance.now() - start);
  }
  return times;
}"""


def predicted(folder: Path, cases: int) -> Path:
    """Train shortly, predict new pictures into a folder, and return their page."""
    short = ["experiment=demo", "trainer.max_epochs=1", "test=false", "bootstrap_resamples=0", "logger.mode=disabled"]
    run_command("train", [*short, "hydra.run.dir=run"], folder)
    (folder / "new").mkdir()
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:EDGE, :EDGE]
    for number in range(cases):
        row, column, size = rng.uniform(0.3, 0.7) * EDGE, rng.uniform(0.3, 0.7) * EDGE, rng.uniform(0.05, 0.2) * EDGE
        disc = np.hypot(rows - row, columns - column) < size
        values = 60 + 120 * disc + rng.normal(0, 12, (EDGE, EDGE))
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / "new" / f"case_{number:03}.png")
    run_command("predict", ["ckpt=run/checkpoints/best.ckpt", "input=new", "output=out", "device=cpu"], folder)
    return folder / "out" / "triage.html"


def measured(page: Path, steps: int) -> tuple[float, list[float]]:
    """Return the seconds until the page shows its first case, and those until each of the next ones."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        window: Any = browser.new_page(viewport={"width": 1400, "height": 900})
        start = time.perf_counter()
        window.goto(page.resolve().as_uri())
        window.wait_for_function(_DRAWN)
        opened = time.perf_counter() - start
        times = window.evaluate(_STEPS, steps)
        browser.close()
    return opened, [milliseconds / 1000 for milliseconds in times]


def main() -> None:
    """Print the table."""
    asked = parser(__doc__).parse_args()
    if shutil.which("chromium") is None:
        sys.exit("chromium is not installed; apt-get install chromium")
    cases, rounds = (12, 1) if asked.quick else (CASES, ROUNDS)
    with tempfile.TemporaryDirectory() as temporary:
        page = predicted(Path(temporary), cases)
        size = page.stat().st_size / 1e6
        found = [measured(page, min(cases - 1, 100)) for _ in range(rounds)]
    opening, steps = [one for one, _ in found], [step for _, part in found for step in part]
    print(f"{cases} predicted cases of {EDGE}x{EDGE}, page of {size:.2f} MB, {machine()}\n")
    rows = [
        ("page open, first case drawn", *(f"{value:.2f} s" for value in _spread(opening)), f"{OPEN_IN:g} s"),
        ("next case drawn", *(f"{1e3 * value:.0f} ms" for value in _spread(steps)), f"{1e3 * NEXT_IN:g} ms"),
    ]
    print(table(["", "median", "95th percentile", "longest", "target"], rows))


def _spread(seconds: list[float]) -> list[float]:
    """Return the median, the 95th percentile and the largest."""
    return [float(value) for value in np.quantile(seconds, (0.5, 0.95, 1))]


if __name__ == "__main__":
    main()
