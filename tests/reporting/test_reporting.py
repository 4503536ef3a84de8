"""Run folders, the comparison and the report, on runs written as training writes them."""

from __future__ import annotations

import re
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

from edue_lightning.data import RaterSample
from edue_lightning.errors import UserError
from edue_lightning.evaluation.measure import _panel
from edue_lightning.reporting import compare, comparison_table, find_runs, paired_differences, read_run, write_report
from edue_lightning.reporting.comparison import COMPARISON_COLUMNS, best_methods, to_markdown
from edue_lightning.reporting.figures import (
    comparison_panel_figure,
    disagreement_scatter_figure,
    line_styles,
    panel_figure,
    quality_control_figure,
    reliability_figure,
)
from edue_lightning.reporting.findings import VERDICT_COLUMNS
from edue_lightning.reporting.panels import (
    choose_panel_cases,
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
    """Collects the addresses that a page refers to, its tables and captions, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_stands_alone(page: str, figures: int) -> References:
    seen = References(page)
    assert len(seen.addresses) == seen.tags.count("figcaption") == figures
    assert all(address.startswith("data:image/png;base64,") for address in seen.addresses)
    for outside in ("http", "@import", "url(", "link", "iframe"):
        assert outside not in re.sub(r"base64,[^\"]*", "", page), outside
    return seen


def test_the_report_stands_alone(runs_folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in runs_folder.rglob("*") if path.is_file()}
    paths = write_report(runs_folder, tmp_path / "report", "edue")
    page = paths.html.read_text()
    # calibration, quality control, scatter, and a figure a panel case
    seen = assert_stands_alone(page, 3 + 2)
    assert "viewport" in page
    assert "not & CT" in seen.text
    assert "train <it>" in seen.text  # escaped in the page
    assert "nll ↓" in seen.text
    made = f"Made by python -m edue_lightning.report runs={runs_folder} output={paths.folder} reference=edue"
    assert seen.text.count(f"{made} from runs of commit abc.") == 5
    assert "AUROC of distorted images against" not in seen.text
    assert {path: path.read_bytes() for path in before} == before
    for ending in ("png", "svg"):
        assert len(list((tmp_path / "report" / "figures").glob(f"*.{ending}"))) == 5
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
    for text in (paths.markdown.read_text(), References(paths.html.read_text()).text):
        assert text.index("edue against the other methods on the test cases") < text.index("95 % bootstrap intervals")
        assert f"NLL {row['value']:.3f} against {row['baseline_value']:.3f} of layer_ensemble" in text
        # there is no deep ensemble to be compared with
        assert "lidc: not compared with layer_ensemble and deep_ensemble" in text


def test_without_a_run_of_the_reference_the_report_says_so(runs_folder: Path, tmp_path: Path) -> None:
    paths = write_report(runs_folder, tmp_path / "report", "edue_moments")
    said = "No run has the label edue_moments, so there are no differences from it and no verdict on it."
    assert said in paths.markdown.read_text()
    seen = References(paths.html.read_text())
    assert said in seen.text
    assert "Difference to" not in seen.text
    assert pd.read_csv(paths.verdict).empty
    assert pd.read_csv(tmp_path / "report" / "differences.csv").empty


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
    # calibration, quality control, scatter, boxes, detection, and a figure a panel case
    seen = assert_stands_alone(paths.html.read_text(), 5 + 2)
    assert set(labels) <= set(re.findall(r"\w+", seen.text))
    assert "AUROC of distorted images against" in seen.text
    assert "parameter ratio" in seen.text
    assert "latency ratio" not in seen.text


def test_more_methods_than_colours_differ_by_their_lines() -> None:
    styles = line_styles([str(n) for n in range(20)])
    assert len({(style["color"], str(style["linestyle"])) for style in styles.values()}) == 20


def test_many_panels_wrap_into_rows() -> None:
    panels = {f"method_{n}": panel("a", n) for n in range(13)}
    figure = comparison_panel_figure(panels)
    assert figure.get_figwidth() < 20
    titles = [axes.get_title() for axes in figure.axes]
    assert sum("method" in title for title in titles) == 13
    assert titles.count("prediction") == 13
    # what is drawn lies above its prediction
    above = next(axes for axes in figure.axes if "method 11" in axes.get_title())
    below = figure.axes[figure.axes.index(above) + 7]
    np.testing.assert_array_equal(below.images[0].get_array(), panels["method_11"].mean_probability >= 0.5)


def test_panels_survive_the_file(tmp_path: Path) -> None:
    panels = [panel("a"), panel("b", 3)]
    save_panels(panels, tmp_path / "panels.npz")
    for before, after in zip(panels, load_panels(tmp_path / "panels.npz"), strict=True):
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value)
        assert isinstance(after.sv, float)
        assert isinstance(after.case_id, str)


def test_a_single_network_is_drawn_by_p_times_1_minus_p_and_labelled_so() -> None:
    network = replace(panel("a"), member_variance=np.zeros((20, 20), np.float32), sv=float("nan"), sv_total=7.25)
    expected = network.mean_probability * (1 - network.mean_probability)
    figure = panel_figure(network)
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), expected)
    assert figure.axes[2].get_title() == "single network, p(1 - p) 7.2"
    # a file of an earlier version holds 0 and no sum of p(1 - p)
    earlier = replace(network, sv=0.0, sv_total=float("nan"))
    comparison = comparison_panel_figure({"edue": panel("a"), "single": network, "earlier": earlier})
    drawn = {axes.get_title(): axes for axes in comparison.axes}
    for title in ("single\np(1 - p) 7.2", "earlier\np(1 - p)"):
        np.testing.assert_array_equal(drawn[title].images[0].get_array(), expected)
    np.testing.assert_array_equal(drawn["edue\nSV 3.2"].images[0].get_array(), panel("a").member_variance)


@pytest.mark.parametrize("members", [1, 3])
def test_the_measured_panel_of_a_single_network_has_no_sum_of_variances(members: int) -> None:
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.random((members, 1, 12, 10)))
    masks = torch.from_numpy((rng.random((2, 1, 12, 10)) > 0.5).astype(np.uint8))
    sample = RaterSample(torch.zeros(1, 12, 10), masks, torch.ones(2, dtype=torch.bool), "a", (2.0, 3.0))
    found = _panel(SimpleNamespace(spatial_dims=2, structures=("cup",)), sample, 0, probabilities, MEMBERS)
    mean = probabilities.numpy()[:, 0].mean(axis=0)
    assert found.sv_total == pytest.approx(6 * (mean * (1 - mean)).sum(), rel=1e-5)
    assert found.has_members == (members > 1)
    variance = probabilities.numpy()[:, 0].var(axis=0)
    assert found.sv == pytest.approx(6 * variance.sum() if members > 1 else np.nan, rel=1e-5, nan_ok=True)


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
    curve, ideal, random, *legend = lines_of(quality_control_figure(curves))
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
    network = cases.assign(sv=np.nan, sv_total=2 * cases["sv"])
    figure = disagreement_scatter_figure({"edue": cases, "single": constant, "network": network})
    expected = np.corrcoef(cases["sv"], cases["sv_star"])[0, 1]
    assert f"Pearson {expected:.2f}" in figure.axes[0].get_title()
    assert "undefined" in figure.axes[1].get_title()
    assert figure.axes[2].get_title() == f"network\nPearson {expected:.2f} of p(1 - p)"
