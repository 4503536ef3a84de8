"""Run folders, the comparison and the report, on runs written as training writes them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from run_files import (
    METRICS,
    RESAMPLES,
    panel,
    write_cost,
    write_distortions,
    write_run,
    write_validation,
)
from scipy.stats import spearmanr

from edue_lightning.data import RaterSample
from edue_lightning.errors import UserError
from edue_lightning.evaluation.measure import _panel, unit_of
from edue_lightning.reporting import compare, comparison_table, find_runs, paired_differences, read_run, write_report
from edue_lightning.reporting.charts.chart import Chart
from edue_lightning.reporting.charts.disagreement import disagreement_charts
from edue_lightning.reporting.charts.draw import FORMS, draw
from edue_lightning.reporting.charts.interactive import plotly_of
from edue_lightning.reporting.charts.styles import MOST_COLOURED, method_styles
from edue_lightning.reporting.comparison import COMPARISON_COLUMNS, best_methods, to_markdown
from edue_lightning.reporting.figures import (
    comparison_panel_figure,
    panel_figure,
    quality_control_figure,
    reliability_figure,
)
from edue_lightning.reporting.findings import VERDICT_COLUMNS
from edue_lightning.reporting.panels import (
    choose_panel_cases,
    cropped,
    displayable,
    load_panels,
    most_disputed_slice,
    save_panels,
)
from edue_lightning.runs.files import CASES_COLUMNS, METRICS_COLUMNS
from edue_lightning.uncertainty import MEMBERS


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
    pd.testing.assert_frame_equal(frame.drop(columns=["seeds", "better"]), run.metrics)


def test_seeds_are_averaged_and_drawn_with_the_cases(runs_folder: Path) -> None:
    runs = find_runs(runs_folder)
    frame = compare(runs).set_index(["method", "metric"])
    edue = [run for run in runs if run.key[0] == "edue"]
    row = frame.loc[("edue", "nll")]
    values = [run.metrics.set_index("metric").loc["nll", "value"] for run in edue]
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["seeds"] == 3
    # two of the three, or the variance between them would be too small
    drawn = np.random.default_rng([3, 0]).integers(0, 3, size=(2, RESAMPLES))
    averaged = [
        np.mean([edue[drawn[s, b]].replicates.arrays["nodule", "nll"][b] for s in range(2)]) for b in range(RESAMPLES)
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
    with pytest.raises(
        UserError, match=r"first and .*second: both are edue on lidc/test with seed 4 and the same sett"
    ):
        compare(runs)


def test_seeds_on_different_cases_are_different_data(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(n), "edue", n, cases=n)) for n in (8, 9)]
    frame = compare(runs)
    assert set(frame["seeds"]) == {1}
    assert [name.split(" cases ")[0] for name in dict.fromkeys(frame["data"])] == ["lidc, 8", "lidc, 9"]


def test_an_undefined_metric_stays_undefined(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "single", 0)
    metrics = pd.read_csv(folder / "metrics.csv")
    metrics.loc[metrics["metric"] == "image_pearson", ["value", "ci_low", "ci_high"]] = np.nan
    metrics.to_csv(folder / "metrics.csv", index=False)
    frame = compare([read_run(folder)])
    row = frame.set_index("metric").loc["image_pearson"]
    assert np.isnan([row["value"], row["ci_low"], row["ci_high"]]).all()
    table = comparison_table(frame, ("lidc", "test", "nodule"), {}, bold=str)
    assert table["image_pearson ↑"].tolist() == ["undefined"]


def test_the_best_value_is_bold_in_the_right_direction(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", "edue", 4)),
        read_run(write_run(tmp_path / "b", "layer_ensemble", 4, shift=0.3)),
    ]
    methods = {run.method: [run] for run in runs}
    best = {metric: best_methods(methods, "nodule", metric) for metric in METRICS}
    table = comparison_table(compare(runs), ("lidc", "test", "nodule"), best, bold=lambda text: f"**{text}**")
    table = table.set_index("method")
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
    "validation.csv": "method\nedue\n",
    "distorted_cases.csv": "case_id,severity\n",
    "detection.csv": "method,data,split,structure,score,distortion,severity\n",
}


def test_an_older_run_lacks_files_but_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "edue", 0))
    assert run.validation is None
    assert run.distorted_cases is None
    assert run.detection is None
    assert np.isnan(run.validation_value("nodule", "dice"))
    assert np.isnan(run.value("nodule", "no metric"))


def test_curves_without_a_score_ask_for_another_evaluation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "edue", 0)
    pd.read_csv(folder / "quality_control.csv").drop(columns="score").to_csv(
        folder / "quality_control.csv", index=False
    )
    with pytest.raises(UserError, match=r"quality_control.csv: lacks the columns score; run the evaluation again"):
        read_run(folder)


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
        write_report(tmp_path, tmp_path / "report", "edue")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no finished run"):
        find_runs(tmp_path / "empty")


class References(HTMLParser):
    """Collects the addresses that a page refers to, its elements, and its text without scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_script = tag in ("script", "style")
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.text += data


