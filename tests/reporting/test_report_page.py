"""The report's page in a real browser: what a reader sees, hides, sorts and reaches by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import accessibility_violations, needs_browser, opened
from run_files import write_cost, write_distortions, write_run

from edue_lightning.reporting import Report, write_report

pytestmark = [needs_browser, pytest.mark.xdist_group("report page")]

METHODS = ("edue", "layer_ensemble", "deep_ensemble_soft_majority", "single <b>&")
READY = "html[data-ready]"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report whose matrix and figures have values of their own per method."""
    folder = tmp_path_factory.mktemp("page")
    for number, method in enumerate(METHODS):
        run = write_run(folder / "runs" / str(number), method, number, shift=2.0 * number)
        shutil.copy(run / "metrics.csv", run / "validation.csv")
        write_distortions(run, method, number)
        write_cost(run, parameters=1e6, parameter_ratio=1.02, forward_passes=1)
    return write_report(folder / "runs", folder / "report", "edue")


def test_distorted_images_are_a_quantity_of_the_verdict_and_the_matrix(report: Report) -> None:
    for path in (report.verdict, report.folder / "matrix.csv"):
        assert {"ood_auroc", "ood_auroc_uncertainty"} <= set(pd.read_csv(path)["quantity"]), path
    assert "AUROC for distorted images, by uncertainty" in report.markdown.read_text()
    assert 'data-label="distorted images, by uncertainty"' in report.html.read_text()
    assert "not all runs have distorted validation images" in report.markdown.read_text()


@pytest.fixture(scope="module")
def wide(report: Report) -> Iterator[Any]:
    with opened(report.html) as window:
        window.wait_for_selector(READY)
        yield window


@pytest.fixture(scope="module")
def phone(report: Report) -> Iterator[Any]:
    with opened(report.html, width=390, height=844, dark=True) as window:
        window.wait_for_selector(READY)
        yield window


def drawn(window: Any, figure: str) -> Any:
    """Return the first plot of a figure, drawn."""
    window.locator(f"figure[id^={figure}]").scroll_into_view_if_needed()
    plot = window.locator(f"figure[id^={figure}] .canvas[data-drawn]").first
    plot.locator(".main-svg").first.wait_for()
    return plot


def traces(plot: Any) -> list[str]:
    found: list[str] = plot.evaluate("one => one.data.map(trace => trace.meta.method).filter(Boolean)")
    return found


def test_nothing_is_wider_than_the_window(wide: Any, phone: Any) -> None:
    for window in (wide, phone):
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for table in ("table.matrix", "table.cards"):
        place = wide.locator(table).first.bounding_box()
        assert place["x"] + place["width"] <= 1400


def test_no_violation_of_level_a_or_aa_in_light_and_dark(wide: Any, phone: Any) -> None:
    for window in (wide, phone):
        assert accessibility_violations(window) == []


def test_a_cell_of_the_matrix_says_its_word_and_the_interval_on_hover_and_focus(wide: Any, report: Report) -> None:
    matrix = pd.read_csv(report.folder / "matrix.csv")
    # of the reference against the method
    worse = matrix[(matrix["baseline"] == "layer_ensemble") & (matrix["quantity"] == "dice")].iloc[0]
    row = wide.locator("table.matrix tr[data-method=layer_ensemble]")
    cell = row.locator("td[data-label=Dice]")
    word = {"better": "worse", "worse": "better", "not distinguishable": "level"}[worse["outcome"]]
    assert word == "better"
    assert cell.locator("b").inner_text() == word
    assert cell.locator("small").inner_text() == f"{worse['baseline_value']:.3f}"
    cell.hover()
    shown = wide.locator("#tip").inner_text()
    assert f"difference {-worse['change']:+.3f} [{-worse['ci_high']:+.3f}, {-worse['ci_low']:+.3f}]" in shown
    wide.mouse.move(5, 5)
    cell.focus()
    assert wide.locator("#tip").inner_text() == shown
    assert shown in cell.get_attribute("aria-label")
    wide.keyboard.press("Escape")
    assert wide.locator("#tip").is_hidden()


def test_the_matrix_is_left_by_one_tab_and_crossed_by_arrow_keys(wide: Any) -> None:
    first = wide.locator("table.matrix td").first
    assert wide.locator("table.matrix td[tabindex='0']").count() == 1
    first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"):
        wide.keyboard.press(key)
    place = wide.evaluate("[document.activeElement.parentElement.dataset.method, document.activeElement.cellIndex]")
    assert place == ["layer_ensemble", 2]
    assert wide.locator("table.matrix td[tabindex='0']").count() == 1
    wide.keyboard.press("Tab")
    assert not wide.evaluate("Boolean(document.activeElement.closest('table.matrix'))")


