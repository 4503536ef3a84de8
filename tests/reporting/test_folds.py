"""Folds of a cross-validation are reported as one run over all cases, each tested once."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from processes import TABLES_ALONE, run_command
from run_files import write_distorted_cases

from edue_lightning.config.schema import configuration_folder, resolved
from edue_lightning.data import ManifestSource, SplitFractions
from edue_lightning.data.splits import Fold, fold_cases
from edue_lightning.errors import UserError
from edue_lightning.evaluation.run import evaluate
from edue_lightning.metrics import ood_aupr, ood_auroc
from edue_lightning.reporting import compare, find_runs, pool_folds, write_report
from edue_lightning.reporting.caveats import caveats
from edue_lightning.reporting.folds import missing_folds, value_within_folds
from edue_lightning.reporting.out_of_distribution import with_detection
from edue_lightning.runs.checkpoints import load_method
from edue_lightning.runs.files import (
    BOOTSTRAP_FILE,
    CLEAN,
    DENSITY,
    DISTORTION_SCORES,
    POOLED_KINDS,
    POOLED_SEVERITY,
    read_run,
    write_replicates,
)
from edue_lightning.runs.record import CAUTIONS, method_settings
from edue_lightning.runs.tables import detection_table

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "comparison"))

import unvalidated

pytestmark = pytest.mark.xdist_group("folds")

FOLDS = 3
RATERS = ("anna", "ben", "cem")


def write_data(folder: Path, patients: int = 18) -> dict[str, np.ndarray]:
    """Write a manifest with two cases per patient, and return the masks `[R, K, *S]` of each case."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows, everyone = [], {}
    for number in range(2 * patients):
        case = f"case{number}"
        masks = np.zeros((3, 2, 12, 12), dtype=np.uint8)
        Image.fromarray(rng.integers(0, 255, size=(12, 12), dtype=np.uint8)).save(folder / f"{case}.png")
        for rater, name in enumerate(RATERS):
            for k, structure in enumerate(("disc", "cup")):
                top, left = rng.integers(1, 4, size=2)
                masks[rater, k, top : top + 6 - 2 * k, left : left + 6 - 2 * k] = 1
                file = f"{case}_{name}_{structure}.png"
                Image.fromarray(masks[rater, k] * np.uint8(255)).save(folder / file)
                rows.append((case, f"{case}.png", file, name, structure, f"p{number // 2}"))
        everyone[case] = masks
    columns = ["case_id", "image", "mask", "rater", "structure", "patient"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    return everyone


def write_predictions(folder: Path, masks: dict[str, np.ndarray], cases: list[str], seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for case in cases:
        rng = np.random.default_rng([seed, int(case.removeprefix("case"))])
        members = np.clip(masks[case][:1] * 0.6 + 0.4 * rng.random((3, *masks[case].shape[1:])), 0, 1)
        np.savez_compressed(folder / f"{case}.npz", members=members)


def measured(folder: Path, data: Path, predictions: Path, *overrides: str) -> None:
    command = [f"predictions={predictions}", "data=manifest", f"data.root={data}", "data.cache=null"]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        command += ["bootstrap_resamples=40", "figures=false", "label=mine", *overrides]
        evaluate(resolved(compose("evaluate", overrides=command)), folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `runs/SEED_FOLD` of a method, two seeds by three folds, and `whole`, both on all cases."""
    folder = tmp_path_factory.mktemp("folds")
    masks = write_data(folder / "data")
    write_predictions(folder / "all", masks, list(masks))
    measured(folder / "whole" / "0", folder / "data", folder / "all", "split=all")
    for seed in range(2):
        for fold in range(FOLDS):
            chosen = [f"data.folds={FOLDS}", f"data.fold={fold}", f"seed={seed}"]
            run = folder / "runs" / f"{seed}_{fold}"
            source = ManifestSource(str(folder / "data"))
            division = fold_cases(source.cases(), SplitFractions(), Fold(FOLDS, fold))
            tested = [record.case_id for record in division["test"]]
            write_predictions(folder / "predictions" / f"{seed}_{fold}", masks, tested, seed)
            measured(run, folder / "data", folder / "predictions" / f"{seed}_{fold}", *chosen)
    return folder


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.select_dtypes("number").astype(float)


def test_pooled_folds_have_the_values_of_all_cases_measured_at_once(folder: Path) -> None:
    pooled = pool_folds(find_runs(folder / "runs"))
    assert [run.seed for run in pooled] == [0, 1]
    assert [len(run.folds) for run in pooled] == [FOLDS, FOLDS]
    whole, found = read_run(folder / "whole" / "0"), pooled[0]
    assert sorted(found.cases["case_id"].unique()) == sorted(whole.cases["case_id"].unique())
    for own, expected in (
        (found.metrics, whole.metrics),
        (found.reliability, whole.reliability),
        (found.quality_control, whole.quality_control),
    ):
        assert own["structure"].tolist() == expected["structure"].tolist()
        pd.testing.assert_frame_equal(numbers(own), numbers(expected)[numbers(own).columns], rtol=1e-9, atol=1e-12)
    assert found.metrics["ci_low"].notna().sum() == whole.metrics["ci_low"].notna().sum() > 20
    # the resamples draw the same patients, so that methods are paired with each other
    assert found.replicates.pairs_with(whole.replicates)
    for key, values in whole.replicates.arrays.items():
        np.testing.assert_allclose(found.replicates.arrays[key], values, rtol=1e-9, atol=1e-12)


def test_seeds_of_all_folds_are_averaged(folder: Path) -> None:
    pooled = pool_folds(find_runs(folder / "runs"))
    frame = compare(pooled).set_index(["structure", "metric"])
    assert set(frame["method"]) == {"mine"}
    assert set(frame["seeds"]) == {2}
    mean = np.mean([run.value("disc", "dice") for run in pooled])
    assert frame.loc[("disc", "dice"), "value"] == pytest.approx(mean)
    # without pooling, each fold has cases of its own
    assert compare(find_runs(folder / "runs"))["data"].nunique() == FOLDS


def test_the_report_names_missing_folds_and_every_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    assert "missing" not in write_report(tmp_path / "runs", tmp_path / "report", "mine").tables
    for fold in (0, 2):
        shutil.rmtree(tmp_path / "runs" / f"1_{fold}")
    written = write_report(tmp_path / "runs", tmp_path / "report", "mine")
    assert "mine, seed 1: folds 0 and 2 of 3 are missing" in written.tables
    page = written.html.read_text()
    assert ": 4 runs compared" in page
    assert page.count(", seed 0, fold ") == 3
    incomplete = pool_folds(find_runs(tmp_path / "runs"))[1]
    assert missing_folds(incomplete) == [0, 2]
    # other cases than those of the first seed, so not averaged with it
    assert set(compare(pool_folds(find_runs(tmp_path / "runs")))["seeds"]) == {1}


def test_a_fold_twice_a_case_in_two_folds_and_missing_statistics_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.copytree(tmp_path / "runs" / "0_1", tmp_path / "runs" / "again")
    with pytest.raises(UserError, match="both are fold 1 of mine on manifest with seed 0"):
        pool_folds(find_runs(tmp_path / "runs"))
    shutil.rmtree(tmp_path / "runs" / "0_2")
    path = tmp_path / "runs" / "again" / "config.yaml"
    record = yaml.safe_load(path.read_text())
    record["data"]["fold"] = 2
    path.write_text(yaml.safe_dump(record))
    with pytest.raises(UserError, match=r"case 'case\d+' is tested in both folds"):
        pool_folds(find_runs(tmp_path / "runs"))
    shutil.rmtree(tmp_path / "runs" / "again")
    replicates = read_run(tmp_path / "runs" / "1_1").replicates
    other = read_run(tmp_path / "runs" / "1_0").replicates.groups[0]
    write_replicates(
        replace(replicates, groups=(other, *replicates.groups[1:])), tmp_path / "runs" / "1_1" / BOOTSTRAP_FILE
    )
    with pytest.raises(UserError, match=f"1_0 and .*1_1: patient '{other}' is tested in both folds"):
        pool_folds(find_runs(tmp_path / "runs"))
    shutil.rmtree(tmp_path / "runs" / "1_1")
    (tmp_path / "runs" / "0_0" / "case_arrays.npz").unlink()
    with pytest.raises(UserError, match="0_0: lacks the statistics of its cases"):
        pool_folds(find_runs(tmp_path / "runs"))


def test_folds_of_other_settings_are_not_pooled(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "0_1" / "config.yaml"
    record = yaml.safe_load(path.read_text())
    record["data"]["fractions"]["seed"] = 1
    path.write_text(yaml.safe_dump(record))
    assert sorted(len(run.folds) for run in pool_folds(find_runs(tmp_path / "runs"))) == [1, 2, 3]


def test_folds_that_differ_in_speed_and_storage_alone_are_pooled(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "0_1" / "config.yaml"
    record = yaml.safe_load(path.read_text())
    record["data"] |= {"num_workers": 7, "eval_batch_size": 3, "cache_cases": 1, "note": "another"}
    record["data"]["source"]["cache"] = "elsewhere"
    record["trainer"] |= {"accelerator": "gpu", "log_every_n_steps": 3}
    record |= {"device": "cuda", "figures": False}
    path.write_text(yaml.safe_dump(record))
    pooled = pool_folds(find_runs(tmp_path / "runs"))
    assert [len(run.folds) for run in pooled] == [FOLDS, FOLDS]
    # the counts behind the calibration of all folds, not of the first
    assert {len(values) for run in pooled for values in run.case_arrays.values()} == {36}


def test_folds_of_data_in_several_places_are_pooled(folder: Path, tmp_path: Path) -> None:
    def move(run: Path, root: str) -> None:
        record = yaml.safe_load((run / "config.yaml").read_text())
        record["data"]["root"] = record["data"]["source"]["root"] = root
        (run / "config.yaml").write_text(yaml.safe_dump(record))

    shutil.copytree(folder / "runs", tmp_path / "runs")
    move(tmp_path / "runs" / "0_1", "/of/another/machine")
    pooled = pool_folds(find_runs(tmp_path / "runs"))
    assert [len(run.folds) for run in pooled] == [FOLDS, FOLDS]
    expected = pool_folds(find_runs(folder / "runs"))
    pd.testing.assert_frame_equal(pooled[0].metrics, expected[0].metrics)
    # other data of the same name have the same folds
    for fold in range(FOLDS):
        shutil.copytree(folder / "runs" / f"0_{fold}", tmp_path / "runs" / f"other_{fold}")
        move(tmp_path / "runs" / f"other_{fold}", "/other/data")
        move(tmp_path / "runs" / f"0_{fold}", "/data")
    pooled = pool_folds(find_runs(tmp_path / "runs"))
    assert [(run.seed, len(run.folds)) for run in pooled] == [(0, FOLDS), (0, FOLDS), (1, FOLDS)]


def test_folds_that_list_the_structures_in_other_orders_are_pooled_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / "0_1"
    for name in ("cases.csv", "metrics.csv", "reliability.csv"):
        table = pd.read_csv(run / name)
        order = table["structure"].map({"cup": 0, "disc": 1, "mean": 2})
        table.iloc[np.argsort(order, kind="stable")].to_csv(run / name, index=False)
    with np.load(run / "case_arrays.npz") as archive:
        turned = {key: values[:, ::-1] for key, values in archive.items()}
    np.savez_compressed(run / "case_arrays.npz", **turned)
    found, expected = (pool_folds(find_runs(parent / "runs"))[0] for parent in (tmp_path, folder))
    assert found.value("disc", "ece") == pytest.approx(expected.value("disc", "ece"), rel=1e-12)
    pd.testing.assert_frame_equal(found.metrics, expected.metrics)


def add_distorted_images(run: Path, scale: float, **distortions: object) -> pd.DataFrame:
    """Write tables of distorted images whose scores are on a scale of their own, and return them."""
    rng = np.random.default_rng(int(run.name[-1]))
    of_run = read_run(run)
    rows = []
    for structure, case, severity in product(("disc", "cup"), of_run.replicates.case_ids, range(3)):
        scores = {name: scale * float(rng.integers(4) + severity) for name in (*DISTORTION_SCORES, DENSITY)}
        place = {"case_id": case, "structure": structure, "distortion": "noise" if severity else CLEAN}
        rows.append({**place, "severity": severity, **scores, "dice": 0.5})
    table = pd.DataFrame(rows)
    settings = {"kinds": ["noise"], "severities": [1, 2], **distortions}
    write_distorted_cases(run, table, of_run.label, "manifest", **settings)
    return table


def test_distorted_images_are_compared_with_clean_ones_of_their_own_fold(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    tables = [add_distorted_images(tmp_path / "runs" / f"0_{fold}", 1000.0**fold) for fold in range(FOLDS)]
    pooled = pool_folds(find_runs(tmp_path / "runs"))[0]
    surpassed, precision, pairs, found_in = 0.0, 0.0, 0, 0
    for table in tables:
        own = table[table["structure"] == "disc"]
        is_clean = own["distortion"] == CLEAN
        positive = torch.from_numpy(~is_clean.to_numpy())
        score = torch.from_numpy(own["density"].to_numpy())
        pairs_of_fold = int(is_clean.sum() * (~is_clean).sum())
        surpassed += float(ood_auroc(score, positive)) * pairs_of_fold
        precision += float(ood_aupr(score, positive)) * int((~is_clean).sum())
        pairs, found_in = pairs + pairs_of_fold, found_in + int((~is_clean).sum())
    assert pooled.detection is not None
    place = ["structure", "score", "distortion", "severity"]
    row = pooled.detection.set_index(place).loc[("disc", "density", POOLED_KINDS, POOLED_SEVERITY)]
    assert row["auroc"] == pytest.approx(surpassed / pairs, rel=1e-12)
    assert row["aupr"] == pytest.approx(precision / found_in, rel=1e-12)
    assert (row["n_clean"], row["n_distorted"]) == (36, 72)
    (measured_run,) = with_detection([pooled])
    assert measured_run.value("disc", "ood_auroc_density") == pytest.approx(surpassed / pairs, rel=1e-12)
    # scores of three networks in one order
    assert float(detection_table(pd.concat(tables))["auroc"].iloc[0]) < surpassed / pairs - 0.05


def test_folds_under_other_distortions_are_pooled_without_them(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    for fold in range(FOLDS):
        add_distorted_images(tmp_path / "runs" / f"0_{fold}", 1.0, severities=[1, 2 + fold // 2])
    pooled = pool_folds(find_runs(tmp_path / "runs"))
    assert pooled[0].distorted_cases is pooled[0].detection is None
    assert any("mine, seed 0: not all folds have images distorted in the same way" in line for line in caveats(pooled))


def test_cautions_of_all_folds_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "0_2" / "config.yaml"
    record = yaml.safe_load(path.read_text())
    record[CAUTIONS] = ["12 cases were in its training"]
    path.write_text(yaml.safe_dump(record))
    lines = caveats(pool_folds(find_runs(tmp_path / "runs")))
    assert any(line.endswith("mine, seed 0: fold 2: 12 cases were in its training") for line in lines)


@pytest.mark.parametrize("fold", [0, 1])
def test_what_one_fold_did_not_measure_is_left_out(folder: Path, tmp_path: Path, fold: int) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / f"0_{fold}"
    cases, metrics = (pd.read_csv(run / name) for name in ("cases.csv", "metrics.csv"))
    cases.drop(columns="sv_top").to_csv(run / "cases.csv", index=False)
    metrics[~metrics["metric"].str.endswith("_top")].to_csv(run / "metrics.csv", index=False)
    expected, found = (pool_folds(find_runs(parent / "runs"))[0] for parent in (folder, tmp_path))
    of_others = expected.metrics[~expected.metrics["metric"].str.endswith("_top")].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.metrics, of_others)
    assert set(expected.quality_control["score"]) - set(found.quality_control["score"]) == {"sv_top"}


def test_a_value_that_mixes_networks_is_named_beside_the_mean_within_folds(folder: Path) -> None:
    run = pool_folds(find_runs(folder / "runs"))[0]
    for metric in ("dice", "nll", "ged2", "pixel_pearson"):
        assert value_within_folds(run, "disc", metric) == pytest.approx(run.value("disc", metric), rel=1e-12)
    of_folds = [(fold.value("disc", "ece"), fold.n_cases("disc", "ece")) for fold in run.folds]
    within = sum(value * count for value, count in of_folds) / 36
    assert value_within_folds(run, "disc", "ece") == pytest.approx(within, rel=1e-12)
    assert np.isnan(value_within_folds(run, "disc", "unknown"))
    (line,) = [line for line in caveats([run]) if "disc: image_pearson mixes the networks" in line]
    whole, within = run.value("disc", "image_pearson"), value_within_folds(run, "disc", "image_pearson")
    assert abs(whole - within) > 0.01
    assert f"mine ({whole:.4g}, within folds {within:.4g})" in line


def test_a_training_per_fold_records_its_cases_and_is_pooled(tmp_path: Path) -> None:
    tested: list[str] = []
    for fold in range(2):
        folder = tmp_path / "runs" / str(fold)
        overrides = [*TABLES_ALONE, "method=single", "data.folds=2", f"data.fold={fold}", f"hydra.run.dir={folder}"]
        done = run_command("train", [*overrides, "trainer.max_epochs=1"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        own = pd.read_csv(folder / "cases.csv")["case_id"].unique().tolist()
        known = load_method(folder / "checkpoints" / "best.ckpt").cases
        assert known is not None
        assert not {case.case_id for split in known.values() for case in split} & set(own)
        tested += own
    assert len(tested) == len(set(tested)) == 24
    first, second = (method_settings(run.configuration) for run in find_runs(tmp_path / "runs"))
    of_cases = {"training_cases", "training_content", "training_spacing"}
    assert {key for key in first if first[key] != second[key]} == {"data.fold", *of_cases}
    (pooled,) = pool_folds(find_runs(tmp_path / "runs"))
    assert len(pooled.folds) == 2
    assert pooled.n_cases("disc", "dice") == 24
    values = [fold.validation_value("disc", "dice") for fold in pooled.folds]
    assert pooled.validation_value("disc", "dice") == pytest.approx(np.mean(values), rel=1e-12)
    assert any("on validation cases that other folds test" in line for line in caveats([pooled]))
    runs = find_runs(tmp_path / "runs")
    known = [load_method(run.folder / "checkpoints" / "best.ckpt").cases for run in runs]
    of_validation = {case.case_id for cases in known if cases is not None for case in cases["val"]}
    assert unvalidated.validated(runs) == of_validation
    (judged,) = pool_folds([unvalidated.without(run, of_validation) for run in runs])
    assert set(judged.replicates.case_ids) == set(tested) - of_validation != set(tested)
    own = pd.concat([run.cases for run in runs])
    own = own[(own["structure"] == "disc") & ~own["case_id"].isin(of_validation)]
    assert judged.value("disc", "dice") == pytest.approx(own["dice"].mean(), rel=1e-12)
    path = tmp_path / "runs" / "1" / "validation.csv"
    table = pd.read_csv(path)
    table[table["metric"] != "dice"].to_csv(path, index=False)
    (without,) = pool_folds(find_runs(tmp_path / "runs"))
    assert np.isnan(without.validation_value("disc", "dice"))
    assert without.validation_value("disc", "nll") == pooled.validation_value("disc", "nll")
    assert "fold" not in pooled.configuration["data"]
    assert pooled.cost["parameters"] == pooled.folds[0].cost["parameters"]
    # the cases of one fold are known to the model of another
    done = run_command("evaluate", [f"ckpt={folder}/checkpoints/best.ckpt", "split=all", "output=out"], cwd=tmp_path)
    assert done.returncode != 0
    assert "were in its training" in done.stderr
    ckpt = f"ckpt={folder}/checkpoints/best.ckpt"
    settings = ["data=synthetic", "data.source.n_cases=24", "data.source.size=32", "data.fractions.draw=permutation"]
    done = run_command("evaluate", [ckpt, *settings, "data.folds=2", "data.fold=0", "output=out"], cwd=tmp_path)
    assert done.returncode != 0
    assert "were in its training" in done.stderr