def assert_stands_alone(page: str, figures: int) -> References:
    seen = References(page)
    assert seen.tags.count("figcaption") == figures
    pictures = [address for address in seen.addresses if not address.startswith("#")]
    assert len(pictures) == seen.tags.count("img")
    assert all(address.startswith("data:image/png;base64,") for address in pictures)
    assert "link" not in seen.tags
    assert "iframe" not in seen.tags
    # the browser itself refuses any request
    assert "default-src &#x27;none&#x27;; img-src data: blob:;" in page
    own = re.sub(r'<script type="text/plain" id="library">[^<]*', "", re.sub(r'base64,[^"]*', "", page))
    for outside in ("http:", "https:", "@import", "url("):
        assert outside not in own, outside
    # every entry of the contents leads to a heading
    for address in seen.addresses:
        assert not address.startswith("#") or f'id="{address[1:]}"' in page
    return seen


def test_the_report_stands_alone(runs_folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in runs_folder.rglob("*") if path.is_file()}
    paths = write_report(runs_folder, tmp_path / "report", "edue")
    page = paths.html.read_text()
    # calibration, quality control, and the scatter by value and by rank
    seen = assert_stands_alone(page, 4)
    # two cases: the raters' outlines and V*, and three maps of each method
    assert seen.tags.count("img") == 4 + 2 * (2 + 2 * 3)
    assert "viewport" in page
    assert "not & CT" in seen.text
    assert "train <it>" in seen.text  # escaped in the page
    assert "NLL ↓" in seen.text
    made = f"Made bypython -m edue_lightning.report runs={runs_folder} output={paths.folder} reference=edue"
    assert seen.text.count("edue_lightning.report") == seen.text.count(f"{made}from runs of commit abc.") == 1
    assert "AUROC of distorted images against" not in seen.text
    assert {path: path.read_bytes() for path in before} == before
    for ending in ("png", "svg"):
        assert len(list((tmp_path / "report" / "figures").glob(f"*.{ending}"))) == 4 + 2
    pd.testing.assert_frame_equal(pd.read_csv(paths.comparison), compare(find_runs(runs_folder)))
    # a second report finds the same runs, its own folder among them or not
    again = write_report(runs_folder, runs_folder / "report", "edue")
    assert len(find_runs(runs_folder)) == 6
    assert again.html.is_file()


