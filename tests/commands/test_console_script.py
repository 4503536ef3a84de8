"""The console script `edue` beside `python -m edue_lightning.COMMAND`."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from processes import run_command, run_script

import edue_lightning
from edue_lightning.__main__ import COMMANDS, main, usage


@pytest.fixture(autouse=True)
def _hydra_forgets_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back the settings that a command with `--cfg` leaves to its process, or `run_processes` hands them on."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Call the script with arguments within this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["edue", *arguments])
    main()


def test_every_door_is_a_command() -> None:
    folder = Path(edue_lightning.__file__).parent
    doors = {path.stem for path in folder.glob("*.py") if "@command(" in path.read_text()}
    assert set(COMMANDS) == doors
    assert len(doors) == 7


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_takes_the_options_of_its_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    called(monkeypatch, name, "--cfg", "all")
    by_script = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--cfg", "all"])
    import_module(f"edue_lightning.{name}").main()
    assert by_script == capsys.readouterr().out
    # the job is named as the module is, so that its folder and its recorded command are the same
    assert f"    name: {name}\n" in by_script
    with pytest.raises(SystemExit) as ended:
        called(monkeypatch, name, "--help")
    assert ended.value.code == 0
    assert "Configuration groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["predict"], 2),
        (["evaluate", "data.nothing=1"], 1),
    ],
)
def test_exit_status_and_words_are_those_of_the_module(tmp_path: Path, arguments: list[str], status: int) -> None:
    by_script, by_module = (run(arguments[0], arguments[1:], cwd=tmp_path) for run in (run_script, run_command))
    assert by_script.returncode == by_module.returncode == status
    assert by_script.stderr == by_module.stderr
    assert "Traceback" not in by_script.stderr


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    called(monkeypatch, *arguments)
    shown = capsys.readouterr().out
    assert shown.strip() == usage()
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_the_version_is_the_package_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called(monkeypatch, "--version")
    assert capsys.readouterr().out == f"edue-lightning {edue_lightning.__version__}\n"


def test_an_unknown_command_is_refused_with_the_list_of_those_there_are(tmp_path: Path) -> None:
    done = run_script("trian", ["experiment=demo"], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'trian'\n")
    assert usage() in done.stderr
    assert not done.stdout


def test_the_package_itself_can_be_run_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edue_lightning", "predict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ckpt: not set")


@pytest.mark.parametrize("run", [run_command, run_script])
def test_a_package_in_the_working_directory_is_found(tmp_path: Path, run: object) -> None:
    package = tmp_path / "somebodys_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from edue_lightning.data import SyntheticFundus\n\n\nclass Other(SyntheticFundus):\n    pass\n"
    )
    overrides = ["data=synthetic", "data.source.n_cases=4", "data.source.size=24"]
    overrides += ["data.source._target_=somebodys_package.Other", "output=found"]
    assert callable(run)
    done = run("check", overrides, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert "no such class" not in done.stderr
    assert (tmp_path / "found" / "summary.txt").is_file()
