"""The worked examples: a method, a data set, a loss and a metric of one's own by commands, and the notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pandas as pd
import pytest
import yaml
from processes import PATIENCE, run_command, run_script

from edue_lightning.config.schema import TRUSTED_PACKAGES, check_only_ours
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import load_method, read_checkpoint, write_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "notebook.ipynb"
QUICK = [
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "network.features=[4,6,8]", "bootstrap_resamples=40"),
    *("logger.mode=disabled", "figures=false", "hydra.run.dir=runs/rater_heads"),
]


@pytest.mark.slow
def test_a_method_a_data_set_a_loss_and_a_metric_of_ones_own(tmp_path: Path) -> None:
    place = tmp_path / "extend"
    shutil.copytree(EXAMPLES / "extend", place)
    drawn = subprocess.run([sys.executable, "draw_pictures.py", "PICTURES"], cwd=place, check=False)
    assert drawn.returncode == 0
    own = [
        "--config-dir",
        "conf",
        "data=pictures",
        "data.root=PICTURES",
        "method=rater_heads",
        "loss=squared_error",
        "metrics=with_area_error",
    ]
    trained = run_command("train", [*own, *QUICK], cwd=place)
    assert trained.returncode == 0, trained.stderr
    run = place / "runs" / "rater_heads"
    metrics = pd.read_csv(run / "metrics.csv")
    assert set(metrics["method"]) == {"rater_heads"}
    assert set(metrics["structure"]) == {"blob"}
    # three heads, so that there is a variance between members
    assert metrics.set_index("metric")["value"].notna()["pixel_pearson"]
    area_error = metrics.set_index("metric").loc["area_error"]
    assert area_error["better"] == "low"
    assert 0 <= area_error["ci_low"] <= area_error["value"] <= area_error["ci_high"]
    cases = pd.read_csv(run / "cases.csv")
    assert cases["area_error"].mean() == pytest.approx(area_error["value"])
    command = yaml.safe_load((run / "config.yaml").read_text())["command"]
    assert command.startswith("python -m edue_lightning.train --config-dir conf data=pictures")

    evaluate = [
        f"ckpt={run}/checkpoints/best.ckpt",
        "bootstrap_resamples=40",
        "figures=false",
        "output=again",
        "trainer.accelerator=cpu",
    ]
    refused = run_command("evaluate", evaluate, cwd=place)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "'my_package.methods.RaterHeads', which is not part of this package" in refused.stderr
    assert f"{TRUSTED_PACKAGES}=my_package" in refused.stderr

    trusted = {TRUSTED_PACKAGES: "another_package, my_package"}
    evaluated = run_command("evaluate", evaluate, cwd=place, **trusted)
    assert evaluated.returncode == 0, evaluated.stderr
    pd.testing.assert_frame_equal(pd.read_csv(place / "again" / "metrics.csv"), metrics)

    reported = run_command("report", ["runs=runs", "reference=rater_heads"], cwd=place)
    assert reported.returncode == 0, reported.stderr
    comparison = pd.read_csv(place / "runs" / "report" / "comparison.csv")
    assert set(comparison["method"]) == {"rater_heads"}
    assert comparison.set_index("metric").loc["area_error", "better"] == "low"
    assert "area_error ↓" in (place / "runs" / "report" / "comparison.md").read_text()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_console_script_finds_the_package_too(tmp_path: Path) -> None:
    place = tmp_path / "extend"
    shutil.copytree(EXAMPLES / "extend", place)
    subprocess.run([sys.executable, "draw_pictures.py", "PICTURES", "--cases", "10"], cwd=place, check=True)
    own = ["--config-dir", "conf", "data=pictures", "data.root=PICTURES", "method=rater_heads"]
    trained = run_script("train", [*own, *QUICK, "test=false"], cwd=place)
    assert trained.returncode == 0, trained.stderr
    (run,) = place.glob("runs/*")
    recorded = yaml.safe_load((run / "config.yaml").read_text())["command"]
    assert recorded.startswith("python -m edue_lightning.train --config-dir conf data=pictures")
    overrides = [
        f"ckpt={run}/checkpoints/best.ckpt",
        "bootstrap_resamples=0",
        "figures=false",
        "output=again",
        "trainer.accelerator=cpu",
    ]
    refused = run_script("evaluate", overrides, cwd=place)
    assert refused.returncode == 2
    assert f"{TRUSTED_PACKAGES}=my_package" in refused.stderr
    evaluated = run_script("evaluate", overrides, cwd=place, **{TRUSTED_PACKAGES: "my_package"})
    assert evaluated.returncode == 0, evaluated.stderr
    assert (place / "again" / "metrics.csv").is_file()


@pytest.mark.slow
def test_the_data_set_tells_what_is_wrong(tmp_path: Path) -> None:
    place = tmp_path / "extend"
    shutil.copytree(EXAMPLES / "extend", place)
    subprocess.run([sys.executable, "draw_pictures.py", "PICTURES", "--cases", "4"], cwd=place, check=True)
    (place / "PICTURES" / "ben" / "02.png").write_bytes(b"no picture")
    done = run_command("check", ["--config-dir", "conf", "data=pictures", "data.root=PICTURES"], cwd=place)
    assert done.returncode == 1
    assert "ben/02.png: case '02': cannot be read" in done.stderr


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # else figures are drawn and not shown
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # by this interpreter, whatever kernels the machine has
    monkeypatch.setenv("JUPYTER_PATH", str(_kernels(tmp_path / "jupyter")))
    client = nbclient.NotebookClient(
        notebook, timeout=int(PATIENCE), kernel_name="here", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    shown = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert "flagged" in shown
    assert "pixel_pearson_total" in shown


def _kernels(folder: Path) -> Path:
    """Write the description of a kernel, and return the folder that Jupyter is to look in."""
    kernel = folder / "kernels" / "here"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    description = {"argv": argv, "display_name": "here", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "my_package.methods.RaterHeads",
        "edue_lightning_evil.Method",
        # what our modules import is not ours
        "edue_lightning.runs.record.subprocess.run",
        "edue_lightning.runs.checkpoints.torch.load",
        "edue_lightning.training.loggers.CSVLogger",
        # nor are functions a part of any configuration
        "edue_lightning.runs.checkpoints.write_checkpoint",
        "edue_lightning.methods.NoSuchMethod",
        "edue_lightning",
        "",
    ],
)
def test_a_stored_configuration_calls_nothing_but_our_classes(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUSTED_PACKAGES, raising=False)
    with pytest.raises(UserError, match=r"x.ckpt: refused"):
        check_only_ours({"a": [{"_target_": target}]}, "x.ckpt")
    with pytest.raises(UserError, match=r"x.ckpt: refused"):
        check_only_ours({"a": ({"_target_": target},)}, "x.ckpt")


def test_an_interpolation_cannot_become_a_call() -> None:
    with pytest.raises(UserError, match=r"refused.*interpolation"):
        check_only_ours({"heads": "${oc.create:{_target_: os.system, command: 'true'}}"}, "x.ckpt")


def test_only_packages_that_are_named_whole_are_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "trusted_one.py").write_text("import os\nfrom fractions import Fraction\nclass Mine: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for named in ("", "trusted", "trusted_one.Mine", "*", "os"):
        monkeypatch.setenv(TRUSTED_PACKAGES, named)
        with pytest.raises(UserError, match="refused"):
            check_only_ours({"_target_": "trusted_one.Mine"}, "x.ckpt")
    monkeypatch.setenv(TRUSTED_PACKAGES, " trusted_one ,other")
    check_only_ours({"_target_": "trusted_one.Mine"}, "x.ckpt")
    for target in ("trusted_one.os.system", "trusted_one.Fraction"):
        with pytest.raises(UserError, match="refused"):
            check_only_ours({"_target_": target}, "x.ckpt")


@pytest.mark.parametrize("part", ["inference", "metrics", "network", "method", "loss", "optimizer"])
def test_no_part_of_a_checkpoint_calls_other_code(trained_run: Path, tmp_path: Path, part: str) -> None:
    checkpoint = read_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    mark = tmp_path / "called"
    checkpoint["edue_configuration"][part] = {"_target_": "os.mkdir", "path": os.fspath(mark)}
    write_checkpoint(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt: refused, its configuration calls 'os.mkdir'"):
        load_method(tmp_path / "other.ckpt")
    assert not mark.exists()
