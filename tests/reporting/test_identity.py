"""Runs that differ by more than their seed are told apart, by what differs."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from processes import run_command
from run_files import RESAMPLES, write_run, write_validation, write_values

from edue_lightning.data.module import RESERVED_STRUCTURE
from edue_lightning.metrics import MEAN_STRUCTURE, resample_counts
from edue_lightning.reporting import compare, find_runs, judge, paired_differences, read_run, write_report
from edue_lightning.reporting.identity import distinguish
from edue_lightning.runs.files import FINGERPRINT, IMAGE_FINGERPRINT, Replicates, Run, write_replicates

SETTINGS: dict[str, Any] = {
    "method": {"_target_": "edue_lightning.methods.EDUE", "guidance": {"weight": 200.0}},
    "optimizer": {"learning_rate": 0.003},
    "data": {"name": "lidc", "root": "a", "source": {"root": "a", "size": 64}, "training_raters": None, "seed": 0},
    "metrics": {"_target_": "edue_lightning.metrics.MetricSettings", "poor_dice": 0.8, "ged_distance": "iou"},
    "logger": {"mode": "offline"},
    "trainer": {"devices": 1},
    "resume": None,
    "training_cases": "30 (abc)",
}


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = {**first, **second}
    return both | {
        key: merged(first[key], second[key])
        for key in second
        if isinstance(first.get(key), dict) and isinstance(second[key], dict)
    }


def run(folder: Path, seed: int = 0, method: str = "edue", written: Any = write_run, **changed: Any) -> Run:
    """Write and read a run whose settings differ in some, given by dotted keys with `__` for the dot."""
    written(folder, method, seed)
    record = yaml.safe_load((folder / "config.yaml").read_text())
    record = merged(merged(record, SETTINGS), {"data": {"seed": seed}})
    for path, value in changed.items():
        record = merged(record, nested(path.replace("__", "."), value))
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    return read_run(folder)


def names(runs: list[Run]) -> list[tuple[str, str]]:
    return [(run.method, run.data) for run in distinguish(runs)]


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("optimizer__learning_rate", 0.001, "learning_rate=0.001"),
        ("method__guidance__weight", 500.0, "weight=500.0"),
        ("data__training_raters", [0, 1], "training_raters=[0,1]"),
        ("method__members", 5, "members=5"),
        ("data__source__size", 48, "size=48"),
        ("method___target_", "edue_lightning.methods.LayerEnsemble", "method=methods.LayerEnsemble"),
        ("training_cases", "39 (abcdef01)", "training_cases=39 (abcdef01)"),
    ],
)
def test_runs_of_other_settings_are_no_seeds_of_one_method(tmp_path: Path, setting: str, value: Any, name: str) -> None:
    runs = [run(tmp_path / "a", 0), run(tmp_path / "b", 1), run(tmp_path / "c", 2, **{setting: value})]
    frame = compare(runs)
    seeds = frame.groupby("method", sort=False)["seeds"].max().to_dict()
    other, changed = seeds
    assert seeds == {other: 2, changed: 1}
    assert changed == f"edue, {name}"
    assert other.startswith("edue, ")
    # the same seed is no contradiction either
    again = run(tmp_path / "d", 0, **{setting: value})
    assert names([*runs, again])[-1][0] == changed


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("logger__mode", "disabled"),
        ("resume", "auto"),
        ("members_at_once", 2),
        ("wandb__mode", "disabled"),
        ("compile", True),
        ("triage_sensitivity", 0.9),
        ("checkpoint_every_steps", 50),
        ("distortions", {"kinds": ["noise"]}),
        ("device", "cuda"),
        ("hydra__job", "another"),
        ("trainer__enable_model_summary", False),
        ("trainer__profiler", "simple"),
        ("network__channels_last", True),
        ("inference__batch_size", 4),
        ("data__num_workers", 4),
        ("trainer__devices", "free"),
        ("data__cache", "elsewhere"),
        ("command", "another"),
        ("commit", "def"),
    ],
)
def test_settings_of_a_start_alone_make_no_other_method(tmp_path: Path, setting: str, value: Any) -> None:
    runs = [run(tmp_path / "a", 0), run(tmp_path / "b", 1, **{setting: value})]
    assert names(runs) == [("edue", "lidc")] * 2


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("metrics__ged_distance", "dice", "lidc, ged_distance=dice"),
        ("metrics__poor_dice", 0.9, "lidc, poor_dice=0.9"),
        ("metrics__majority_tie", "background", "lidc, majority_tie=background"),
        ("metrics__surface_tolerance", 2.0, "lidc, surface_tolerance=2.0"),
    ],
)
def test_other_settings_of_the_metrics_are_not_compared(tmp_path: Path, setting: str, value: Any, name: str) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", method="single", **{setting: value})]
    assert names(runs)[1] == ("single", name)
    assert paired_differences(runs, "edue").empty
    write_report(tmp_path, tmp_path / "report", "edue")
    text = (tmp_path / "report" / "comparison.md").read_text()
    # two tables of one method each, in which nothing is the best
    assert "**" not in text
    assert f"{name}: no verdict, since edue was not measured on this data with these settings of the metrics." in text


def test_runs_with_and_without_an_extra_metric_are_compared_and_two_of_one_name_are_not(tmp_path: Path) -> None:
    extra = {"missed": {"_target_": "mine.Missed", "scale": 1.0}}
    usual = run(tmp_path / "usual")
    measured = run(tmp_path / "measured", method="single", metrics__extra=extra)
    other = run(tmp_path / "other", method="single", metrics__extra__other={"_target_": "mine.Other"})
    assert {data for _, data in names([usual, measured, other])} == {"lidc"}
    scaled = run(tmp_path / "scaled", method="single", metrics__extra=merged(extra, {"missed": {"scale": 2.0}}))
    assert len({data for _, data in names([measured, scaled])}) == 2


def test_the_same_cases_in_another_order_are_the_same_data(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", 0), run(tmp_path / "b", 1)]
    turned = pd.read_csv(runs[1].folder / "cases.csv").iloc[::-1]
    turned.to_csv(runs[1].folder / "cases.csv", index=False)
    arrays = runs[1].replicates.arrays
    write_replicates(Replicates(runs[1].replicates.case_ids[::-1], arrays), runs[1].folder / "bootstrap.npz")
    runs = [runs[0], read_run(runs[1].folder)]
    frame = compare(runs)
    assert set(frame["seeds"]) == {2}
    # but their resamples drew other cases, so there is no interval
    assert frame[["ci_low", "ci_high"]].isna().all(axis=None)
    write_report(tmp_path, tmp_path / "report", "edue")
    assert "(no interval)" in (tmp_path / "report" / "comparison.md").read_text()
    # runs of today draw groups by their names, whatever the order
    groups = [f"patient{n % 6}" for n in range(9)]
    cases = list(range(9))
    orders = [cases, cases[::-1], [*cases[4:], *cases[:4]]]
    counts = [resample_counts(9, 50, groups=[groups[case] for case in order]) for order in orders]
    for order, found in zip(orders, counts, strict=True):
        np.testing.assert_array_equal(found, counts[0][:, order])
    for run_, order in zip(runs, orders[:2], strict=True):
        ids, own = (tuple(f"{name}{case}" for case in order) for name in ("case", "g"))
        write_replicates(Replicates(ids, arrays, own), run_.folder / "bootstrap.npz")
    frame = compare([read_run(run_.folder) for run_ in runs])
    assert not frame[["ci_low", "ci_high"]].isna().any(axis=None)


def test_runs_without_an_interval_of_their_own_get_none_together(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", 0), run(tmp_path / "b", 1), run(tmp_path / "c", 0, "single")]
    table = pd.read_csv(runs[0].folder / "metrics.csv").assign(no_interval="")
    table.loc[table["metric"] == "nll", "no_interval"] = "3 independent cases or groups of cases, fewer than 5"
    table.to_csv(runs[0].folder / "metrics.csv", index=False)
    runs[0] = read_run(runs[0].folder)
    frame = compare(runs).set_index(["method", "metric"])
    assert frame.loc[("edue", "nll"), ["ci_low", "ci_high"]].isna().all()
    assert frame.loc[("edue", "ece"), ["ci_low", "ci_high"]].notna().all()
    differences = paired_differences(runs, "edue").set_index("metric")
    assert differences.loc["nll", ["ci_low", "ci_high"]].isna().all()
    assert differences.loc["ece", ["ci_low", "ci_high"]].notna().all()


def changed_masks(folder: Path, fingerprint: bool) -> None:
    table = pd.read_csv(folder / "cases.csv")
    if fingerprint:
        table[FINGERPRINT] = [f"d{n}" for n in range(len(table))]
        table.loc[2, FINGERPRINT] = "other"
    else:
        table.loc[2, "sv_star"] += 1
    table.to_csv(folder / "cases.csv", index=False)


@pytest.mark.parametrize("fingerprint", [True, False])
def test_other_masks_of_the_same_cases_are_other_data(tmp_path: Path, fingerprint: bool) -> None:
    runs = [run(tmp_path / "a", 0), run(tmp_path / "b", 1)]
    if fingerprint:
        table = runs[0].cases.assign(**{FINGERPRINT: [f"d{n}" for n in range(9)]})
        table.to_csv(runs[0].folder / "cases.csv", index=False)
    changed_masks(runs[1].folder, fingerprint)
    found = names([read_run(each.folder) for each in runs])
    assert found[0][1] != found[1][1]
    assert all(data.startswith("lidc, 9 cases ") for _, data in found)
    # a mask that is turned has the same statistics, and another fingerprint
    rounding = pd.read_csv(runs[0].folder / "cases.csv")
    rounding["sv_star"] *= 1 + 1e-12
    rounding.to_csv(runs[0].folder / "cases.csv", index=False)
    assert names([runs[0], read_run(runs[0].folder)])[0][1] == "lidc"


def test_two_manifests_are_told_apart_by_their_roots(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    second = run(tmp_path / "b", data__root="/scans/b", data__source__root="/scans/b")
    changed_masks(second.folder, fingerprint=False)
    assert [data for _, data in names([first, read_run(second.folder)])] == ["lidc, root=a", "lidc, root=/scans/b"]
    report = write_report(tmp_path, tmp_path / "report", "edue")
    assert set(pd.read_csv(report.comparison)["data"]) == {"lidc, root=a", "lidc, root=/scans/b"}


def test_data_that_moved_are_the_same_data(tmp_path: Path) -> None:
    moved = {"data__root": "/elsewhere", "data__source__root": "/elsewhere", "training_cases": "30 (abc)"}
    assert (
        names([run(tmp_path / "a", training_cases="30 (abc)"), run(tmp_path / "b", 1, **moved)])
        == [("edue", "lidc")] * 2
    )


def test_an_evaluation_has_the_settings_of_its_training(tmp_path: Path) -> None:
    runs = []
    for seed, weight in ((0, 200.0), (1, 200.0), (2, 500.0)):
        known = {key: value for key, value in SETTINGS.items() if key != "training_cases"}
        trained = merged(known, {"method": {"guidance": {"weight": weight}}, "seed": seed})
        runs.append(run(tmp_path / str(seed), seed, ckpt=f"{seed}.ckpt", output=f"out{seed}", training=trained))
    found = [method for method, _ in names(runs)]
    assert found == ["edue, weight=200.0", "edue, weight=200.0", "edue, weight=500.0"]
    # and joins the test of another seed's training, whose cases it may not know
    trained = run(tmp_path / "trained", 3)
    assert names([trained, *runs[:2]]) == [("edue", "lidc")] * 3


def test_seeds_on_data_that_moved_stay_together_after_an_evaluation(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1, 2):
        place = {"root": f"/{seed}", "source": {"root": f"/{seed}"}}
        cases = "30 (abc)" if seed < 2 else "30 (def)"
        trained = merged(SETTINGS, {"data": place, "seed": seed, "training_cases": cases})
        folder = write_run(tmp_path / str(seed), "edue", seed)
        record = {"seed": seed, "label": "edue", "data": SETTINGS["data"], "training": trained}
        (folder / "config.yaml").write_text(yaml.safe_dump(record))
        runs.append(read_run(folder))
    found = [method for method, _ in names(runs)]
    assert found == [f"edue, training_cases=30 ({cases})" for cases in ("abc", "abc", "def")]


def test_names_are_unique_and_short(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / str(n), optimizer={f"setting_{k}": n for k in range(8)}, optimizer__learning_rate=0.1 * n)
        for n in range(3)
    ]
    found = [method for method, _ in names(runs)]
    assert len(set(found)) == 3
    assert max(map(len, found)) < 80
    assert names(distinguish(runs)) == names(runs)


def test_a_sweep_is_reported_and_its_reference_can_be_named(tmp_path: Path) -> None:
    for rate in (0.001, 0.003):
        folder = tmp_path / "runs" / str(rate)
        run(folder, optimizer__learning_rate=rate)
        write_validation(folder, "edue", {"nll": 0.1})
    done = run_command("report", ["runs=runs", "reference='edue, learning_rate=0.003'"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "edue, learning_rate=0.001" in done.stdout
    differences = pd.read_csv(tmp_path / "runs" / "report" / "differences.csv")
    assert set(differences["method"]) == {"edue, learning_rate=0.001"}
    (remark,) = judge(find_runs(tmp_path / "runs"), "edue").remarks
    assert "reference='edue, learning_rate=0.001' or reference='edue, learning_rate=0.003'" in remark


def test_trainings_without_a_test_are_reported_on_validation(tmp_path: Path) -> None:
    for rate in (0.001, 0.003):
        folder = tmp_path / "runs" / str(rate)
        run(folder, optimizer__learning_rate=rate, test=False)
        for name in (
            "metrics.csv",
            "cases.csv",
            "reliability.csv",
            "quality_control.csv",
            "bootstrap.npz",
            "panels.npz",
        ):
            (folder / name).unlink()
        write_validation(folder, "edue", {"nll": 50 * rate, "dice": 0.8})
    report = write_report(tmp_path / "runs", tmp_path / "report", "edue")
    frame = pd.read_csv(report.comparison)
    assert set(frame["split"]) == {"val"}
    nll = frame[frame["metric"] == "nll"].set_index("method")["value"]
    assert nll.to_dict() == pytest.approx({"edue, learning_rate=0.001": 0.05, "edue, learning_rate=0.003": 0.15})
    assert "0.050" in report.tables


def test_runs_with_different_resamples_share_the_first_ones(tmp_path: Path) -> None:
    def written(folder: Path, method: str, seed: int) -> None:
        write_values(folder, method, seed, {"nodule": {"nll": 0.1 + 0.01 * seed}}, noise=0.05)

    runs = [
        run(tmp_path / f"{method}{seed}", seed, method, written) for method in ("edue", "single") for seed in (0, 1)
    ]
    cut = {key: values[:20] for key, values in runs[1].replicates.arrays.items()}
    write_replicates(Replicates(runs[1].replicates.case_ids, cut), runs[1].folder / "bootstrap.npz")
    runs[1] = run_with_fewer = read_run(runs[1].folder)
    assert len(run_with_fewer.replicates.arrays["nodule", "nll"]) == 20 < RESAMPLES
    frame = compare(runs).set_index("method")
    shared = [each.replicates.arrays["nodule", "nll"][:20] for each in runs[:2]]
    drawn = np.random.default_rng([2, 0]).integers(0, 2, size=20)
    means = [shared[drawn[n]][n] for n in range(20)]
    assert frame.loc["edue", ["ci_low", "ci_high"]].tolist() == pytest.approx(np.quantile(means, [0.025, 0.975]))
    done = run_command("report", [f"runs={tmp_path}", "output=report"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("structure", ["1", "NA", "nan", "None", "1e3", "true", "007"])
def test_names_are_read_as_text(tmp_path: Path, structure: str) -> None:
    values = {structure: {"dice": 0.8, "nll": 0.1}}
    for label in ("edue", "NA"):
        folder = write_values(tmp_path / label, label, 0, values, values)
        for name in ("cases.csv", "reliability.csv", "quality_control.csv"):
            table = pd.read_csv(folder / name, dtype={"method": str}, keep_default_na=False, na_values={"count": [""]})
            table["structure"] = structure
            table.to_csv(folder / name, index=False)
    found = {each.method: each for each in find_runs(tmp_path)}
    assert set(found) == {"edue", "NA"}
    for each in found.values():
        assert each.value(structure, "dice") == 0.8
        assert each.validation_value(structure, "nll") == 0.1
        assert set(each.cases["structure"]) == set(each.reliability["structure"]) == {structure}
    report = write_report(tmp_path, tmp_path / "report", "edue")
    assert f"lidc, test, {structure}" in report.html.read_text()


def test_a_structure_called_mean_is_refused_before_training(tmp_path: Path) -> None:
    rows = ["case_id,image,mask,rater,structure"]
    for number in range(12):
        for name in ("image", "mask"):
            pixels = np.full((32, 32), 40 * (name == "image"), dtype=np.uint8)
            pixels[8:20, 8:20] = 255
            pixels[0, number] = 255 * (name == "image")
            Image.fromarray(pixels).save(tmp_path / f"{name}{number}.png")
        rows += [f"c{number},image{number}.png,mask{number}.png,{rater},mean" for rater in "AB"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    message = "structure 'mean': tables use this name for the mean over structures; rename the structure"
    for command, status in (("train", 2), ("check", 1)):
        done = run_command(
            command, ["data=manifest", f"data.root={tmp_path}", f"hydra.run.dir={tmp_path}/{command}"], cwd=tmp_path
        )
        assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert not (tmp_path / "train" / "checkpoints").exists()
    assert RESERVED_STRUCTURE == MEAN_STRUCTURE


def with_images(measured: Run, digest: str | None) -> Run:
    """Return a run whose table of cases names its images; None for one of an earlier version."""
    table = pd.read_csv(measured.folder / "cases.csv").assign(**{FINGERPRINT: "m"})
    if digest is not None:
        table[IMAGE_FINGERPRINT] = [f"{digest}{n}" for n in range(len(table))]
    table.to_csv(measured.folder / "cases.csv", index=False)
    return read_run(measured.folder)


def test_other_images_of_the_same_ids_and_masks_are_other_data(tmp_path: Path) -> None:
    first, second, other = (
        with_images(run(tmp_path / name, seed), digest)
        for name, seed, digest in (("a", 0, "x"), ("b", 1, "x"), ("c", 2, "y"))
    )
    found = [data for _, data in names([first, second, other])]
    assert found[0] == found[1] != found[2]
    # an earlier version did not store them
    assert names([first, with_images(run(tmp_path / "d", 3), None)]) == [("edue", "lidc")] * 2


@pytest.mark.parametrize("key", ["training_content", "training_spacing"])
def test_runs_trained_on_other_images_of_the_same_ids_are_no_seeds(tmp_path: Path, key: str) -> None:
    runs = [run(tmp_path / str(seed), seed, **{key: found}) for seed, found in enumerate(("x", "x", "y"))]
    assert [method for method, _ in names(runs)] == [f"edue, {key}={found}" for found in "xxy"]
    assert names([runs[0], run(tmp_path / "earlier", 4)]) == [("edue", "lidc")] * 2


@pytest.mark.parametrize("kind", ["data", "method"])
def test_a_run_that_knows_less_joins_neither_of_two_that_differ_whatever_the_order(tmp_path: Path, kind: str) -> None:
    def made(name: str, seed: int, digest: str | None) -> Run:
        if kind == "data":
            return with_images(run(tmp_path / name, seed), digest)
        return run(tmp_path / name, seed, **({} if digest is None else {"training_content": digest}))

    runs = {
        name: made(name, seed, digest)
        for seed, (name, digest) in enumerate({"x": "x", "x again": "x", "y": "y", "earlier": None}.items())
    }
    seen = set()
    for order in permutations(runs):
        found = dict(zip(order, names([runs[name] for name in order]), strict=True))
        assert found["x"] == found["x again"]
        assert len(set(found.values())) == 3
        seen.add(tuple(found[name] for name in runs))
    assert len(seen) == 1
    # it joins those that do not differ
    assert len(set(names([runs["earlier"], runs["x"], runs["x again"]]))) == 1


def evaluated(folder: Path, seed: int, precision: str, standardise: bool, **changed: Any) -> Run:
    source = {"_target_": "edue_lightning.data.ManifestSource", "root": "a", "standardise": True}
    known = merged(SETTINGS, {"data": {"source": source}, "trainer": {"precision": "bf16-mixed"}, "seed": seed})
    known["data"]["source"] = source
    write_run(folder, "edue", seed)
    data = {**known["data"], "source": {**source, "standardise": standardise}}
    record = {"seed": seed, "label": "edue", "data": data, "trainer": {"precision": precision}, "training": known}
    (folder / "config.yaml").write_text(yaml.safe_dump({**record, **changed}))
    return read_run(folder)


def test_evaluations_in_another_precision_or_preparation_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    runs = [
        evaluated(tmp_path / "0", 0, "bf16-mixed", True),
        evaluated(tmp_path / "1", 1, "bf16", True),
        evaluated(tmp_path / "2", 2, "32-true", True),
        evaluated(tmp_path / "3", 3, "bf16-mixed", False),
    ]
    found = [method for method, _ in names(runs)]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert "precision=32-true" in found[2]
    assert "standardise=false" in found[3]
    # an evaluation as in training joins the test of a training
    trained = run(tmp_path / "trained", 4, trainer__precision="bf16-mixed")
    source = {"_target_": "edue_lightning.data.ManifestSource", "root": "a", "standardise": True}
    record = yaml.safe_load((trained.folder / "config.yaml").read_text())
    record["data"]["source"] = source
    (trained.folder / "config.yaml").write_text(yaml.safe_dump(record))
    assert {method for method, _ in names([read_run(trained.folder), runs[0]])} == {"edue"}


def test_the_usual_rule_for_masks_is_that_of_runs_without_one(tmp_path: Path) -> None:
    half = {"_target_": "edue_lightning.uncertainty.MaskRule", "rule": "half"}
    runs = [
        run(tmp_path / "a"),
        run(tmp_path / "b", 1, mask=half),
        run(tmp_path / "c", 2, mask=half | {"rule": "raters"}),
    ]
    names = [one.method for one in distinguish(runs)]
    assert names[0] == names[1] != names[2]


def test_evaluations_by_another_rule_for_masks_are_no_seeds(tmp_path: Path) -> None:
    rule = {"_target_": "edue_lightning.uncertainty.MaskRule", "rule": "raters"}
    first = run(tmp_path / "a")
    for folder, seed, mask in (("b", 1, None), ("c", 2, rule)):
        path = tmp_path / folder
        run(path, seed)
        record = yaml.safe_load((path / "config.yaml").read_text())
        record = {
            **{key: record[key] for key in ("label", "metrics", "data") if key in record},
            "mask": mask,
            "training": record,
        }
        (path / "config.yaml").write_text(yaml.safe_dump(record))
    names = [one.method for one in distinguish([first, read_run(tmp_path / "b"), read_run(tmp_path / "c")])]
    assert names[0] == names[1] != names[2]


def test_an_evaluation_without_windows_is_no_seed_of_one_with_them(tmp_path: Path) -> None:
    runs = []
    for seed, window in enumerate(([96, 96], None)):
        made = evaluated(tmp_path / str(seed), seed, "bf16-mixed", True, inference={"window": window})
        record = yaml.safe_load((made.folder / "config.yaml").read_text())
        record["training"]["inference"] = {"window": [96, 96]}
        (made.folder / "config.yaml").write_text(yaml.safe_dump(record))
        runs.append(read_run(made.folder))
    assert len({method for method, _ in names(runs)}) == 2