def test_the_verdict_stands_on_top_of_page_and_markdown(runs_folder: Path, tmp_path: Path) -> None:
    for folder in runs_folder.iterdir():
        method = folder.name.rpartition("_")[0]
        write_validation(folder, method, {"nll": 0.1, "dice": 0.8})
    paths = write_report(runs_folder, tmp_path / "report", "edue")
    frame = pd.read_csv(paths.verdict, keep_default_na=False, na_values=[""])
    assert tuple(frame.columns) == VERDICT_COLUMNS
    assert set(frame["quantity"]) >= {"nll", "dice", "forward_passes"}
    row = frame[frame["quantity"] == "nll"].iloc[0]
    page = References(paths.html.read_text()).text
    for text in (paths.markdown.read_text(), page):
        # there is no deep ensemble to be compared with
        assert "lidc: not compared with layer_ensemble and deep_ensemble" in text
    text = paths.markdown.read_text()
    assert text.index("edue against the other methods on the test cases") < text.index("95 % bootstrap intervals")
    assert f"| NLL | {row['value']:.3f} | layer_ensemble | {row['baseline_value']:.3f} |" in text
    # one sentence, then what to beware of, the matrix, differences, figures, tables and the command
    parts = ("edue is better than the best baseline in", "warnings: read before", "Every method against edue")
    parts += ("Differences from edue on lidc", "Calibration on lidc", "Quality control on lidc", "Disagreement on lidc")
    parts += ("Case case0", "lidc, test, nodule: 9 cases", "Made by")
    # the contents stand before
    places = [page.rindex(part) for part in parts]
    assert places == sorted(places)


def test_without_a_run_of_the_reference_the_report_says_so(runs_folder: Path, tmp_path: Path) -> None:
    paths = write_report(runs_folder, tmp_path / "report", "edue_moments")
    said = "No run has the label edue_moments, so there are no differences from it and no verdict on it."
    assert said in paths.markdown.read_text()
    seen = References(paths.html.read_text())
    assert said in seen.text
    assert "Difference to" not in seen.text
    assert seen.text.count(said) == 1
    assert pd.read_csv(paths.verdict).empty
    assert pd.read_csv(tmp_path / "report" / "differences.csv").empty


def test_a_report_leaves_nothing_of_an_earlier_one_and_all_else(runs_folder: Path, tmp_path: Path) -> None:
    for folder in runs_folder.iterdir():
        write_validation(folder, folder.name.rpartition("_")[0], {"nll": 0.1, "dice": 0.8})
    paths = write_report(runs_folder, tmp_path / "report", "edue", "paper")
    assert (paths.latex / "verdict.tex").exists()
    (paths.figures / "mine.png").write_bytes(b"mine")
    for folder in runs_folder.glob("edue_*"):
        shutil.rmtree(folder)
    write_report(runs_folder, tmp_path / "report", "edue")
    write_report(runs_folder, tmp_path / "new", "edue")
    left, expected = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "report", tmp_path / "new")
    )
    assert left == expected | {Path("figures/mine.png")}


def test_another_reference_is_compared_with(runs_folder: Path, tmp_path: Path) -> None:
    write_report(runs_folder, tmp_path / "report", "layer_ensemble")
    differences = pd.read_csv(tmp_path / "report" / "differences.csv")
    assert set(differences["reference"]) == {"layer_ensemble"}
    assert set(differences["method"]) == {"edue"}


def test_many_methods_make_one_report(tmp_path: Path) -> None:
    labels = ["edue", "layer_ensemble", "deep_ensemble_rater_per_member", *(f"method_{n}" for n in range(10))]
    for label in labels:
        for seed in (0, 1):
            folder = write_run(tmp_path / "runs" / f"{label}_{seed}", label, seed)
            write_validation(folder, label, {"nll": 0.1})
            write_distortions(folder, label, seed, has_sv=label != "method_0")
            write_cost(folder, parameters=1e6, parameter_ratio=1.02, forward_passes=1, flops=1e9)
    paths = write_report(tmp_path / "runs", tmp_path / "report", "edue")
    # differences, calibration, quality control, boxes, detection, and the scatter by value and by rank
    seen = assert_stands_alone(paths.html.read_text(), 7)
    assert set(labels) <= set(re.findall(r"\w+", seen.text))
    assert "AUROC of distorted images against" in seen.text
    assert "parameter ratio" in seen.text
    assert "latency ratio" not in seen.text


