"""Runs the commands of the documentation as they stand, with what makes them quick added.

A page's commands are a script for bash, whose PATH holds nothing but `CLIENT` under the names of the programs that a
page may call. It hands the call over to a process that has imported everything, which starts a child for each. The
child gets the caller's arguments, folder, environment and standard files, so that a command finds what it would find in
a process of its own, but for the seconds of its imports. A call of a form that is not known here ends with status 97.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
UNKNOWN = 97
PROGRAMS = ("python", "edue", "make", "pip", "sbatch", "srun", "torchrun", "wandb", "apt-get", "sphinx-build")
PLAIN, SERVER, CALLS, DATA = "EDUE_TEST_PLAIN", "EDUE_TEST_SERVER", "EDUE_TEST_CALLS", "EDUE_TEST_DATA"

CLIENT = f"""#!{sys.executable} -IS
import json, os, socket, sys
call = {{"program": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:], "folder": os.getcwd()}}
call["environment"] = dict(os.environ)
message = json.dumps(call).encode()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(os.environ["{SERVER}"])
    socket.send_fds(connection, [len(message).to_bytes(8, "little")], [0, 1, 2])
    connection.sendall(message)
    status = connection.recv(1)
sys.exit(status[0] if status else 255)
"""

NOT_RUN = {
    "apt-get": "installs system packages",
    "wandb": "needs a server; the files that it is given must be there",
    "pip": "the environment of the tests has the extras; they must exist",
    "sphinx-build": "tests/project/test_documentation.py builds the site",
    "pytest": "`make test` is what runs this",
}
"""Programs that a page may call and that are not run here: the reason, and the check in their place."""

TRAIN_QUICKLY = [
    *("trainer.accelerator=cpu", "trainer.max_epochs=1", "++trainer.check_val_every_n_epoch=1"),
    *("++trainer.limit_train_batches=2", "network.features=[4,6,8]", "bootstrap_resamples=0", "logger.mode=disabled"),
    # tests/commands/test_commands.py makes those of a run
    "figures=false",
]
QUICK_DATA = {
    "lidc": ["data.source.size=32", "data.batch_size=4", "data.root={data}/lidc"],
    "synthetic": ["data.source.n_cases=16", "data.source.size=32", "data.batch_size=4"],
    "synthetic_petct": ["data.source.n_cases=16", "data.source.size=16", "data.batch_size=4"],
    "riga": ["data.source.size=64", "data.batch_size=2"],
    "hecktor": ["data.patch.size=[16,16,8]", "inference.window=[16,16,8]", "data.batch_size=2"],
    "lidc_slices": ["data.batch_size=4"],
    "manifest": ["data.batch_size=4"],
    "pictures": [],
}
"""Overrides that make a training on a data set quick."""

# what a placeholder of a page is, by what else the command says
PLACEHOLDERS = {"FOLDER": ("hecktor", "riga", "lidc_slices", "retinal_vessels", "manifest"), "DIR": ("all", "test")}


class UnknownCommandError(Exception):
    """A command of a form that nobody has said how to run."""


def call(program: str, arguments: Sequence[str]) -> int:
    """Run one call of a page and return its exit status; the folder and environment are the caller's."""
    if program == "python":
        return _python(list(arguments))
    if program == "edue":
        return _python(["-m", f"edue_lightning.{arguments[0]}", *arguments[1:]])
    if program == "make":
        return _make(arguments)
    if program == "pip":
        return _pip(arguments)
    if program == "sbatch":
        return _sbatch(list(arguments))
    if program == "srun":
        _require(arguments[:1] == ["python"], "srun starts no Python")
        return _composes(_after_module(arguments[1:]))
    if program == "torchrun":
        return _composes(_after_module(arguments))
    if program == "sphinx-build":
        _require("--fail-on-warning" in arguments, "sphinx-build takes no warning for an error")
        return 0
    if program == "wandb":
        _require(bool(arguments) and arguments[0] in ("sync", "sweep", "agent"), "wandb")
        files = [name for name in arguments if name.endswith(".yaml")]
        _require(all((ROOT / name).is_file() for name in files), "wandb: no such file")
        return 0
    _require([program, *arguments] == ["apt-get", "install", "slurm-wlm", "munge"], program)
    return 0


