"""Pictures of the page of predicted cases and of a report, for the documentation.

    python experiments/figures/screenshots.py --triage PREDICTED --report REPORT

The pages are opened in Chromium, without a network. The pictures are written as PNG files with 128 colours.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH, HEIGHT = 1400, 820
COLOURS = 128
OUTPUT = Path(__file__).parents[2] / "docs" / "pictures"


def show_case(page: Page, case: str) -> None:
    """Open a case of `triage.html` (the first one whose name contains the text), with the disagreement as a layer."""
    page.locator("tbody tr", has_text=case).first.click()
    page.locator("#disagreement").check()
    page.wait_for_function("document.getElementById('canvas').dataset.drawn")


def save(page: Page, path: Path) -> None:
    """Write what the window shows."""
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shown.quantize(COLOURS).save(path, optimize=True)


def main() -> None:
    """Write the pictures of the pages that are given."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--triage", type=Path, help="output folder of `predict`")
    options.add_argument("--case", default="", help="case to show, the first of the list by default")
    options.add_argument("--report", type=Path, help="output folder of `report`")
    options.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder for the pictures, docs/pictures by default"
    )
    given = options.parse_args()
    with sync_playwright() as playwright:
        # the system's, or the one that `playwright install chromium` fetched
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for folder, name in ((given.triage, "triage"), (given.report, "report")):
            if folder is None:
                continue
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            page.goto((folder / f"{name}.html").resolve().as_uri())
            if name == "triage":
                show_case(page, given.case)
            path = given.output / f"{name}.png"
            save(page, path)
            print(path)
        browser.close()


if __name__ == "__main__":
    main()