@pytest.mark.parametrize("methods", [2, MOST_COLOURED, 11, 20])
def test_methods_differ_by_marker_and_dashes_and_of_many_only_the_reference_has_a_colour(methods: int) -> None:
    styles = method_styles([str(n) for n in range(methods)], "1")
    assert len({(style.marker, style.dash) for style in styles.values()}) == methods
    assert [label for label, style in styles.items() if style.strong] == ["1"]
    others = {style.colour for label, style in styles.items() if label != "1"}
    assert (len(others) == 1) == (methods == 2 or methods > MOST_COLOURED)
    assert styles["1"].colour not in others


def test_many_panels_wrap_into_rows() -> None:
    panels = {f"method_{n}": panel("a", n) for n in range(13)}
    figure = comparison_panel_figure(panels)
    assert figure.get_figwidth() < 20
    titles = [axes.get_title() for axes in figure.axes]
    assert sum("method" in title for title in titles) == 13
    assert sum(title.startswith("V, SV") for title in titles) == 13
    # the prediction lies above V, and that above p(1 - p)
    place = next(n for n, axes in enumerate(figure.axes) if "method 11" in axes.get_title())
    prediction, variance, total = (figure.axes[place + step] for step in (0, 7, 14))
    shown = cropped(panels["method_11"])
    np.testing.assert_array_equal(prediction.images[0].get_array(), shown.image)
    np.testing.assert_array_equal(variance.images[0].get_array(), shown.member_variance)
    np.testing.assert_array_equal(total.images[0].get_array(), shown.total_variance)


def test_panels_survive_the_file(tmp_path: Path) -> None:
    panels = [panel("a"), panel("b", 3)]
    save_panels(panels, tmp_path / "panels.npz")
    for before, after in zip(panels, load_panels(tmp_path / "panels.npz"), strict=True):
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value)
        assert isinstance(after.sv, float)
        assert isinstance(after.case_id, str)


def test_the_soft_majority_of_a_panel_has_ties_as_they_are_measured() -> None:
    # half of the four raters marked row 13, three of them row 12
    for tie, in_row_13 in (("foreground", True), ("background", False)):
        consensus = cropped(replace(panel("a"), majority_tie=tie)).consensus
        rows = np.flatnonzero(consensus.any(axis=1))
        assert len(rows) == 8 + in_row_13


def test_a_single_network_is_drawn_by_p_times_1_minus_p_and_labelled_so() -> None:
    network = replace(panel("a"), member_variance=np.zeros((20, 20), np.float32), sv=float("nan"), sv_total=7.25)
    expected = network.mean_probability * (1 - network.mean_probability)
    figure = panel_figure(network)
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), expected)
    assert figure.axes[2].get_title() == "single network\np(1 - p) 7.2"
    # a file of an earlier version holds 0 and no sum of p(1 - p)
    earlier = replace(network, sv=0.0, sv_total=float("nan"))
    comparison = comparison_panel_figure({"edue": panel("a"), "single": network, "earlier": earlier})
    drawn = {axes.get_title(): axes for axes in comparison.axes}
    np.testing.assert_array_equal(drawn["p(1 - p) 7.2"].images[0].get_array(), expected)
    np.testing.assert_array_equal(drawn["p(1 - p)"].images[0].get_array(), expected)
    np.testing.assert_array_equal(drawn["V, SV 3.2"].images[0].get_array(), panel("a").member_variance)
    titles = [axes.get_title() for axes in comparison.axes]
    assert titles.count("single network: no V") == 2


@pytest.mark.parametrize("members", [1, 3])
def test_the_measured_panel_of_a_single_network_has_no_sum_of_variances(members: int) -> None:
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.random((members, 1, 12, 10)))
    masks = torch.from_numpy((rng.random((2, 1, 12, 10)) > 0.5).astype(np.uint8))
    sample = RaterSample(torch.zeros(1, 12, 10), masks, torch.ones(2, dtype=torch.bool), "a", (2.0, 3.0))
    found = _panel(
        SimpleNamespace(spatial_dims=2, structures=("cup",), storage=None),
        sample,
        0,
        probabilities,
        MEMBERS,
        "foreground",
    )
    mean = probabilities.numpy()[:, 0].mean(axis=0)
    assert found.sv_total == pytest.approx(6 * (mean * (1 - mean)).sum(), rel=1e-5)
    assert found.has_members == (members > 1)
    variance = probabilities.numpy()[:, 0].var(axis=0)
    assert found.sv == pytest.approx(6 * variance.sum() if members > 1 else np.nan, rel=1e-5, nan_ok=True)


