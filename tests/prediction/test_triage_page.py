"""The page of predicted cases, in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import accessibility_violations, needs_browser, opened
from PIL import Image

from edue_lightning.prediction import triage_page as module
from edue_lightning.prediction.triage_page import layers_name, layers_script, triage_page
from edue_lightning.prediction.triage_table import COLUMNS
from edue_lightning.reporting.overlay import CaseMaps

CASES = 12


def row_of(number: int, structure: str = "node", **values: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"case": f"case {number:02}", "structure": structure, "score": "sv", "score_value": 10.0 - number}
    row |= {"flagged": number < 3, "uncertainty": 100.0 - number, "threshold": 7.5, "unit": "pixels"}
    row |= {"volume": 50.0, "volume_low": 40.0, "volume_high": 60.0, "out_of_distribution": "", "voxel_size": "unknown"}
    row["flag_reason"] = "sv 10 is at least 7.5" if number < 3 else ""
    return row | values


def outside(number: int, **values: Any) -> dict[str, Any]:
    """Return the row of a case outside of the training's range."""
    reason = "outside of the training's range: density"
    row = row_of(number, flagged=True, flag_reason=reason, uncertainty=None, score="expected_dice", score_value=None)
    return row | {"out_of_distribution": "density 32.5 outside 0 to 14.9"} | values


def maps_of(number: int, depth: int = 0, edge: int = 48) -> CaseMaps:
    rng = np.random.default_rng(number)
    shape = (*([depth] if depth else []), edge, edge + 16)
    probability = rng.random(shape, np.float32)
    decision = np.zeros(shape, np.float32)
    decision[..., 10:30, 12:40] = 1
    return CaseMaps(rng.random(shape, np.float32), probability, probability * (1 - probability), decision, 0.5, 1.0)


def write_page(folder: Path, rows: list[dict[str, Any]], depth: int = 0, edge: int = 48) -> Path:
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    structures = frame["structure"].nunique()
    for number, row in enumerate(rows):
        name = layers_name(row["case"], row["structure"], structures)
        (folder / name).write_text(layers_script(name, maps_of(number, depth, edge), "disagreement"))
    (folder / "triage.html").write_text(
        triage_page(frame, structures, "key", "At most 1.6 % of such cases."), encoding="utf-8"
    )
    return folder / "triage.html"


def shown(window: Any) -> list[str]:
    return window.eval_on_selector_all("tbody tr", "rows => rows.map(row => row.cells[0].textContent)")


def drawn(window: Any, case: str, at: int = 0) -> None:
    window.wait_for_function(
        "drawn => document.getElementById('canvas').dataset.drawn === drawn", arg=f"{case}\0node\0{at}"
    )


def pixel(window: Any, x: int, y: int) -> list[int]:
    return window.evaluate(
        "([x, y]) => [...document.getElementById('canvas').getContext('2d').getImageData(x, y, 1, 1).data]", [x, y]
    )


def test_structures_of_a_case_share_the_pictures_of_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = maps_of(0, depth=5)
    alone = layers_script("a", maps, "disagreement")
    encoded: list[int] = []
    encode = module._encoded
    monkeypatch.setattr(module, "_encoded", lambda values: encoded.append(values.ndim) or encode(values))
    images: dict[int, str] = {}
    assert [layers_script("a", maps, "disagreement", images) for _ in range(2)] == [alone] * 2
    # five slices of the image once, and the maps of both structures
    assert (encoded.count(2), encoded.count(3)) == (5, 10)


def test_the_pictures_hold_the_maps_to_a_grey_level() -> None:
    maps = maps_of(0)
    content = layers_script("a__layers.js", maps, "disagreement")
    assert content.startswith('edueLayers("a__layers.js", ')
    held = json.loads(content[len('edueLayers("a__layers.js", ') : -len(");\n")])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(held["slices"][0]["maps"]))))
    np.testing.assert_allclose(image[..., 0] / 255, maps.probability, atol=0.5 / 255)
    np.testing.assert_allclose(image[..., 1] / 255 / 4, maps.disagreement, atol=0.5 / 255)
    np.testing.assert_array_equal(image[..., 2] == 255, maps.decision == 1)


def test_a_long_volume_keeps_the_most_disputed_slice() -> None:
    maps = maps_of(0, depth=200, edge=8)
    maps.disagreement[117] = 0.25
    held = json.loads(layers_script("a", maps, "disagreement")[len('edueLayers("a", ') : -len(");\n")])
    assert len(held["slices"]) <= 64
    assert held["slices"][held["first"]]["name"] == "118 of 200 from the feet"


def test_texts_of_a_case_are_no_markup_and_no_script() -> None:
    rows = [outside(0, case="</script><script>alert(1)</script>", out_of_distribution="<img src=x>")]
    page = triage_page(pd.DataFrame(rows, columns=list(COLUMNS)), 1, "key")
    assert "alert(1)</script>" not in page
    assert "<img" not in page
    assert page.count("</script>") == 2


def test_undefined_and_infinite_numbers_are_left_out() -> None:
    rows = [row_of(0, score_value=float("inf"), sv=float("nan"), threshold=None, uncertainty=None, flagged=None)]
    page = triage_page(pd.DataFrame(rows, columns=list(COLUMNS)), 1, "key")
    assert not {"inf", "nan", "NaN", "Infinity"} & set(page.split('id="data">')[1].split("</script>")[0].split('"'))


