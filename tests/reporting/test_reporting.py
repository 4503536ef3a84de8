"""Run folders, the comparison and the report, on runs written as training writes them."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from edue_lightning.errors import UserError
from edue_lightning.metrics import MetricRow, interval
from edue_lightning.reporting import compare, comparison_table, find_runs, paired_differences, read_run, write_report
from edue_lightning.reporting.comparison import COMPARISON_COLUMNS, to_markdown
from edue_lightning.reporting.figures import (
    comparison_panel_figure,
    disagreement_scatter_figure,
    panel_figure,
    quality_control_figure,
    reliability_figure,
)
from edue_lightning.reporting.panels import (
    Panel,
    choose_panel_cases,
    displayable,
    load_panels,
    most_disputed_slice,
    save_panels,
)
from edue_lightning.reporting.run_folder import (
    CASES_COLUMNS,
    METRICS_COLUMNS,
    QUALITY_CONTROL_COLUMNS,
    RELIABILITY_COLUMNS,
    Replicates,
    write_replicates,
    write_table,
)

METRICS = ("dice", "nll", "ece", "brier", "image_pearson", "image_spearman", "pixel_pearson")
RESAMPLES = 60


def panel(case_id: str, seed: int = 0) -> Panel:
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 20, 20), dtype=np.uint8)
    for rater in range(4):
        masks[rater, 5 : 12 + rater, 4:13] = 1
    share = masks.mean(axis=0)
    mean = rng.random((20, 20)).astype(np.float32)
    return Panel(
        case_id=case_id,
        structure="nodule",
        image=rng.random((20, 20)).astype(np.float32),
        masks=masks,
        rater_variance=(share * (1 - share)).astype(np.float32),
        member_variance=(0.25 * rng.random((20, 20))).astype(np.float32),
        mean_probability=mean,
        sv=3.25,
        sv_star=4.5,
    )


def write_run(folder: Path, method: str, seed: int, *, cases: int = 9, shift: float = 0.0) -> Path:
    """Write a finished run with figures that depend on its seed."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    identity = {"method": method, "data": "lidc", "split": "test"}
    configuration = {"seed": seed, "label": method, "command": "train <it>", "commit": "abc", "image_note": "not & CT"}
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
    rows, arrays = [], {}
    for metric in METRICS:
        replicates = shift + rng.random(RESAMPLES)
        arrays["nodule", metric] = replicates
        low, high = interval(replicates)
        row = MetricRow("nodule", metric, float(replicates.mean()), low, high, cases, 0)
        rows.append({**identity, **vars(row)})
    write_table(pd.DataFrame(rows), METRICS_COLUMNS, folder / "metrics.csv")
    ids = tuple(f"case{i}" for i in range(cases))
    table = pd.DataFrame({"case_id": ids, "structure": "nodule", "dice": rng.random(cases), "nll": 0.1, "extra": 1})
    table = table.assign(sv=rng.random(cases), sv_star=rng.random(cases), **identity)
    write_table(table, CASES_COLUMNS, folder / "cases.csv")
    edges = np.arange(16) / 15
    curve = pd.DataFrame({"bin_low": edges[:-1], "bin_high": edges[1:], "count": 10, "structure": "nodule"})
    curve = curve.assign(mean_probability=edges[:-1], frequency=edges[:-1] ** 2, **identity)
    curve.loc[3, ["count", "mean_probability", "frequency"]] = [0, np.nan, np.nan]
    write_table(curve, RELIABILITY_COLUMNS, folder / "reliability.csv")
    control = pd.DataFrame({"flagged": [0, 0.5, 1], "missed": [0.3, 0.1, 0], "structure": "nodule"}).assign(**identity)
    write_table(control, QUALITY_CONTROL_COLUMNS, folder / "quality_control.csv")
    write_replicates(Replicates(ids, arrays), folder / "bootstrap.npz")
    save_panels([panel("case0"), panel("case3", 1)], folder / "panels.npz")
    (folder / "model.json").write_text('{"parameters": 1234567, "networks": 1}')
    return folder


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    for method, shift in (("edue", 0.1), ("layer_ensemble", 0.0)):
        for seed in (0, 1, 2):
            write_run(tmp_path / "runs" / f"{method}_{seed}", method, seed + 10 * len(method), shift=shift)
    return tmp_path / "runs"


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "edue", 4))
    assert run.key == ("edue", "lidc", "test")
    assert run.seed == 4
    assert list(run.metrics.columns) == list(METRICS_COLUMNS)
    assert list(run.cases.columns) == [*CASES_COLUMNS, "extra"]
    value = run.metrics.set_index("metric").loc["dice", "value"]
    assert value == run.replicates.arrays["nodule", "dice"].mean()  # to the last digit
    assert run.cost["parameters"] == 1234567