def test_sums_over_an_image_have_a_unit_by_what_is_known_of_its_voxels() -> None:
    valid = torch.ones(2, dtype=torch.bool)
    for size, known, unknown in (((4, 4), "mm²", "pixels"), ((2, 4, 4), "mm³", "voxels")):
        parts = (torch.zeros(1, *size), torch.zeros(2, 1, *size, dtype=torch.uint8), valid, "a")
        assert unit_of(RaterSample(*parts, (1.0,) * len(size))) == known
        assert unit_of(RaterSample(*parts)) == unknown


def test_panels_of_earlier_versions_are_read(tmp_path: Path) -> None:
    save_panels([panel("a"), panel("b", 3)], tmp_path / "panels.npz")
    with np.load(tmp_path / "panels.npz") as archive:
        earlier = {name: archive[name] for name in archive.files if not name.endswith("/sv_total")}
    np.savez_compressed(tmp_path / "panels.npz", **earlier)
    assert [(found.case_id, found.sv) for found in load_panels(tmp_path / "panels.npz")] == [("a", 3.25), ("b", 3.25)]


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
    # of a small image nothing is cut off
    np.testing.assert_array_equal(expert.images[0].get_array(), panel("a").rater_variance)
    prediction = figure.axes[4]
    assert len(prediction.collections) == 2
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
    curves = {"edue": run.quality_control[run.quality_control["score"] == "sv"]}
    figure = quality_control_figure({**curves, "same": curves["edue"].assign(missed=[0.6, 0.3, 0])})
    random, ideal, *of_methods = lines_of(figure)
    np.testing.assert_array_equal(random, [[0, 0], [1, 1]])
    # of the first alone, whose share of poor ones is 0.3
    np.testing.assert_array_equal(ideal, [[0, 0], [0.3, 1], [1, 1]])
    other, curve = of_methods
    np.testing.assert_allclose(curve, [[0, 0], [0.5, 2 / 3], [1, 1]])
    np.testing.assert_allclose(other, [[0, 0], [0.5, 0.5], [1, 1]])
    assert figure.axes[0].get_ylabel() == "share of the poor segmentations found"


def test_a_method_without_poor_segmentations_has_no_curve(tmp_path: Path) -> None:
    curve = pd.DataFrame({"flagged": [0.0, 1.0], "missed": [0.0, 0.0]})
    (random,) = lines_of(quality_control_figure({"edue": curve}))
    np.testing.assert_array_equal(random, [[0, 0], [1, 1]])


def test_the_calibration_curve_leaves_empty_bins_out(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "edue", 0))
    diagonal, curve = lines_of(reliability_figure({"edue": run.reliability}))
    assert diagonal.tolist() == [[0, 0], [1, 1]]
    assert len(curve) == 14
    np.testing.assert_allclose(curve[:, 1], curve[:, 0] ** 2)


def test_the_scatter_tells_its_correlation(tmp_path: Path) -> None:
    cases = read_run(write_run(tmp_path / "run", "edue", 0)).cases
    constant = cases.assign(sv=0.0)
    network = cases.assign(sv=np.nan, sv_total=2 * cases["sv"])
    tables = {"edue": cases, "single": constant, "network": network}
    styles = method_styles(list(tables), "edue")
    by_value, by_rank = disagreement_charts(tables, styles, "mm²", name="scatter", title="Disagreement")
    figure = draw(by_value)
    expected = np.corrcoef(cases["sv"], cases["sv_star"])[0, 1]
    assert f"Pearson {expected:.2f}" in figure.axes[0].get_title()
    assert figure.axes[0].get_xlabel() == "raters' SV* in mm²"
    assert "undefined" in figure.axes[1].get_title()
    assert figure.axes[2].get_title() == f"network\nPearson {expected:.2f} of p(1 - p)"
    ranks = cases[["sv", "sv_star"]].rank()
    assert f"Spearman {ranks['sv'].corr(ranks['sv_star']):.2f}" in by_rank.plots[0].title
    _, points = by_rank.plots[0].series
    assert points.x == ranks["sv_star"].tolist()
    assert f"Pearson correlation is highest for edue ({expected:.2f})" in by_value.alt