@needs_browser
def test_the_list_is_sorted_filtered_and_read_by_keys(tmp_path: Path) -> None:
    rows = [outside(n) if n == 7 else row_of(n) for n in range(CASES)]
    with opened(write_page(tmp_path, rows)) as window:
        assert shown(window) == [f"case {n:02}" for n in range(CASES)]
        drawn(window, "case 00")
        window.click("th button:has-text('Uncertainty')")
        assert shown(window)[0] == "case 11"
        window.click("th button:has-text('Uncertainty')")
        assert shown(window)[:2] == ["case 07", "case 00"]
        window.check("#flagged")
        assert shown(window) == ["case 07", "case 00", "case 01", "case 02"]
        assert window.inner_text("#reasons") == "Flagged: sv 10 is at least 7.5"
        window.uncheck("#flagged")
        window.check("#unusual")
        assert shown(window) == ["case 07"]
        window.click("tbody tr")
        assert window.inner_text("#reasons") == (
            "Flagged: outside of the training's range: density 32.5 outside 0 to 14.9"
        )
        assert "expected_dice outside of the training's range" in window.inner_text("#values")
        window.uncheck("#unusual")
        window.fill("#search", "1")
        assert shown(window) == ["case 01", "case 10", "case 11"]
        # letters typed there are no keys
        window.press("#search", "j")
        assert window.inner_text("#name") == "case 07, node"
        window.fill("#search", "")
        window.click("#name")
        for key, case in (("j", "case 00"), ("j", "case 01"), ("k", "case 00")):
            window.keyboard.press(key)
            drawn(window, case)
        summary = window.inner_text("#summary")
        assert "12 cases; 4 of 12 rows flagged, 1 outside of the training's range, 0 looked at" in summary
        assert summary.endswith("At most 1.6 % of such cases.")


@needs_browser
def test_layers_window_and_slices_are_drawn(tmp_path: Path) -> None:
    page = write_page(tmp_path, [row_of(0)], depth=5)
    maps = maps_of(0, depth=5)
    first = maps.most_disputed
    with opened(page) as window:
        drawn(window, "case 00", first)
        # the corner of the mask is on its outline, its inside is not
        assert pixel(window, 12, 10) == [255, 64, 64, 255]
        inside = pixel(window, 20, 20)
        assert inside[0] == inside[1] == inside[2]
        window.keyboard.press("1")
        assert pixel(window, 12, 10) != [255, 64, 64, 255]
        window.keyboard.press("3")
        coloured = pixel(window, 20, 20)
        assert len(set(coloured[:3])) > 1
        window.keyboard.press("2")
        assert not window.is_checked("#disagreement")
        assert pixel(window, 20, 20) != coloured
        window.keyboard.press("2")
        window.fill("#level", "255")
        assert pixel(window, 20, 20)[0] < inside[0]
        # arrows in a slider move the slider
        window.click("#name")
        other = first - 1 if first else first + 1
        window.keyboard.press("ArrowDown" if first else "ArrowUp")
        drawn(window, "case 00", other)
        assert window.inner_text("#where") == f"{other + 1} of 5 from the feet"


@needs_browser
def test_what_is_noted_is_kept_and_exported(tmp_path: Path) -> None:
    page = write_page(tmp_path, [row_of(0), row_of(1, case="=1+1"), row_of(2)])
    with opened(page) as window:
        drawn(window, "case 00")
        window.keyboard.press("l")
        window.fill("#note", 'edge, "unclear"')
        assert "1 looked at" in window.inner_text("#summary")
        window.reload()
        drawn(window, "case 00")
        assert window.is_checked("#looked")
        with window.expect_download() as download:
            window.click("#export")
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    assert list(csv.reader(io.StringIO(text))) == [
        ["case", "structure", "looked_at", "note"],
        ["case 00", "node", "yes", 'edge, "unclear"'],
        ["'=1+1", "node", "no", ""],
        ["case 02", "node", "no", ""],
    ]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, False), (390, True)])
def test_the_page_is_accessible_and_fits_the_window(tmp_path: Path, width: int, dark: bool) -> None:
    rows = [
        outside(n, structure=name) if n == 1 else row_of(n, structure=name)
        for n in range(4)
        for name in ("disc", "cup")
    ]
    with opened(write_page(tmp_path, rows), width=width, dark=dark) as window:
        window.wait_for_function("document.getElementById('canvas').dataset.drawn")
        assert window.evaluate("document.documentElement.scrollWidth") <= width
        assert accessibility_violations(window) == []
        # a picture has no slices
        assert not window.locator("#slices").is_visible()
        if width == 1400:
            assert window.locator(".rows").evaluate("box => box.scrollWidth <= box.clientWidth")


@needs_browser
def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    page = write_page(tmp_path, [row_of(0)])
    (tmp_path / "case 00__layers.js").unlink()
    with opened(page, complete=False) as window:
        window.wait_for_selector("#missing:not([hidden])")
        assert window.inner_text("#missing") == "No picture: case 00__layers.js is not beside this page"


@needs_browser
def test_a_picture_has_no_slices_and_one_structure_no_column(tmp_path: Path) -> None:
    long = "LIDC-IDRI-0091_nodule-4_slice-1"
    with opened(write_page(tmp_path, [row_of(0, case=long), outside(1)]), width=390) as window:
        drawn(window, long)
        assert not window.is_visible("#slice")
        assert not window.is_visible("#structure")
        assert [head.split("\n")[0] for head in window.locator("th").all_inner_texts()] == [
            *("Case", "Flag", "Uncertainty, %", "Looked at")
        ]
        # all columns are on the screen of a phone, and no flag is broken within a word
        assert window.evaluate(
            "document.querySelector('.rows').scrollWidth <= document.querySelector('.rows').clientWidth"
        )
        assert window.locator("td .flag").nth(1).bounding_box()["height"] < 30