def test_a_method_is_hidden_everywhere_by_keyboard_and_comes_back(wide: Any) -> None:
    plot, forest = drawn(wide, "calibration"), drawn(wide, "differences")
    assert "layer_ensemble" in traces(plot)
    box = wide.locator("#methods input[data-toggle=layer_ensemble]")
    box.focus()
    wide.keyboard.press("Space")
    assert wide.locator("[data-method=layer_ensemble]:visible").count() == 0
    assert "layer_ensemble" not in traces(plot)
    assert "layer_ensemble" not in forest.evaluate("one => one.layout.yaxis.categoryarray")
    entry = wide.locator("figure[id^=calibration] [data-toggle=layer_ensemble]")
    assert entry.get_attribute("aria-pressed") == "false"
    entry.press("Enter")
    assert box.is_checked()
    assert "layer_ensemble" in traces(plot)
    assert wide.locator("table.matrix [data-method=layer_ensemble]").count() == 1


def test_figures_zoom_by_keyboard_and_reset(wide: Any) -> None:
    plot = drawn(wide, "calibration")
    ends = "one => one._fullLayout.xaxis.range"
    before = plot.evaluate(ends)
    figure = wide.locator("figure[id^=calibration]")
    figure.get_by_role("button", name="Zoom in").press("Enter")
    low, high = plot.evaluate(ends)
    assert high - low == pytest.approx(0.7 * (before[1] - before[0]))
    figure.get_by_role("button", name="Reset").press("Enter")
    assert plot.evaluate(ends) == pytest.approx(before)


def test_a_table_is_sorted_by_one_of_its_rows(wide: Any) -> None:
    table = wide.locator("table.metrics").filter(has_text="cases;")
    row = table.locator("tbody tr").filter(has_text="NLL")
    row.locator("button.sort").press("Enter")
    values = [float(text.split()[0]) for text in row.locator("td").all_inner_texts()]
    assert values == sorted(values)
    assert row.locator("th").get_attribute("aria-sort") == "ascending"
    # whole columns move
    heads = table.locator("thead th").all_inner_texts()[1:]
    assert heads[-1] == METHODS[-1]


def test_a_phone_has_cards_that_name_each_value(phone: Any) -> None:
    assert phone.locator("table.metrics thead").first.is_hidden()
    cell = phone.locator("table.metrics td").first
    assert cell.evaluate("one => getComputedStyle(one, '::before').content") == f'"{METHODS[0]}"'
    row = phone.locator("table.matrix tr[data-method=layer_ensemble]")
    places = [one.bounding_box() for one in row.locator("td").all()]
    assert all(place["x"] >= 0 and place["x"] + place["width"] <= 390 for place in places)
    assert min(place["width"] for place in places) > 90


def test_dark_pages_have_dark_figures(phone: Any) -> None:
    plot = drawn(phone, "calibration")
    colours = plot.evaluate("one => one.data.map(trace => trace.line.color)")
    assert "#4DB2FF" in colours
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_names_are_shown_as_they_are_and_never_run(wide: Any) -> None:
    assert wide.locator("#methods label").last.inner_text().strip() == METHODS[-1]
    plot = drawn(wide, "differences")
    assert METHODS[-1] in plot.locator(".ytick").all_inner_texts() or METHODS[-1] in plot.inner_text()


def test_a_printed_page_has_the_pictures_and_every_case(report: Report) -> None:
    with opened(report.html) as window:
        window.wait_for_selector(READY)
        window.emulate_media(media="print")
        window.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert window.locator("img.static:visible").count() == window.locator("figure.chart").count()
        assert window.locator(".plots:visible, .side:visible").count() == 0
        assert window.locator("main details:not([open])").count() == 0


def test_without_scripts_the_pictures_and_the_words_stay(report: Report, tmp_path: Path) -> None:
    text = report.html.read_text()
    plain = tmp_path / "plain.html"
    plain.write_text(text[: text.rindex("<script>")] + "</body></html>")
    with opened(plain) as window:
        assert window.locator("img.static:visible").count() == window.locator("figure.chart:not(details *)").count()
        assert window.locator("table.matrix td b").first.is_visible()