def test_the_scatter_ranks_scores_that_are_equal_up_to_rounding_as_the_table_does(tmp_path: Path) -> None:
    cases = read_run(write_run(tmp_path / "run", "edue", 0)).cases
    rounding = 1 + 1e-14 * np.arange(len(cases))
    cases = cases.assign(sv=np.where(np.arange(len(cases)) < 5, 2.0, 3.0) * rounding)
    constant = cases.assign(sv=0.1 * rounding)
    tables = {"edue": cases, "single": constant}
    _, by_rank = disagreement_charts(tables, method_styles(list(tables), "edue"), "", name="scatter", title="All")
    expected = spearmanr(cases["sv"].round(6), cases["sv_star"]).statistic
    assert by_rank.plots[0].title == f"edue\nSpearman {expected:.2f}"
    assert by_rank.plots[1].title == "single\nSpearman undefined"
    _, points = by_rank.plots[0].series
    assert len(set(points.y)) == 2


def test_a_map_is_cropped_to_what_the_raters_marked() -> None:
    wide = replace(
        panel("a"),
        image=np.arange(3600.0).reshape(60, 60).astype(np.float32) / 3600,
        masks=np.pad(panel("a").masks, ((0, 0), (30, 10), (10, 30))),
        **{name: np.zeros((60, 60), np.float32) for name in ("rater_variance", "member_variance", "mean_probability")},
    )
    found = cropped(wide)
    assert found.image.shape == found.masks.shape[1:] == found.member_variance.shape == (24, 24)
    assert found.masks.sum() == wide.masks.sum()
    row, column = (int(at[0]) for at in np.nonzero(wide.image == found.image[0, 0]))
    np.testing.assert_array_equal(found.masks, wide.masks[:, row : row + 24, column : column + 24])
    empty = replace(wide, masks=np.zeros_like(wide.masks))
    assert cropped(empty) is empty


def test_figures_for_papers_have_the_width_of_a_column_and_small_letters(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "edue", "edue", 0)
    paths = write_report(tmp_path / "runs", tmp_path / "report", "edue", "paper")
    assert sorted(path.suffix for path in paths.figures.glob("calibration_*")) == [".pdf", ".png", ".svg"]
    svg = next(paths.figures.glob("calibration_*.svg")).read_text()
    width = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)[1])
    assert width / 72 * 25.4 == pytest.approx(89, abs=0.1)
    figure = draw(a_chart(run), "paper")
    assert figure.axes[0].xaxis.label.get_fontsize() == FORMS["paper"].font == 7
    # the page has pictures of its own, and the command that makes the same report
    assert "figures=paper" in References(paths.html.read_text()).text
    assert not list(paths.figures.glob("*.screen.*"))


def a_chart(folder: Path) -> Chart:
    cases = read_run(folder).cases
    (chart, _) = disagreement_charts({"edue": cases}, method_styles(["edue"], "edue"), "", name="a", title="A")
    return chart


def test_a_plot_of_the_page_holds_what_its_file_shows(tmp_path: Path) -> None:
    chart = a_chart(write_run(tmp_path / "run", "edue", 0))
    drawn = plotly_of(chart.plots[0])
    _, points = chart.plots[0].series
    trace = drawn["data"][1]
    np.testing.assert_allclose(trace["x"], points.x, rtol=1e-4)
    np.testing.assert_allclose(trace["y"], points.y, rtol=1e-4)
    assert trace["meta"]["method"] == "edue"
    assert drawn["layout"]["xaxis"]["title"]["text"] == chart.plots[0].x_label
