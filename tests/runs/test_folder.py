"""Choice and lock of the folder that a training writes to."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edue_lightning.errors import UserError
from edue_lightning.runs.folder import AUTO, folder_of, hydra_folder, run_folder, sole_writer

OVERRIDES = ["experiment=lidc", "method=edue", "resume=auto"]
TIME = "2026-01-02_03-04-05"


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


REFUSED = ["experiment=lidc", "method=edue", "resume=somewhere", "seed=5"]


def begun(folder: Path, overrides: list[str], finished: bool = False) -> Path:
    """Make the folder of a run that was begun by a command with some overrides; another one was refused later."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(REFUSED))
    command = shlex.join(["python", "-m", "edue_lightning.train", "--config-dir", "my conf", *overrides])
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 3, "command": command}))
    if finished:
        (folder / "validation.csv").touch()
    return folder


def begun_by_an_earlier_version(folder: Path, overrides: str | None, command: str | None) -> Path:
    """Make the folder of a run whose overrides are in Hydra's file alone."""
    (folder / ".hydra").mkdir(parents=True)
    if overrides is not None:
        (folder / ".hydra" / "overrides.yaml").write_text(overrides)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 3, "command": command}))
    return folder


def chosen(parent: Path, resume: str | None = AUTO, overrides: list[str] = OVERRIDES, seed: int = 3) -> str:
    return run_folder(resume, overrides, str(parent), TIME, seed)


@pytest.mark.parametrize("resume", [None, AUTO])
def test_a_new_run_is_named_by_time_and_seed(tmp_path: Path, resume: str | None) -> None:
    assert chosen(tmp_path, resume) == f"{tmp_path}/{TIME}_3"
    assert chosen(tmp_path / "nothing", resume) == f"{tmp_path}/nothing/{TIME}_3"


def test_auto_finds_the_newest_unfinished_run_of_the_same_command(tmp_path: Path) -> None:
    begun(tmp_path / "2025-01-01_00-00-00_3", OVERRIDES)
    newest = begun(tmp_path / "2025-01-02_00-00-00_3", OVERRIDES)
    begun(tmp_path / "2025-01-03_00-00-00_3", OVERRIDES, finished=True)
    begun(tmp_path / "2025-01-04_00-00-00_3", [*OVERRIDES, "optimizer.learning_rate=0.01"])
    begun(tmp_path / "2025-01-05_00-00-00_4", OVERRIDES)
    begun(tmp_path / "2025-01-06_00-00-00_13", OVERRIDES)
    (tmp_path / "2025-01-07_00-00-00_3").mkdir()
    assert chosen(tmp_path) == str(newest)
    assert chosen(tmp_path, resume=None) == f"{tmp_path}/{TIME}_3"


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["method=edue", "experiment=lidc"], True),
        ([*OVERRIDES, "logger.mode=online", "members_at_once=2", "checkpoint_every_steps=7"], True),
        (["experiment=lidc", "method=edue", "resume=somewhere", "logger=wandb"], True),
        ([*OVERRIDES, "trainer.max_epochs=5"], False),
        (["experiment=lidc"], False),
        ([], False),
    ],
)
def test_what_makes_another_run_and_what_does_not(tmp_path: Path, overrides: list[str], same: bool) -> None:
    earlier = begun(tmp_path / "2025-01-02_00-00-00_3", overrides)
    assert (chosen(tmp_path) == str(earlier)) is same


@pytest.mark.parametrize("content", [None, "[method=edue", ""])
def test_a_run_whose_command_is_not_known_is_passed_over(tmp_path: Path, content: str | None) -> None:
    begun_by_an_earlier_version(tmp_path / "2025-01-02_00-00-00_3", content, None)
    assert chosen(tmp_path) == f"{tmp_path}/{TIME}_3"


@pytest.mark.parametrize("content", ["", "[1]", "command: [", "command: python -m edue_lightning.train 'unclosed"])
def test_a_run_whose_record_is_damaged_is_passed_over(tmp_path: Path, content: str) -> None:
    folder = begun(tmp_path / "2025-01-02_00-00-00_3", OVERRIDES)
    (folder / "config.yaml").write_text(content)
    assert chosen(tmp_path) == f"{tmp_path}/{TIME}_3"


@pytest.mark.parametrize("command", [None, "python train.py method=edue", "python"])
def test_a_run_whose_record_names_no_such_command_is_found_by_the_file_of_hydra(
    tmp_path: Path, command: str | None
) -> None:
    earlier = begun_by_an_earlier_version(tmp_path / "2025-01-02_00-00-00_3", yaml.safe_dump(OVERRIDES), command)
    assert chosen(tmp_path) == str(earlier)
    assert chosen(tmp_path, overrides=REFUSED) == f"{tmp_path}/{TIME}_3"


