"""The wheel carries its configuration and works in an empty folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from processes import PATIENCE, SMALL, run_fresh

CHECKOUT = Path(__file__).parents[2]


def test_an_installed_wheel_runs_every_command_in_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=PATIENCE)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "edue_lightning/py.typed" in names
    shipped = {name.removeprefix("edue_lightning/") for name in names if name.startswith("edue_lightning/conf/")}
    assert shipped == {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "conf").rglob("*.yaml")}

    # installed before the checkout on the path, with the dependencies of this environment
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*install, "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=PATIENCE)
    empty = tmp_path / "empty"
    empty.mkdir()
    where = subprocess.run(
        [sys.executable, "-c", "from edue_lightning.config.schema import *; print(configuration_folder())"],
        cwd=empty,
        env={"PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.strip() == str(site / "edue_lightning" / "conf")
    done = run_fresh("train", [*SMALL, "trainer.max_epochs=1"], cwd=empty, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    (metrics,) = empty.glob("outputs/synthetic/edue/*/metrics.csv")
    assert len(pd.read_csv(metrics))

    run = metrics.parent
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    (empty / "pictures").mkdir()
    picture.save(empty / "pictures" / "eye.png")
    checkpoint = f"ckpt={run}/checkpoints/best.ckpt"
    commands = {
        "evaluate": [checkpoint, "split=val", "output=evaluation"],
        "report": [f"runs={empty}/outputs/synthetic", "output=report"],
    }
    for command, overrides in commands.items():
        done = run_fresh(command, overrides, cwd=empty, PYTHONPATH=str(site))
        assert done.returncode == 0, f"{command}: {done.stderr}"
    by_script = subprocess.run(
        [str(site / "bin" / "edue"), "predict", checkpoint, "input=pictures", "output=predictions"],
        cwd=empty,
        env={"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert by_script.returncode == 0, by_script.stderr
    for written in ("evaluation/metrics.csv", "report/report.html", "predictions/triage.csv"):
        assert (empty / written).is_file(), written
