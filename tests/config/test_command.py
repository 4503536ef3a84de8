"""Command lines: values that Hydra's grammar refuses, and errors in one line."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from processes import run_command

from edue_lightning.config.command import quoted_overrides, with_known_groups
from edue_lightning.errors import UserError

STUDY = Path(__file__).parents[2] / "experiments" / "comparison" / "conf"


def value_of(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize(
    "name",
    [
        *("ün", "scan (1)", "fold=1", "a[1]", "a{1}", "it's", 'say "a"', "a&b", "#1", "a!", "日本", "x;y", "sort(1)"),
        *("back\\slash ü\\", "'", "\\'", "1", "1e3", "true", "0x1f", "f(x"),
    ],
)
@pytest.mark.parametrize("key", ["input", "data.root", "hydra.run.dir"])
def test_a_path_of_any_letters_is_taken_as_it_is(key: str, name: str) -> None:
    (argument,) = quoted_overrides([f"{key}={name}"])
    assert value_of(argument) == name


@given(st.text(string.printable + "äß€\u3042", min_size=1).filter(lambda text: "\n" not in text and "\r" not in text))
@example("a\\")
@example("\\\\'b\\\\")
def test_a_value_that_hydra_refuses_is_quoted_exactly(name: str) -> None:
    (argument,) = quoted_overrides([f"output={name}"])
    if argument != f"output={name}":
        expected = str(Path(name).expanduser()) if name == "~" or name.startswith("~/") else name
        assert value_of(argument) == expected


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "seed=1",
            "seed=0,1",
            "+trainer.limit_train_batches=2",
            "~logger",
            "data.source.spacing=[1,1,2]",
            "output=null",
        ),
        *(
            "method=edue,single",
            "seed=range(0,3)",
            "input='a b'",
            "optimizer.learning_rate=1e-3",
            "input=plain/path.png",
        ),
        *("hydra.run.dir=outputs/${seed}", "data@other=lidc", "--multirun", "-m", "data.source={a: 1}", "no_override"),
    ],
)
def test_what_hydra_understands_is_left_alone(argument: str) -> None:
    assert quoted_overrides([argument]) == [argument]


def test_the_home_folder_and_options_and_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert quoted_overrides(["input=~/scans"]) == ["input='/home/me/scans'"]
    assert quoted_overrides(["--config-dir", "a=ü", "--config-dir=ü"]) == ["--config-dir", "a=ü", "--config-dir=ü"]
    assert quoted_overrides(["-m", "data.root=ä,b,fold=1"]) == ["-m", "data.root='ä',b,'fold=1'"]
    assert quoted_overrides(["data.root=ä,b"]) == ["data.root='ä,b'"]


@pytest.mark.parametrize("name", ["ün (1)", "fold=1"])
def test_a_command_takes_such_a_path(tmp_path: Path, name: str) -> None:
    overrides = [f"output={name}", "data=synthetic", "data.source.n_cases=4", "data.source.size=24"]
    done = run_command("check", overrides, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert (tmp_path / name / "summary.txt").is_file()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_command("check", ["data=synthetic", "output=file/results"], cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "file/results: Not a directory; choose another folder" in line


def test_a_network_larger_than_the_memory_is_one_line(tmp_path: Path) -> None:
    done = run_command(
        "train", ["data=synthetic", "data.source.n_cases=12", "network.features=[1000000,1000000]"], tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: not enough memory (")


@pytest.mark.parametrize("name", ["predict", "evaluate", "export"])
def test_a_command_that_takes_a_checkpoint_changes_single_settings_of_its_inference(name: str) -> None:
    assert with_known_groups(["inference.window=[8,8]"], name) == ["inference.window=[8,8]"]
    with pytest.raises(UserError) as caught:
        with_known_groups(["inference=default", "inference.window=[8,8]"], name)
    assert str(caught.value) == (
        f"inference=default: {name} has no choice of inference; leave it out, and set inference.window, "
        "inference.overlap and inference.batch_size alone"
    )


def test_a_group_that_may_be_empty_can_be_null(tmp_path: Path) -> None:
    arguments = ["resume=null", "data.root=null", "=null", "data=synthetic", "-m"]
    assert with_known_groups(["distortions=null", *arguments], "train") == ["~distortions", *arguments]
    assert with_known_groups(["mask=null"], "evaluate") == ["~mask"]
    with pytest.raises(UserError, match=r"^mask=null: choose among expected_dice, half, raters, validation, or leave"):
        with_known_groups(["mask=null"], "train")
    with pytest.raises(UserError, match=r"^distortions=null,petct: choose among default, petct, or leave distortions"):
        with_known_groups(["-m", "distortions=null,petct"], "train")
    done = run_command("train", ["data=synthetic", "data=null"], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data=null: choose among ")
    study = ["--config-dir", str(STUDY), "experiment=study_petct"]
    done = run_command("train", [*study, "distortions=null", "--cfg=job"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ghosting" not in done.stdout
    assert "synthetic_petct" in done.stdout


def test_other_errors_keep_their_traceback_and_hydra_its_words(tmp_path: Path) -> None:
    program = (
        "from edue_lightning.config.command import command\n"
        "@command('report')\ndef main(config):\n    raise KeyError('a bug')\nmain()\n"
    )
    (tmp_path / "program.py").write_text(program)
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    bug, typo = (
        subprocess.run(
            [sys.executable, "program.py", override], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        for override in ("runs=a", "rnus=a")
    )
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr
    assert "KeyError: 'a bug'" in bug.stderr
    assert typo.returncode == 1
    assert "Traceback" not in typo.stderr
    assert "Could not override 'rnus'" in typo.stderr
