"""The wheel carries its configuration and works in an empty folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
from processes import SMALL, run_command

CHECKOUT = Path(__file__).parents[1]


def test_an_installed_wheel_trains_in_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "edue_lightning/py.typed" in names
    shipped = {name.removeprefix("edue_lightning/") for name in names if name.startswith("edue_lightning/conf/")}
    assert shipped == {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "conf").rglob("*.yaml")}

    # unpacked before the checkout on the path, with the dependencies of this environment
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    where = subprocess.run(
        [sys.executable, "-c", "from edue_lightning.configuration import *; print(configuration_folder())"],
        cwd=empty,
        env={"PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.strip() == str(site / "edue_lightning" / "conf")
    done = run_command("train", [*SMALL, "trainer.max_epochs=1"], cwd=empty, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    (metrics,) = empty.glob("outputs/synthetic/edue/*/metrics.csv")
    assert len(pd.read_csv(metrics))
