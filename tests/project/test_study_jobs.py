"""The jobs of a study: several processes at a time, resumable, within a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import PATIENCE

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "comparison"))

from jobs import Job, Pool

# a training: notes its start, works, and ends with validation.csv; on SIGTERM it stores what a checkpoint would
TRAINING = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1].removeprefix("hydra.run.dir="))
folder.mkdir(parents=True, exist_ok=True)
def stop(*_):
    (folder / "stored").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with (folder / "starts").open("a") as file:
    file.write(f"{time.time()}\\n")
time.sleep(float(sys.argv[1]))
if sys.argv[2] == "fails":
    sys.exit("no reason")
(folder / "end").write_text(str(time.time()))
(folder / "validation.csv").touch()
"""


def job(name: str, seconds: float = 0.0, expected: float = 1.0, ends: str = "well") -> Job:
    return Job(f"runs/{name}", (sys.executable, "-c", TRAINING, str(seconds), ends), expected)


def test_all_jobs_run_once(tmp_path: Path) -> None:
    lines: list[str] = []
    jobs = [job(name) for name in "abc"]
    assert Pool(tmp_path, 2, say=lines.append).run(jobs) == []
    assert lines[0].startswith("3 of 3 jobs to do")
    assert lines[-1].endswith("3 of 3 jobs finished, 0 running, 0 failed")
    assert Pool(tmp_path, 2, say=lines.append).run(jobs) == []
    for one in jobs:
        assert len((tmp_path / one.name / "starts").read_text().split()) == 1
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 3


def test_not_more_jobs_run_at_a_time_than_asked_for(tmp_path: Path) -> None:
    jobs = [job(name, seconds=0.4) for name in "abcd"]
    Pool(tmp_path, 2, say=lambda _: None).run(jobs)
    spans = [
        (float((tmp_path / one.name / "starts").read_text()), float((tmp_path / one.name / "end").read_text()))
        for one in jobs
    ]
    assert max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans) <= 2


def test_a_failed_job_is_reported_and_run_again_while_the_others_finish(tmp_path: Path) -> None:
    lines: list[str] = []
    assert Pool(tmp_path, 1, say=lines.append).run([job("a", ends="fails"), job("b")]) == ["runs/a"]
    assert (tmp_path / "runs" / "b" / "validation.csv").is_file()
    assert lines[-1] == f"failed: runs/a, see {tmp_path / 'runs' / 'a'}.log"
    assert "no reason" in (tmp_path / "runs" / "a.log").read_text()
    assert Pool(tmp_path, 1, say=lines.append).run([job("a"), job("b")]) == []
    assert len((tmp_path / "runs" / "a" / "starts").read_text().split()) == 2


def test_jobs_finished_elsewhere_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "finished.txt").write_text("runs/a\nruns/unknown\n")
    assert Pool(tmp_path, 1, say=lambda _: None).run([job("a"), job("b")]) == []
    assert not (tmp_path / "runs" / "a").exists()
    assert (tmp_path / "runs" / "b" / "validation.csv").is_file()


def test_a_job_that_would_not_end_in_time_is_not_started_and_shorter_ones_are(tmp_path: Path) -> None:
    lines: list[str] = []
    jobs = [job("long", expected=900), job("short", expected=1)]
    assert Pool(tmp_path, 1, seconds_left=60, say=lines.append).run(jobs) == []
    assert not (tmp_path / "runs" / "long").exists()
    assert (tmp_path / "runs" / "short" / "validation.csv").is_file()
    assert lines[-1] == "1 jobs not started, since they would not end in time; the same command runs them"


def test_a_job_that_is_to_be_cut_is_started_stores_and_is_no_failure(tmp_path: Path) -> None:
    jobs = [job("long", seconds=60, expected=900)]
    assert Pool(tmp_path, 1, seconds_left=3, cut=True, say=lambda _: None).run(jobs) == []
    assert (tmp_path / "runs" / "long" / "stored").is_file()
    assert not (tmp_path / "runs" / "long" / "validation.csv").exists()


def test_durations_are_expected_as_those_that_were_measured(tmp_path: Path) -> None:
    # the first takes at least 0.5 s instead of 0.001, so the second takes at least 60 s, not 0.12
    jobs = [job("a", seconds=0.5, expected=0.001), job("b", expected=0.12)]
    Pool(tmp_path, 1, seconds_left=30, say=lambda _: None).run(jobs)
    assert (tmp_path / "runs" / "a" / "validation.csv").is_file()
    assert not (tmp_path / "runs" / "b").exists()


def test_the_duration_of_a_resumed_job_says_nothing_about_others(tmp_path: Path) -> None:
    # the first ends in less than the 60 s expected, since most of it was done before
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.log").touch()
    Pool(tmp_path, 1, seconds_left=70, say=lambda _: None).run([job("a", expected=60), job("b", expected=100)])
    assert (tmp_path / "runs" / "a" / "validation.csv").is_file()
    assert not (tmp_path / "runs" / "b").exists()


def test_the_duration_of_a_prepared_job_counts_although_it_has_checkpoints(tmp_path: Path) -> None:
    # as of a read-out, whose folder is written beforehand
    (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)
    Pool(tmp_path, 1, seconds_left=70, say=lambda _: None).run([job("a", expected=60), job("b", expected=100)])
    assert (tmp_path / "runs" / "b" / "validation.csv").is_file()


def test_running_jobs_store_a_checkpoint_at_the_limit(tmp_path: Path) -> None:
    lines: list[str] = []
    start = time.monotonic()
    assert Pool(tmp_path, 1, seconds_left=5, say=lines.append).run([job("a", seconds=600, expected=1)]) == []
    assert time.monotonic() - start < 300
    assert (tmp_path / "runs" / "a" / "stored").is_file()
    assert not (tmp_path / "runs" / "a" / "validation.csv").exists()
    assert "1 running jobs are asked to store a checkpoint and end" in lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_stops_its_jobs(tmp_path: Path, number: signal.Signals) -> None:
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[2] / "experiments" / "comparison")]!r}
from pathlib import Path
from jobs import Job, Pool
Pool(Path({str(tmp_path)!r}), 1).run([Job("runs/a", (sys.executable, "-c", {TRAINING!r}, "600", "well"), 1.0)])
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    begun = tmp_path / "runs" / "a" / "starts"
    deadline = time.monotonic() + PATIENCE
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "1 running jobs are asked to store a checkpoint and end" in said
    assert (tmp_path / "runs" / "a" / "stored").is_file()
