"""Makes the pictures of the pages from a run of the demo.

python docs/pictures/make.py RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from edue_lightning.reporting.curves import quality_control
from edue_lightning.reporting.figures import panel_figure, quality_control_figure, reliability_figure
from edue_lightning.reporting.panels import load_panels
from edue_lightning.runs.files import read_run

HERE = Path(__file__).parent
METHOD, STRUCTURE, SCORE = "edue", "nodule", "sv"


def save(figure: Figure, name: str) -> None:
    """Write a figure without its empty margins."""
    figure.savefig(HERE / f"{name}.png", dpi=90, bbox_inches="tight")


def main(folder: Path) -> None:
    """Write panel, calibration curve and quality control.

    Args:
        folder: of a run.
    """
    # of the cases that every run draws, which depend on the raters alone, the most disputed one
    panel = max(load_panels(folder / "panels.npz"), key=lambda one: one.sv_star)
    save(panel_figure(panel), "panel")
    save(reliability_figure({METHOD: pd.read_csv(folder / "reliability.csv")}), "calibration")
    table = pd.read_csv(folder / "quality_control.csv")
    curves = {f"by {SCORE}": table[table["score"] == SCORE]}
    chosen = quality_control([read_run(folder)], STRUCTURE)
    if chosen is not None:
        curves[f"by {chosen.score}, best on validation"] = chosen.curve
    if all(len(curve) for curve in curves.values()):
        save(quality_control_figure(curves), "quality_control")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
