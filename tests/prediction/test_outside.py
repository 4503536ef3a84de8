"""Cases outside of the training's range: flagged, with the reason in the table, on the console, picture and page."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from lidc_slice_files import REAL
from PIL import Image

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import SyntheticFundus
from edue_lightning.prediction import outputs
from edue_lightning.prediction.model import Model
from edue_lightning.prediction.run import predict
from edue_lightning.prediction.triage_page import PAGE_FILE
from edue_lightning.reporting.overlay import overlay_picture

CASES = 5


def real_slices() -> Iterator[Image.Image]:
    """Yield slices of real CT of different patients."""
    with zipfile.ZipFile(REAL) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("nodule-0/images/slice-0.png"))
        for name in names[:: len(names) // CASES][:CASES]:
            with archive.open(name) as file:
                yield Image.open(file).convert("RGB")


def noise() -> Iterator[Image.Image]:
    """Yield pictures of noise."""
    rng = np.random.default_rng(0)
    for _ in range(CASES):
        yield Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))


def predicted(checkpoint: Path, folder: Path) -> pd.DataFrame:
    """Predict the pictures of a folder beside it, and return what `triage.csv` holds."""
    output = folder.with_name("predicted")
    overrides = [f"ckpt={checkpoint}", f"input={folder}", f"output={output}", "device=cpu"]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        predict(resolved(compose("predict", overrides)), output)
    return pd.read_csv(output / "triage.csv", dtype=str, keep_default_na=False)


@pytest.mark.parametrize(
    "images",
    [noise, pytest.param(real_slices, marks=pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there"))],
)
def test_images_unlike_the_training_s_are_flagged_and_the_reason_is_said_everywhere(
    trained_run: Path,
    tmp_path: Path,
    images: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    titles: list[str] = []

    def titled(maps: Any, title: str, variance: str) -> Any:
        titles.append(title)
        return overlay_picture(maps, title, variance)

    monkeypatch.setattr(outputs, "overlay_picture", titled)
    folder = tmp_path / "new"
    folder.mkdir()
    for number, image in enumerate(images()):
        image.save(folder / f"{number}.png")
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    with caplog.at_level(logging.INFO):
        table = predicted(checkpoint, folder)

    assert table["case"].nunique() == CASES
    assert set(table["flagged"]) == {"True"}
    assert table["flag_reason"].str.startswith("outside of the training's range: density").all()
    assert table["out_of_distribution"].str.startswith("density ").all()
    assert set(table["uncertainty"]) == {""}
    assert set(table.loc[table["score"] == "expected_dice", "score_value"]) <= {""}
    cells = set(map(str, table.to_numpy().ravel()))
    assert not {"nan", "inf", "-inf", "None"} & cells
    numbers = [float(cell) for cell in cells if cell.replace(".", "").replace("e", "").replace("-", "").isdigit()]
    assert max(map(abs, numbers)) < 1e7

    assert f"{CASES} of {CASES} cases lie outside of the training's range (density: {CASES}" in caplog.text
    assert "of cases like the training's are expected to lie outside" in caplog.text
    assert len(titles) == len(table)
    assert all("review: outside of the training's range: density" in title for title in titles)
    page = (tmp_path / "predicted" / PAGE_FILE).read_text()
    held = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert all(row["unusual"] and row["flagged"] for row in held["rows"])
    assert all("density " in row["reason"] for row in held["rows"])

    # from Python, the same
    alone = Model(checkpoint, "cpu").predict_files(folder / "0.png").table
    for name in ("flagged", "flag_reason", "out_of_distribution"):
        assert alone[name].astype(str).tolist() == table.loc[table["case"] == "0", name].tolist()


def test_new_cases_like_the_training_s_lie_outside_at_the_stated_rate(trained_run: Path, tmp_path: Path) -> None:
    model = Model(trained_run / "checkpoints" / "best.ckpt", "cpu")
    source = SyntheticFundus(n_cases=80, size=32, seed=9)
    outside = []
    for record in source.cases():
        table = model.predict(source.load(record.case_id).image.numpy()).table
        outside.append((table["out_of_distribution"] != "").any())
        assert table.loc[table["out_of_distribution"] != "", "flagged"].all()
    assert model.false_alarms is not None
    assert np.mean(outside) <= model.false_alarms + 3 * np.sqrt(model.false_alarms / len(outside))
