"""Runs that share the devices of one machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from processes import PATIENCE, wait_until

from edue_lightning.runtime import devices
from edue_lightning.runtime.devices import FREE, held, with_free_device

_processes = multiprocessing.get_context("fork")


def hold(names: list[str], folder: Path, connection: Connection) -> None:
    """Hold a device, tell which, and give it back when told to."""
    with held(names, folder, poll_seconds=0.05) as position:
        connection.send(position)
        connection.recv()


class Holder:
    """Another process that holds a device."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self.connection, other = _processes.Pipe()
        self.process = _processes.Process(target=hold, args=(names, folder, other))
        self.process.start()

    def position(self) -> int:
        assert self.connection.poll(20)
        return int(self.connection.recv())

    def give_back(self) -> None:
        self.connection.send(None)
        self.process.join(20)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(20)


def test_each_process_gets_a_device_of_its_own(tmp_path: Path) -> None:
    holders = [Holder(["0", "3", "7"], tmp_path) for _ in range(3)]
    assert sorted(holder.position() for holder in holders) == [0, 1, 2]
    for holder in holders:
        holder.give_back()
    with held(["0", "3", "7"], tmp_path) as position:
        assert position == 0


def test_one_process_too_many_waits_for_the_first_that_is_done(tmp_path: Path) -> None:
    first = Holder(["0", "1"], tmp_path)
    assert first.position() == 0
    second = Holder(["0", "1"], tmp_path)
    assert second.position() == 1
    third = Holder(["0", "1"], tmp_path)
    assert not third.connection.poll(0.5)
    second.give_back()
    assert third.position() == 1
    first.give_back()
    third.give_back()


def test_a_killed_process_gives_its_device_back(tmp_path: Path) -> None:
    first = Holder(["GPU-a"], tmp_path)
    assert first.position() == 0
    second = Holder(["GPU-a"], tmp_path)
    assert not second.connection.poll(0.3)
    first.kill()
    assert second.position() == 0
    second.give_back()


def test_an_error_gives_the_device_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(["0"], tmp_path):
        raise ZeroDivisionError
    with held(["0"], tmp_path, poll_seconds=0.01) as position:
        assert position == 0


def test_runs_in_threads_of_one_process_do_not_share_a_device(tmp_path: Path) -> None:
    found: list[int] = []
    finish = Event()

    def work() -> None:
        with held(["0", "1"], tmp_path, poll_seconds=0.01) as position:
            found.append(position)
            finish.wait(PATIENCE)

    threads = [Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(found) >= 2)
    time.sleep(0.1)
    assert sorted(found) == [0, 1]
    finish.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 3


@pytest.mark.parametrize("devices", [1, "auto", [2]])
def test_devices_that_were_chosen_are_taken(devices: object) -> None:
    node = {"accelerator": "auto", "devices": devices}
    with with_free_device(node) as trainer:
        assert trainer == node


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cpu"])
def test_without_a_gpu_the_cpu_is_shared(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "cpu")
    node = {"accelerator": accelerator, "devices": FREE}
    with ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(with_free_device(node)) == {"accelerator": accelerator, "devices": 1}
    assert node["devices"] == FREE


@pytest.mark.parametrize(("visible", "files"), [(None, ["0", "1"]), ("2,GPU-5", ["2", "GPU-5"])])
def test_visible_gpus_are_held_by_their_name_and_given_by_their_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, files: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    node = {"accelerator": "auto", "devices": FREE}
    with with_free_device(node) as first, with_free_device(node) as second:
        assert (first["devices"], second["devices"]) == ([0], [1])
        (folder,) = tmp_path.iterdir()
        assert sorted(path.stem for path in folder.glob("*.lock")) == files
        assert folder.stat().st_mode & 0o777 == 0o700