def test_a_command_with_blanks_and_quotes_is_found(tmp_path: Path) -> None:
    overrides = ["data.root='My scans (1)'", 'label="it\'s"', "+data.source.a=[1, 2]"]
    earlier = begun(tmp_path / "2025-01-02_00-00-00_3", overrides)
    assert chosen(tmp_path, overrides=[*overrides, "resume=auto"]) == str(earlier)
    assert chosen(tmp_path, overrides=overrides[1:]) == f"{tmp_path}/{TIME}_3"


def test_hydra_writes_its_files_for_new_runs_only(tmp_path: Path) -> None:
    assert hydra_folder(str(tmp_path / "new")) == ".hydra"
    assert hydra_folder(str(begun(tmp_path / "run", OVERRIDES))) is None


def test_a_run_of_the_plain_command_is_found(tmp_path: Path) -> None:
    earlier = begun(tmp_path / "2025-01-02_00-00-00_3", [])
    assert chosen(tmp_path, overrides=["resume=auto"]) == str(earlier)


@pytest.mark.parametrize("inside", ["", "checkpoints/last.ckpt", "checkpoints/member_1/best.ckpt"])
def test_a_path_is_taken_wherever_it_lies(tmp_path: Path, inside: str) -> None:
    run = begun(tmp_path / "moved", ["method=single"])
    assert chosen(tmp_path / "outputs", resume=str(run / inside)) == str(run)


def test_a_path_that_is_not_there_gives_a_new_folder_which_the_command_refuses(tmp_path: Path) -> None:
    assert chosen(tmp_path, resume=str(tmp_path / "nothing")) == f"{tmp_path}/{TIME}_3"


def test_a_checkpoint_outside_of_a_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"resume=best\.ckpt: is not below the `checkpoints` folder of a run"):
        folder_of("best.ckpt")


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SLURM_JOB_ID": "12"}, "job-12-"),
        ({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "job-12-3-"),
        ({"TORCHELASTIC_RUN_ID": "riga-1", "MASTER_ADDR": "node", "MASTER_PORT": "1"}, "torchrun-riga-1-"),
        ({"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "node", "MASTER_PORT": "29"}, "torchrun-node-29-"),
        ({"SLURM_JOB_ID": "12", "TORCHELASTIC_RUN_ID": "riga-1"}, "job-12-"),
    ],
)
def test_a_job_of_a_cluster_names_the_folder_of_all_its_processes_and_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    folder = Path(chosen(tmp_path))
    assert folder.name.startswith(name)
    assert folder.name.endswith("_3")
    # each process reads another clock, and a run of the same command of another job is not its own
    begun(tmp_path / "job-11-abc_3", OVERRIDES)
    assert run_folder(AUTO, OVERRIDES, str(tmp_path), "2027-01-01_00-00-00", 3) == str(folder)
    assert run_folder(None, OVERRIDES, str(tmp_path), TIME, 3) == str(folder)


def test_runs_of_one_job_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    first, other = chosen(tmp_path), chosen(tmp_path, overrides=[*OVERRIDES, "optimizer.learning_rate=0.01"])
    assert first != other
    assert chosen(tmp_path, seed=4) not in (first, other)
    assert chosen(tmp_path, overrides=[*reversed(OVERRIDES), "logger.mode=disabled"]) == first


def test_a_path_counts_in_a_job_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    run = begun(tmp_path / "2025-01-02_00-00-00_3", OVERRIDES)
    assert chosen(tmp_path, resume=str(run)) == str(run)


def refusing(code: int) -> Callable[..., None]:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    with sole_writer(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    (line,) = caplog.messages
    assert line == f"{tmp_path}/run: its file system has no locks; start no second command that writes there"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(Path, "mkdir", refusing(code))
    with pytest.raises(UserError) as error, sole_writer(tmp_path / "run"):
        raise AssertionError
    assert str(error.value) == f"{tmp_path}/run: cannot be written to ({os.strerror(code)}); choose another folder"


def test_an_error_within_is_not_taken_for_one_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="of something else"), sole_writer(tmp_path):
        raise PermissionError("of something else")
    # and the folder is free again
    with sole_writer(tmp_path):
        pass


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(UserError, match="is in use by another process"), sole_writer(tmp_path):
        raise AssertionError
