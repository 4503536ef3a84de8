"""The study's own command and its committed settings."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from processes import PATIENCE

from edue_lightning.config.schema import check_configuration, configuration_folder, resolved
from edue_lightning.runs.files import METRICS_COLUMNS
from edue_lightning.training.run import TrainConfiguration

STUDY = Path(__file__).parents[2] / "experiments" / "comparison"
sys.path.insert(0, str(STUDY))

import recount  # noqa: E402
import study  # noqa: E402

# which search found the settings of a method, where it is not the one of its name
SEARCH_OF = {
    "deep_ensemble": "single",
    "deep_ensemble_random_rater": "single_random_rater",
    "deep_ensemble_rater_per_member": "single_random_rater",
}


def composed(*overrides: str) -> dict:
    search_path = f"hydra.searchpath=[file://{study.CONFIGURATION}]"
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        return resolved(compose("train", overrides=[search_path, *overrides]))


@pytest.mark.parametrize("data", study.DATA)
@pytest.mark.parametrize("contender", study.contenders())
def test_every_run_of_the_comparison_has_a_valid_configuration(contender: str, data: str) -> None:
    configuration = composed(f"experiment=study_{data}", f"+contender={contender}", "seed=1")
    check_configuration(configuration, TrainConfiguration)
    assert configuration["resume"] == "auto"
    assert configuration["distortions"] is not None


def test_methods_share_all_but_themselves_and_what_was_searched() -> None:
    for data in study.DATA:
        configurations = {
            name: composed(f"experiment=study_{data}", f"+contender={name}") for name in study.contenders()
        }
        first = configurations["edue"]
        for name, configuration in configurations.items():
            differing = {key for key in first if configuration[key] != first[key]}
            # the plain rival alone has a loss of its own
            allowed = {"method", "optimizer"} | ({"label", "loss"} if name == "single_cross_entropy" else set())
            assert differing <= allowed, name


def test_every_variation_and_search_has_a_valid_configuration() -> None:
    groups = {
        "ablation": study.variations("ablation"),
        "search": study.searches(),
        "raters": study.variations("raters"),
    }
    for group, names in groups.items():
        for name in names:
            configuration = composed(f"experiment=study_{study.VARIED_ON.get(group, 'lidc')}", f"+{group}={name}")
            check_configuration(configuration, TrainConfiguration)
            assert configuration["test"] is (group == "raters")


@pytest.mark.parametrize("contender", study.contenders())
def test_settings_are_those_that_the_committed_search_found_best(contender: str) -> None:
    search = SEARCH_OF.get(contender, contender)
    trials = pd.read_csv(STUDY / "results" / "search.csv")
    own = trials[trials["search"] == search]
    best = own.loc[own["validation_nll"].idxmin(), "settings"]
    configuration = OmegaConf.create(composed("experiment=study_lidc", f"+contender={contender}"))
    for setting in best.split():
        key, _, value = setting.partition("=")
        assert OmegaConf.select(configuration, key) == pytest.approx(yaml.safe_load(value), rel=1e-2), setting


def test_all_searches_had_as_many_trials() -> None:
    trials = pd.read_csv(STUDY / "results" / "search.csv")
    assert set(trials["search"]) == set(study.searches())
    assert len(set(trials["search"].value_counts())) == 1


def test_a_plan_counts_its_own_runs(tmp_path: Path) -> None:
    plan = study.comparison(tmp_path, seeds=2, jobs=3, quick=True)
    assert len(set(plan.runs)) == 2 * 3 * len(study.contenders())
    assert plan.minutes < study.comparison(tmp_path, seeds=2, jobs=3, quick=False).minutes
    assert "hydra.launcher.n_jobs=3" in plan.command()
    assert plan.finished() == 0
    for name in (plan.runs[0], "another"):
        (plan.folder / name).mkdir(parents=True)
        (plan.folder / name / "validation.csv").touch()
    assert plan.finished() == 1


def test_a_small_comparison_runs_reports_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, str(STUDY / "study.py"), "compare", "--seeds", "1", "--quick", "--data", "fundus"]
    command += ["--methods", "edue_moments", "single_soft_majority", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr + (tmp_path / "runs" / "study.log").read_text()[-2000:]
    assert done.stdout.startswith("2 of 2 runs to do, about ")
    assert (tmp_path / "report" / "report.html").is_file()
    verdict = pd.read_csv(tmp_path / "report" / "verdict.csv")
    assert set(verdict["baseline"].dropna()) == {"single_soft_majority"}
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("0 of 2 runs to do")


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
    assert outcomes == {"better": 3, "worse": 2, "not distinguishable": 19, "undefined": 8}
    # and the pages say so
    root = STUDY.parents[1]
    for page in ("docs/results.md", "docs/choose-a-method.md", "experiments/comparison/README.md"):
        text = " ".join((root / page).read_text().split())
        assert "3 better, 2 worse, 19 not distinguishable" in text, page
        assert "10 of 28 comparisons hold" not in text, page
    assert "3 better, 19 not distinguishable (1 of them within the margin), 2 worse, 8" in recount.TABLES.read_text()