def test_runs_are_found_at_any_depth(runs_folder: Path) -> None:
    write_run(runs_folder / "deep" / "er" / "run", "single", 0)
    (runs_folder / "unfinished").mkdir()
    (runs_folder / "unfinished" / "config.yaml").write_text("seed: 0")
    assert len(find_runs(runs_folder)) == 7


def test_one_seed_keeps_its_own_interval(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "edue", 4))
    frame = compare([run])
    assert list(frame.columns) == list(COMPARISON_COLUMNS)
    assert set(frame["seeds"]) == {1}
    pd.testing.assert_frame_equal(frame.drop(columns="seeds"), run.metrics)


def test_seeds_are_averaged_and_drawn_with_the_cases(runs_folder: Path) -> None:
    runs = find_runs(runs_folder)
    frame = compare(runs).set_index(["method", "metric"])
    edue = [run for run in runs if run.key[0] == "edue"]
    row = frame.loc[("edue", "nll")]
    values = [run.metrics.set_index("metric").loc["nll", "value"] for run in edue]
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["seeds"] == 3
    drawn = np.random.default_rng([3, 0]).integers(0, 3, size=(3, RESAMPLES))
    averaged = [
        np.mean([edue[drawn[s, b]].replicates.arrays["nodule", "nll"][b] for s in range(3)]) for b in range(RESAMPLES)
    ]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(np.quantile(averaged, [0.025, 0.975]))


def test_differences_are_paired(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "a", "edue", 4))
    # the same resamples, each exactly 0.25 higher
    second = read_run(write_run(tmp_path / "b", "layer_ensemble", 4, shift=0.25))
    frame = paired_differences([first, second], "edue").set_index("metric")
    for metric in METRICS:
        row = frame.loc[metric]
        assert (row["difference"], row["ci_low"], row["ci_high"]) == pytest.approx((0.25, 0.25, 0.25))
    assert set(frame["method"]) == {"layer_ensemble"}


def test_methods_on_other_cases_are_not_paired(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "a", "edue", 4))
    second = read_run(write_run(tmp_path / "b", "layer_ensemble", 4, cases=8))
    assert paired_differences([first, second], "edue").empty


def test_the_same_run_twice_is_an_error_that_names_both(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, "edue", 4)) for name in ("first", "second")]
    with pytest.raises(UserError, match=r"first and .*second: both are edue on lidc/test with seed 4"):
        compare(runs)


def test_seeds_on_different_cases_are_an_error(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(n), "edue", n, cases=n)) for n in (8, 9)]
    with pytest.raises(UserError, match="different cases"):
        compare(runs)


def test_an_undefined_metric_stays_undefined(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "single", 0)
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics.loc[metrics["metric"] == "image_pearson", ["value", "ci_low", "ci_high"]] = np.nan
    metrics.to_csv(folder / "metrics.csv", index=False)
    frame = compare([read_run(folder)])
    row = frame.set_index("metric").loc["image_pearson"]
    assert np.isnan([row["value"], row["ci_low"], row["ci_high"]]).all()
    table = comparison_table(frame, "lidc", "test", "nodule", bold=str)
    assert table["image_pearson ↑"].tolist() == ["undefined"]


def test_the_best_value_is_bold_in_the_right_direction(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", "edue", 4)),
        read_run(write_run(tmp_path / "b", "layer_ensemble", 4, shift=0.3)),
    ]
    table = comparison_table(compare(runs), "lidc", "test", "nodule", bold=lambda text: f"**{text}**").set_index(
        "method"
    )
    for column in table.columns:
        lower_is_better = column in {"nll ↓", "ece ↓", "brier ↓"}
        if table[column].tolist() != ["undefined"] * 2:
            bold = [cell.startswith("**") for cell in table[column]]
            assert bold == [lower_is_better, not lower_is_better], column
    lines = to_markdown(table.reset_index()).splitlines()
    assert lines[1] == "| " + " | ".join(["---"] * 11) + " |"


