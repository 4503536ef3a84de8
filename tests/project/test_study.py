"""The study's own command and its committed settings."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from processes import PATIENCE

from edue_lightning.config.schema import check_configuration, configuration_folder, resolved
from edue_lightning.runs.checkpoints import load_method
from edue_lightning.runs.files import METRICS_COLUMNS, find_runs
from edue_lightning.training.run import TrainConfiguration

STUDY = Path(__file__).parents[2] / "experiments" / "comparison"
sys.path.insert(0, str(STUDY))

import recount  # noqa: E402
import study  # noqa: E402
from jobs import Pool  # noqa: E402


def composed(*overrides: str) -> dict:
    search_path = f"hydra.searchpath=[file://{study.CONFIGURATION}]"
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", overrides=[search_path, *overrides]))


@pytest.mark.parametrize("contender", study.contenders())
def test_every_method_of_the_comparison_has_a_valid_configuration(contender: str) -> None:
    for data in (name for name in ("lidc_four", "petct") if study.fits(contender, name)):
        configuration = composed(*overrides_of(contender, data))
        check_configuration(configuration, TrainConfiguration)
        assert configuration["resume"] == "auto"
        assert configuration["distortions"] is not None


@pytest.mark.parametrize("data", study.DATA)
def test_every_data_set_of_the_comparison_has_a_valid_configuration(data: str) -> None:
    configuration = composed(*overrides_of("edue", data))
    check_configuration(configuration, TrainConfiguration)
    assert configuration["data"]["folds"] == (study.DATA[data].folds or None)
    assert not configuration["figures"]


def overrides_of(contender: str, data: str) -> list[str]:
    """Return the overrides of a run of the comparison, seed 1."""
    setup = study.Setup(Path("/study"), data=Path("/data"))
    job = next(job for job in study.comparison(setup, [1], [data], [contender]))
    assert list(job.command[1:5]) == ["-m", "edue_lightning.train", "--config-dir", str(study.CONFIGURATION)]
    return list(job.command[5:])


def test_the_last_rater_is_held_out_where_raters_are_people() -> None:
    setup = study.Setup(Path("/study"), data=Path("/data"))
    jobs = study.comparison(setup, [1], ["lidc_four", "bu_bil_half", "chase_db1", "fundus"], ["edue"], True)
    folds = [f"runs/bu_bil_half_edue_held_out_1_fold{fold}" for fold in range(5)]
    assert [job.name for job in jobs] == [*folds, "runs/fundus_edue_held_out_1"]
    for job, raters in ((jobs[0], [0, 1, 2, 3]), (jobs[-1], [0, 1, 2, 3, 4])):
        configuration = composed(*job.command[5:])
        check_configuration(configuration, TrainConfiguration)
        assert configuration["data"]["training_raters"] == raters
        assert configuration["label"] == "edue_held_out"


def test_methods_share_all_but_themselves_and_what_is_searched() -> None:
    configurations = {name: composed(*overrides_of(name, "fundus")) for name in study.contenders()}
    first = configurations["edue"]
    for name, configuration in configurations.items():
        differing = {key for key in first if configuration[key] != first[key]}
        # the plain rival alone has a loss of its own
        allowed = {"method", "optimizer"} | ({"label", "loss"} if name == "single_cross_entropy" else set())
        assert differing <= allowed, name


def test_every_variation_has_a_valid_configuration() -> None:
    for group, data in study.VARIED_ON.items():
        for name in study.variations(group):
            configuration = composed(f"experiment=study_{data}", f"+{group}={name}")
            check_configuration(configuration, TrainConfiguration)
            assert configuration["test"] is (group == "raters")
    plain = composed("experiment=study_lidc", "+ablation=lambda_500")
    assert (plain["method"]["guidance"]["weight"], plain["optimizer"]["learning_rate"]) == (500, 0.01)


def test_every_method_is_searched_with_as_many_trials_of_its_own_settings() -> None:
    counts = {name: math.prod(map(len, grid.values())) for name, grid in study.searches().items()}
    assert len(set(counts.values())) == 1
    for contender in study.contenders():
        assert study.SEARCH_OF.get(contender, contender) in counts, contender
    setup = study.Setup(Path("/study"), data=Path("/data"))
    jobs = study.search(setup)
    assert len({job.name for job in jobs}) == sum(counts.values())
    for job in jobs[:: next(iter(counts.values()))]:
        configuration = composed(*job.command[5:])
        check_configuration(configuration, TrainConfiguration)
        assert not configuration["test"]


def test_every_search_that_is_committed_is_whole() -> None:
    trials = pd.read_csv(study.SEARCHED)
    assert list(trials.columns) == list(study.SEARCH_COLUMNS)
    for name, own in trials.groupby("search"):
        grid = study.searches()[str(name)]
        tried = {tuple(part.split("=")[0] for part in settings.split()) for settings in own["settings"]}
        assert tried == {tuple(grid)}, name
        assert len(set(own["settings"])) == math.prod(map(len, grid.values())), name


def test_methods_take_the_settings_with_the_lowest_validation_nll(tmp_path: Path) -> None:
    table = tmp_path / "search.csv"
    rows = [
        ("single", 0, "optimizer.learning_rate=0.01 optimizer.weight_decay=0.01", 0.5),
        ("single", 1, "optimizer.learning_rate=0.002 optimizer.weight_decay=0.0001", 0.4),
        ("edue", 0, "optimizer.learning_rate=0.005 method.guidance.weight=200", 0.1),
    ]
    pd.DataFrame(rows, columns=list(study.SEARCH_COLUMNS)).to_csv(table, index=False)
    setup = study.Setup(tmp_path, searched=table)
    for name in ("single", "deep_ensemble"):
        (job,) = study.comparison(setup, [0], ["fundus"], [name])
        assert {"optimizer.learning_rate=0.002", "optimizer.weight_decay=0.0001"} < set(job.command)
    (job,) = study.comparison(setup, [0], ["fundus"], ["mc_dropout"])
    assert not [part for part in job.command if part.startswith("optimizer")]


def test_finished_trials_become_a_table(tmp_path: Path) -> None:
    setup = study.Setup(tmp_path, data=tmp_path)
    for job, nll in zip(study.search(setup, ["edue"])[::5], (0.3, 0.2), strict=True):
        folder = tmp_path / job.name
        folder.mkdir(parents=True)
        rows = [("edue", "lidc_four", "val", "nodule", "nll", nll, math.nan, math.nan, 5, 0)]
        pd.DataFrame(rows, columns=list(METRICS_COLUMNS)).to_csv(folder / "validation.csv", index=False)
    study.trials(setup).to_csv(tmp_path / "search.csv", index=False)
    assert study.best_settings(tmp_path / "search.csv", "edue") == [
        "optimizer.learning_rate=0.01",
        "method.guidance.weight=500",
    ]
    # a later part of the search keeps the trials of the earlier one
    (tmp_path / "later").mkdir()
    shutil.copy(tmp_path / "search.csv", tmp_path / "later")
    assert study.trials(study.Setup(tmp_path / "later", data=tmp_path)).equals(pd.read_csv(tmp_path / "search.csv"))


def test_jobs_are_method_by_data_by_seed_by_fold(tmp_path: Path) -> None:
    setup = study.Setup(tmp_path, data=tmp_path)
    names = ["edue", "deep_ensemble", "deep_ensemble_rater_per_member"]
    jobs = study.comparison(setup, range(2), ["lidc_four", "bu_bil"], names)
    # the masks of lidc_four have no identity, so that no member can learn from one rater
    assert len({job.name for job in jobs}) == len(jobs) == 2 * (2 + 3 * 5)
    assert [job.name for job in jobs if "bu_bil_edue_1" in job.name] == [
        f"runs/bu_bil_edue_1_fold{fold}" for fold in range(5)
    ]
    seconds = {job.name: job.seconds for job in jobs}
    assert seconds["runs/lidc_four_deep_ensemble_0"] > 4 * seconds["runs/lidc_four_edue_0"]
    shorter = study.comparison(study.Setup(tmp_path, data=tmp_path, epochs=4), [0], ["lidc_four"], ["edue"])
    assert "trainer.max_epochs=4" in shorter[0].command
    assert shorter[0].seconds < seconds["runs/lidc_four_edue_0"]


def test_real_data_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"lidc_four: give the folder with lidc_slices.zip \(--data FOLDER\)"):
        study.comparison(study.Setup(tmp_path), [0], ["lidc_four"])


def test_a_small_comparison_runs_reports_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(STUDY / "study.py"), "compare", "--seeds", "1", "--quick", "--only", "fundus"]
    command += ["--methods", "edue_levels_mask", "single_soft_majority", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 of 2 jobs to do, about ")
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("0 of 2 jobs to do")
    other = [*command[:2], "reread", *command[3:], "--read-outs", "mask_raters", "temperature", "--methods"]
    done = subprocess.run(
        [*other, "single_soft_majority"], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 of 2 jobs to do")
    check_read_outs(tmp_path / "quick")
    study.report(tmp_path / "quick", tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()
    verdict = pd.read_csv(tmp_path / "report" / "verdict.csv")
    usual = {"single_soft_majority", "single_soft_majority_mask_raters", "single_soft_majority_temperature"}
    assert "single_soft_majority" in set(verdict["baseline"].dropna()) <= usual
    matrix = pd.read_csv(tmp_path / "report" / "matrix.csv")
    assert set(matrix["baseline"]) == usual
    assert (tmp_path / "report" / "learning_curves.png").is_file()
    curves = pd.read_csv(tmp_path / "report" / "learning_curves.csv")
    assert curves.groupby("run")["epoch"].apply(list).to_dict() == {
        "fundus_edue_levels_mask_0": [0, 1],
        "fundus_single_soft_majority_0": [0, 1],
    }
    # the results travel without checkpoints, and another study leaves their jobs out
    archives = study.pack(tmp_path, tmp_path / "packed")
    elsewhere = tmp_path / "elsewhere"
    for archive in archives:
        shutil.unpack_archive(archive, elsewhere, filter="data")
    names = {path.name for path in elsewhere.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.csv", "validation.csv", "cases.csv", "bootstrap.npz"} < names
    assert not [name for name in names if name.endswith(".ckpt")]
    assert len(find_runs(elsewhere / "quick")) == 4
    (tmp_path / "later").mkdir()
    shutil.copy(tmp_path / "packed" / "finished.txt", tmp_path / "later")
    setup = study.Setup(tmp_path / "later", quick=True)
    jobs = study.comparison(setup, [0], ["fundus"], ["edue_levels_mask", "single_soft_majority", "mc_dropout"])
    assert len(Pool(tmp_path / "later", 1).finished(jobs)) == 2
    # short trainings do not pass for whole ones
    whole = study.comparison(study.Setup(tmp_path), [0], ["fundus"], ["edue_levels_mask", "single_soft_majority"])
    assert Pool(tmp_path, 1).finished(whole) == []
    assert len(study.pack(tmp_path / "later", tmp_path / "again")) == 1
    assert (tmp_path / "again" / "finished.txt").read_text() == (tmp_path / "packed" / "finished.txt").read_text()


def check_read_outs(runs: Path) -> None:
    """Check the runs of other read-outs: the same networks, and only what the read-out changes differs."""

    def values(read_out: str, file: str = "metrics.csv") -> pd.Series:
        table = pd.read_csv(runs / f"fundus_single_soft_majority{read_out}_0" / file)
        return table[table["structure"] == "disc"].set_index("metric")["value"]

    usual, raters = values(""), values("_mask_raters")
    by_masks = {name for name in usual.index if not np.isclose(usual[name], raters[name], atol=1e-12, equal_nan=True)}
    assert "dice" in by_masks
    assert not {"nll", "ece", "brier", "pixel_pearson_total"} & by_masks
    assert values("_temperature", "validation.csv")["nll"] < values("", "validation.csv")["nll"]
    # a checkpoint of such a run predicts as the run was measured
    rules, temperatures = [], []
    for read_out in ("", "_mask_raters", "_temperature"):
        method = load_method(runs / f"fundus_single_soft_majority{read_out}_0" / "checkpoints" / "best.ckpt").method
        rules.append(method.readout.mask.rule)
        temperatures.append(method.temperature_by_structure)
    assert rules == ["half", "raters", "half"]
    assert temperatures[:2] == [None, None]
    assert temperatures[2] is not None


def test_runs_without_checkpoints_are_not_measured_anew(tmp_path: Path) -> None:
    setup = study.Setup(tmp_path)
    jobs = study.comparison(setup, [0], ["fundus"], ["single"])
    assert study.reread(setup, jobs, ["temperature"]) == []
    (tmp_path / jobs[0].name).mkdir(parents=True)
    (tmp_path / jobs[0].name / "validation.csv").touch()
    assert study.reread(setup, jobs, ["temperature"]) == []


def test_variations_become_a_table(tmp_path: Path) -> None:
    for name, seed, value in (("lambda_0", 0, 0.4), ("lambda_0", 1, 0.6), ("heads_last", 0, 0.9)):
        folder = tmp_path / f"{name}_{seed}"
        folder.mkdir()
        rows = [("edue", "lidc", "val", "nodule", "nll", value, math.nan, math.nan, 5, 0)]
        pd.DataFrame(rows, columns=list(METRICS_COLUMNS)).to_csv(folder / "validation.csv", index=False)
        # the curves of a training have the name of the test's figures
        (folder / "logs").mkdir()
        (folder / "logs" / "validation.csv").write_text("epoch,val/nll\n0,0.7\n")
    table = study.ablation_table(tmp_path, "validation.csv").set_index("variation")
    assert table["nll"].to_dict() == {"heads_last": 0.9, "lambda_0": pytest.approx(0.5)}
    assert table["seeds"].to_dict() == {"heads_last": 1, "lambda_0": 2}
    assert study.ablation_table(tmp_path / "none", "validation.csv").empty


def test_a_run_with_other_settings_passes_for_no_job(tmp_path: Path) -> None:
    setup = study.Setup(tmp_path, data=tmp_path)
    (job,) = study.comparison(setup, [0], ["bu_bil"], ["edue"])[:1]
    record = tmp_path / job.name / "config.yaml"
    study.require_same_settings(tmp_path, [job])
    record.parent.mkdir(parents=True)
    (rate,) = (float(part.split("=")[1]) for part in job.command if part.startswith("optimizer.learning_rate="))
    same = {
        "seed": 0,
        "data": {"root": "elsewhere", "fold": 0},
        "optimizer": {"learning_rate": rate},
        "trainer": {"accelerator": "gpu"},
    }
    record.write_text(yaml.safe_dump(same))
    study.require_same_settings(tmp_path, [job])
    small = replace(job, command=(*job.command, "optimizer.weight_decay=1e-05", "data.training_raters=[a,b]"))
    settings = {**same["data"], "training_raters": ["a", "b"]}
    record.write_text(yaml.safe_dump({"optimizer": {"weight_decay": 1e-5}, "data": settings}))
    study.require_same_settings(tmp_path, [small])
    record.write_text(yaml.safe_dump({**same, "optimizer": {"learning_rate": 0.5}}))
    with pytest.raises(SystemExit, match=rf"has optimizer.learning_rate=0.5, not {rate}; move it away"):
        study.require_same_settings(tmp_path, [job])


def test_a_trial_of_an_earlier_grid_is_refused(tmp_path: Path) -> None:
    setup = study.Setup(tmp_path, data=tmp_path)
    trial = study.search(setup, ["edue"])[0]
    (tmp_path / trial.name).mkdir(parents=True)
    (tmp_path / trial.name / "validation.csv").touch()
    (tmp_path / trial.name / "config.yaml").write_text("optimizer: {learning_rate: 0.9}")
    with pytest.raises(SystemExit, match=r"has optimizer\.learning_rate=0\.9, not 0\.002"):
        study.trials(setup)


def test_curves_of_runs_without_a_validation_are_left_out(tmp_path: Path) -> None:
    for name, text in (("fundus_edue_0", "epoch,val/nll\n0,0.7\n"), ("fundus_edue_1", "epoch,train/loss\n0,0.9\n")):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "logs" / "metrics.csv").write_text(text)
    assert study.learning_curves(tmp_path)["run"].tolist() == ["fundus_edue_0"]


def test_archives_of_an_earlier_pack_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "study_7.tar.gz").touch()
    study.pack(tmp_path, tmp_path / "packed")
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {"study_0.tar.gz", "finished.txt"}


def test_the_committed_verdict_is_the_recount_of_the_committed_differences() -> None:
    as_run = pd.read_csv(recount.AS_RUN)
    found = pd.DataFrame([vars(finding) for finding in recount.recounted(as_run)])
    committed = pd.read_csv(recount.VERDICT, keep_default_na=False, na_values={"change": [""], "adjusted_p": [""]})
    assert found["outcome"].tolist() == committed["outcome"].tolist()
    np.testing.assert_allclose(found["adjusted_p"].astype(float), committed["adjusted_p"], rtol=1e-9, equal_nan=True)
    # by hand: intervals first, then Holm's correction over the 24 comparisons that were made and the 8 with targets
    made = as_run[(as_run["part"] == "best baseline") & (as_run["quantity"] != "d_auc")]
    margin = {"nll": lambda row: 0.02 * row["baseline_value"], "ece": lambda row: 0.1 * row["baseline_value"]}
    rows = []
    for _, row in made.iterrows():
        sign = -1 if row["quantity"] in margin else 1
        low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
        gain, size = sign * row["change"], margin.get(row["quantity"], lambda _: 0.01)(row)
        z = 1.959964 * abs(low + high) / (high - low)
        rows.append((low, high, low >= -size and high <= size, math.erfc(z / math.sqrt(2)), gain > 0))
    p_values = [row[3] for row in rows]
    for _, row in as_run[as_run["part"] == "usual"].iterrows():
        low, high = row["ci_low"] - row["target"], row["ci_high"] - row["target"]
        p_values.append(math.erfc(1.959964 * abs(low + high) / (high - low) / math.sqrt(2)))
    ordered = sorted(range(len(p_values)), key=lambda n: p_values[n])
    adjusted = dict.fromkeys(ordered, 0.0)
    largest = 0.0
    for rank, n in enumerate(ordered):
        largest = adjusted[n] = max(largest, (len(p_values) - rank) * p_values[n])
    shown = [
        n
        for n, (low, high, small, _, _) in enumerate(rows)
        if (low > 0 or high < 0) and not small and adjusted[n] <= 0.05
    ]
    better = sum(rows[n][4] for n in shown)
    assert (len(rows), better, len(shown) - better, sum(row[2] for row in rows)) == (24, 3, 2, 1)
    outcomes = found[(found["part"] == "best baseline")]["outcome"].value_counts().to_dict()
    assert outcomes == {"better": 3, "worse": 2, "not distinguishable": 19, "undefined": 12}
    # and the pages say so
    root = STUDY.parents[1]
    for page in ("docs/results.md", "docs/choose-a-method.md", "experiments/comparison/first_study.md"):
        text = " ".join((root / page).read_text().split())
        assert "3 better, 2 worse, 19 not distinguishable" in text, page
        assert "10 of 28 comparisons hold" not in text, page
    assert "3 better, 19 not distinguishable (1 of them within the margin), 2 worse, 12" in recount.TABLES.read_text()