def quick(command: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments of one of our commands with fewer runs in a sweep, and what makes a run quick."""
    given = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if argument == "...":
            given += ["experiment=synthetic", "seed=0"]
        elif key.startswith("hydra.launcher") or key == "hydra/launcher":
            # composed by `_check_launcher`; tests/runtime/test_launchers.py sweeps by each of them
            continue
        elif key == "hydra.sweeper.n_trials":
            given.append(f"{key}=2")
        elif re.fullmatch(r"[\w,.]+", value) and "," in value:
            given.append(f"{key}={','.join(value.split(',')[: 1 if key == 'seed' else 2])}")
        else:
            given.append(argument)
    added: list[str] = []
    said = " ".join(given)
    if command == "train":
        added += TRAIN_QUICKLY
        for name in _data(said):
            added += [override.format(data=os.environ[DATA]) for override in QUICK_DATA[name]]
        if "experiment=hecktor" in given:
            # as many stages as TRAIN_QUICKLY gives channels
            added += ["network.strides=null", "network.kernels=null"]
        if "data.root=cohort" in given:
            # patients with as many voxels as real ones
            added += ["data.source.spacing=[4,4,6]"]
        if "data.patch.size=[256,256]" in given:
            added.append("data.patch.size=[16,16]")
        if "members_at_once=5" in given:
            added += ["members_at_once=2", "method.members=2"]
    if command == "evaluate":
        added += ["trainer.accelerator=cpu", "bootstrap_resamples=0", "figures=false"]
        if "distortions=default" in given:
            added.append("distortions.severities=[1]")
        if "data.root=OTHER_FOLDER" in given:
            # as the training of the tests read its images
            added.append("data.source.standardise=false")
    if command == "predict":
        added.append("device=cpu")
    if "trainer.devices=8" in given:
        added.append("trainer.devices=2")
    if "trainer.devices=free" in given:
        added.append("trainer.devices=1")
    # behind the page's own, of which the last counts, and before an option such as --cfg
    place = 1 + max((number for number, one in enumerate(given) if "=" in one), default=-1)
    return [*given[:place], *added, *given[place:]]


def _data(said: str) -> list[str]:
    named = re.findall(r"\b(?:data|experiment)=(\w+)", said)
    known = {"demo": "lidc"}
    # what conf/train.yaml takes where nothing is said
    found = [known.get(name, name) for name in named] or ["lidc"]
    _require(set(found) <= set(QUICK_DATA), f"no quick data set like {found}")
    return found


def _python(arguments: list[str]) -> int:
    if arguments[:1] == ["-m"]:
        module = arguments[1]
        if module in NOT_RUN:
            return 0
        if module == "monai.bundle":
            # a bundle runs in its own folder
            images = Path("NEW_IMAGES")
            if not images.exists():
                images.symlink_to(Path(os.environ[DATA]) / images)
            return _run(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), [module, *arguments[2:]])
        package, _, command = module.partition(".")
        _require(package == "edue_lightning" and (ROOT / f"src/edue_lightning/{command}.py").is_file(), module)
        _check_launcher(arguments[2:])
        _point_placeholders(arguments)
        wanted = quick(command, arguments[2:])
        if command == "check":
            # a folder is named by its second, and a command that is served here may take less
            time.sleep(1.01 - time.time() % 1)
        if os.environ.get(PLAIN) and _is_first(module):
            os.execv(sys.executable, [sys.executable, "-m", module, *wanted])
        sys.path.insert(0, str(Path.cwd()))
        return _run(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), [module, *wanted])
    _require(bool(arguments), "python alone")
    script, given = arguments[0], arguments[1:]
    path = Path(script).resolve()
    _require(path.is_file(), f"{script}: no such script")
    if path.is_relative_to(ROOT / "experiments"):
        # long work: the tests of tests/ that name the script run it, here it tells its options
        writes = path.name == "cohort.py"
        if writes:
            given += ["--large", "0", "--small", "4"]
        else:
            options = {option for option in given if option.startswith("--")}
            text = path.read_text()
            common = path.with_name("common.py")
            text += common.read_text() if common.is_file() else ""
            _require(all(f'"{option}"' in text for option in options), f"{script} has no option of {options}")
            sys.path.insert(0, str(path.parent))
            if "pars" not in path.read_text():
                # takes no options, so it is imported
                return _run(lambda: runpy.run_path(str(path), run_name="imported"), [str(path)])
            if _is_done(str(path)):
                return 0
            given = ["--help"]
    sys.path.insert(0, str(path.parent))
    return _run(lambda: runpy.run_path(str(path), run_name="__main__"), [str(path), *given])


def _is_first(*words: str) -> bool:
    """Tell whether no earlier call of this page had these words."""
    calls = [json.loads(line) for line in Path(os.environ[CALLS]).read_text().splitlines()]
    return sum(set(words) <= set(call) for call in calls) == 1


def _is_done(name: str) -> bool:
    """Tell whether another page has asked for the same, and note that this one did."""
    mark = Path(os.environ[DATA]) / "done" / re.sub(r"\W+", "_", name)
    mark.parent.mkdir(exist_ok=True)
    if mark.exists():
        return True
    mark.touch()
    return False


def _run(work: Callable[[], object], arguments: list[str]) -> int:
    sys.argv = arguments
    work()
    return 0


def _check_launcher(arguments: Sequence[str]) -> None:
    """Compose what a sweep says of its launcher, which is not used here."""
    launcher = [one for one in arguments if one.startswith(("hydra/launcher=", "hydra.launcher."))]
    if not launcher:
        return
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from edue_lightning.config.schema import configuration_folder

    name = launcher[0].partition("=")[2]
    _require((ROOT / f"conf/hydra/launcher/{name}.yaml").is_file(), f"no launcher {name}")
    if name.startswith("ray"):
        # needs an environment of its own, see pyproject.toml
        return
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        compose("train", overrides=launcher, return_hydra_config=True)
    GlobalHydra.instance().clear()


def _composes(arguments: Sequence[str]) -> int:
    """Check the configuration of a training on several machines, which is not started."""
    from hydra import compose, initialize_config_dir

    from edue_lightning.config.schema import check_configuration, configuration_folder, resolved
    from edue_lightning.training.run import TrainConfiguration

    own = [one for one in arguments if not one.startswith("hydra.run.dir=")]
    with initialize_config_dir(configuration_folder(), version_base="1.3"):
        check_configuration(resolved(compose("train", overrides=own)), TrainConfiguration)
    return 0


def _after_module(arguments: Sequence[str]) -> Sequence[str]:
    place = list(arguments).index("-m")
    _require(arguments[place + 1] == "edue_lightning.train", "no training")
    return arguments[place + 2 :]


def _sbatch(arguments: list[str]) -> int:
    """Run a job script as SLURM does, once for the first and once for the last task of an array."""
    options = {}
    while arguments and arguments[0].startswith("--"):
        name, _, value = arguments.pop(0).removeprefix("--").partition("=")
        options[name] = value
    known = {"partition", "array", "nodes", "ntasks-per-node", "gpus-per-node"}
    _require(set(options) <= known, f"sbatch has no option of {set(options) - known}")
    script = next(path for path in (Path(arguments[0]), Path("experiments/cluster") / arguments[0]) if path.is_file())
    tasks = options.get("array", "0-0").split("-")
    for task in sorted(set(tasks)):
        environment = {
            **{"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": task, "SLURM_CPUS_PER_TASK": "1"},
            "SLURM_NNODES": options.get("nodes", "2"),
            "SLURM_NTASKS_PER_NODE": options.get("ntasks-per-node", "4"),
        }
        done = subprocess.run(
            ["/bin/bash", str(script), *arguments[1:]], env={**os.environ, **environment}, check=False
        )
        if done.returncode:
            return done.returncode
    return 0


def _pip(arguments: Sequence[str]) -> int:
    """Check that the extras of a command exist."""
    _require(arguments[:1] == ["install"], "pip")
    wanted = re.search(r"(?:\.|edue-lightning)\[([\w,]+)\]", shlex.join(arguments))
    _require(wanted is not None, "pip installs something else")
    assert wanted is not None
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    _require(set(wanted[1].split(",")) <= set(extras), f"no extra {wanted[1]}")
    return 0


def _make(arguments: Sequence[str]) -> int:
    """Run what a target of the Makefile would run; the environment counts as installed."""
    make = shutil.which("make", path=os.defpath + ":/usr/local/bin")
    _require(make is not None, "there is no make on this machine")
    assert make is not None
    shown = subprocess.run(
        [make, "--dry-run", "--file", str(ROOT / "Makefile"), *arguments], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        sys.stderr.write(shown.stderr)
        return shown.returncode
    if _is_done(f"make {shlex.join(arguments)}"):
        return 0
    lines = [line for line in shown.stdout.splitlines() if not line.startswith("make: ")]
    return subprocess.run(["/bin/bash", "-euo", "pipefail", "-c", "\n".join(lines)], check=False).returncode


def _point_placeholders(arguments: Sequence[str]) -> None:
    """Let FOLDER and DIR be what a command needs."""
    said = " ".join(arguments)
    data = Path(os.environ[DATA])
    for name, kinds in PLACEHOLDERS.items():
        if not re.search(rf"={name}\b", said):
            continue
        kind = next((kind for kind in kinds if re.search(rf"=(?:{kind})\b", said)), None)
        _require(kind is not None, f"nothing says what {name} is in {said}")
        link = Path(name)
        link.unlink(missing_ok=True)
        link.symlink_to(data / f"{name}_{kind}")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise UnknownCommandError(problem)


def serve(address: str) -> NoReturn:
    """Answer calls until killed; each in a child of a child, so that a call may make others."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import edue_lightning.check
    import edue_lightning.convert
    import edue_lightning.evaluate
    import edue_lightning.predict
    import edue_lightning.report
    import edue_lightning.train  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    length, files, _, _ = socket.recv_fds(connection, 8, 3)
    wanted = int.from_bytes(length, "little")
    message = b""
    while len(message) < wanted:
        message += connection.recv(wanted - len(message))
    request: dict[str, Any] = json.loads(message)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        with Path(os.environ[CALLS]).open("a") as calls:
            calls.write(json.dumps([request["program"], *request["arguments"]]) + "\n")
        os._exit(_status(request["program"], request["arguments"]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _status(program: str, arguments: Sequence[str]) -> int:
    try:
        status = call(program, arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except UnknownCommandError as error:
        print(
            f"{shlex.join([program, *arguments])}: not known to the test of the documentation: {error}", file=sys.stderr
        )
        status = UNKNOWN
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(sys.argv[1])