DAMAGE = {
    "metrics.csv": "method,data\nedue,lidc\n",
    "cases.csv": "",
    "reliability.csv": "a\n1\n",
    "quality_control.csv": "flagged\n0\n",
    "config.yaml": "{unclosed",
    "bootstrap.npz": "PK no archive",
    "model.json": "{",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    (folder / name).write_text(DAMAGE[name])
    with pytest.raises(UserError, match=rf"{name}: ") as error:
        find_runs(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_panels_and_missing_folders_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    (folder / "panels.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"panels.npz: cannot be read"):
        write_report(tmp_path, tmp_path / "report")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no finished run"):
        find_runs(tmp_path / "empty")


class References(HTMLParser):
    """Collects the addresses that a page refers to, its images and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_stands_alone(runs_folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in runs_folder.rglob("*") if path.is_file()}
    paths = write_report(runs_folder, tmp_path / "report")
    page = paths.html.read_text()
    seen = References()
    seen.feed(page)
    assert len(seen.addresses) == 3 + 2  # calibration, quality control, scatter, and a figure a panel case
    assert all(address.startswith("data:image/png;base64,") for address in seen.addresses)
    assert "@import" not in page
    assert "viewport" in page
    assert "not & CT" in seen.text
    assert "train <it>" in seen.text  # escaped in the page
    assert "nll ↓" in seen.text
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((tmp_path / "report" / "figures").glob("*.png"))) == 5
    pd.testing.assert_frame_equal(pd.read_csv(paths.comparison), compare(find_runs(runs_folder)))
    # a second report finds the same runs, its own folder among them or not
    again = write_report(runs_folder, runs_folder / "report")
    assert len(find_runs(runs_folder)) == 6
    assert again.html.is_file()


def test_panels_survive_the_file(tmp_path: Path) -> None:
    panels = [panel("a"), panel("b", 3)]
    save_panels(panels, tmp_path / "panels.npz")
    for before, after in zip(panels, load_panels(tmp_path / "panels.npz"), strict=True):
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value)
        assert isinstance(after.sv, float)
        assert isinstance(after.case_id, str)


def test_panel_cases_are_quantiles_of_the_raters_disagreement() -> None:
    disagreement = np.array([5.0, np.nan, 1.0, 4.0, 2.0, 3.0, 0.0, 6.0, 8.0, 7.0, 9.0, 10.0])
    assert [disagreement[i] for i in choose_panel_cases(disagreement)] == [1, 3, 5, 7, 9]
    assert choose_panel_cases(np.array([np.nan])) == []
    assert choose_panel_cases(np.array([2.0, 1.0])) == [1, 0]


def test_pictures_of_one_and_three_channels() -> None:
    rng = np.random.default_rng(0)
    colour = displayable((100 * rng.random((3, 8, 9))).astype(np.float32))
    grey = displayable((rng.random((2, 8, 9)) - 7).astype(np.float32))
    assert colour.shape == (8, 9, 3)
    assert grey.shape == (8, 9)
    for picture in (colour, grey):
        assert (picture.min(), picture.max()) == (0, 1)
    assert not displayable(np.full((1, 4, 4), 3.0, dtype=np.float32)).any()


def test_the_most_disputed_slice() -> None:
    volume = np.zeros((5, 4, 4), dtype=np.float32)
    volume[3, 1] = 0.2
    volume[1, 1, 1] = 0.25
    assert most_disputed_slice(volume) == 3


def test_figures_show_every_rater_and_one_scale() -> None:
    figure = panel_figure(panel("a"), note="not CT")
    assert figure.get_supxlabel() == "not CT"
    contours, expert, model = figure.axes[:3]
    assert contours.get_title() == "4 raters"
    assert len(contours.collections) == 4
    for axes in (expert, model):
        assert axes.images[0].get_clim() == (0, 0.25)
    assert "4.5" in expert.get_title()
    assert "3.2" in model.get_title()
    comparison = comparison_panel_figure({"edue": panel("a"), "layer_ensemble": panel("a", 1)}, "drawn, not CT")
    assert comparison.get_supxlabel() == "drawn, not CT"
    titles = [axes.get_title() for axes in comparison.axes]
    assert any("layer ensemble" in title for title in titles)


def lines_of(figure: object) -> Iterator[np.ndarray]:
    for line in figure.axes[0].lines:
        yield np.asarray(line.get_xydata())


def test_the_quality_control_figure_has_the_curve_its_ideal_and_its_random_line(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "edue", 0))
    curve, ideal, random, *legend = lines_of(quality_control_figure({"edue": run.quality_control}))
    np.testing.assert_array_equal(curve, [[0, 0.3], [0.5, 0.1], [1, 0]])
    np.testing.assert_array_equal(ideal, [[0, 0.3], [0.3, 0]])
    np.testing.assert_array_equal(random, [[0, 0.3], [1, 0]])
    assert not any(len(line) for line in legend)


def test_the_calibration_curve_leaves_empty_bins_out(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "edue", 0))
    diagonal, curve = lines_of(reliability_figure({"edue": run.reliability}))
    assert diagonal.tolist() == [[0, 0], [1, 1]]
    assert len(curve) == 14
    np.testing.assert_allclose(curve[:, 1], curve[:, 0] ** 2)


def test_the_scatter_tells_its_correlation(tmp_path: Path) -> None:
    cases = read_run(write_run(tmp_path / "run", "edue", 0)).cases
    constant = cases.assign(sv=0.0)
    figure = disagreement_scatter_figure({"edue": cases, "single": constant})
    expected = np.corrcoef(cases["sv"], cases["sv_star"])[0, 1]
    assert f"Pearson {expected:.2f}" in figure.axes[0].get_title()
    assert "undefined" in figure.axes[1].get_title()
