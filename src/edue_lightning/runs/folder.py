"""Choice and lock of a run's folder, so that an interrupted command can resume and no two commands share it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from edue_lightning.atomic import remove_unfinished
from edue_lightning.errors import UserError
from edue_lightning.runs.checkpoints import CHECKPOINTS
from edue_lightning.runs.files import CONFIGURATION_FILE, VALIDATION_FILE, read_mapping
from edue_lightning.runs.record import START_ONLY_KEYS, overrides_of
from edue_lightning.runtime.processes import is_first_process

log = logging.getLogger(__name__)

AUTO = "auto"
"""Value of `resume` for the unfinished run of this very command, if there is one."""

# what file systems answer that know no locks, as network drives without a lock service
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

HYDRA_FOLDER = ".hydra"
"""Folder of the files that Hydra writes for a new run."""

# overrides that do not make another run
_START_ONLY = (*START_ONLY_KEYS, "hydra")


def register_run_folder() -> None:
    """Let configurations call `run_folder` and `hydra_folder`, as in `${run_folder:...}`."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    # cached, because Hydra resolves it twice and another process of the run may write its record in between
    OmegaConf.register_new_resolver("hydra_folder", hydra_folder, replace=True, use_cache=True)


def run_folder(resume: str | None, overrides: Sequence[str], parent: str, time: str, seed: int) -> str:
    """Return the folder of a run: that of an earlier run to resume, or a new one.

    Args:
        resume: None for a new run; `auto` for the newest unfinished run of this very command below `parent`, or a new
            one; or a path, see `folder_of`.
        overrides: overrides of the command.
        parent: parent of new folders.
        time: name of a new folder; on a cluster the job's name replaces it, since all processes of a job, and the job
            when it is requeued, must agree on the folder.
        seed: seed of the run, the end of its folder's name.
    """
    own = sorted(one for one in overrides if not _is_start_only(one))
    if resume not in (None, AUTO):
        path = folder_of(str(resume))
        if path.is_dir():
            return str(path)
    job = _job()
    if job is not None:
        digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]
        return f"{parent}/{job}-{digest}_{seed}"
    if resume == AUTO:
        for folder in sorted(Path(parent).glob(f"*_{seed}"), reverse=True):
            begun = (folder / CONFIGURATION_FILE).is_file() and not (folder / VALIDATION_FILE).is_file()
            if begun and _overrides_in(folder) == own:
                return str(folder)
    return f"{parent}/{time}_{seed}"


def hydra_folder(folder: str) -> str | None:
    """Return the name of the folder for Hydra's files within a run's, or None if that holds a run already.

    Hydra writes them before a command is checked, so that a refused one would stand in place of the run's own.

    Args:
        folder: the run's folder.
    """
    return None if (Path(folder) / CONFIGURATION_FILE).exists() else HYDRA_FOLDER


def folder_of(path: str) -> Path:
    """Return the folder of a run from its own path or from that of one of its checkpoints.

    Raises:
        UserError: if a checkpoint lies in no run.
    """
    found = Path(path)
    if found.suffix != ".ckpt":
        return found
    inside = [parent for parent in found.parents if parent.name == CHECKPOINTS]
    if not inside:
        raise UserError(f"resume={path}: is not below the `checkpoints` folder of a run; give the run's folder")
    return inside[0].parent


@contextmanager
def sole_writer(*folders: Path) -> Iterator[None]:
    """Hold a folder for the first process, and remove what killed processes left half written.

    The lock ends with the process, however that ends. On a file system without locks a warning replaces it.

    Args:
        folders: the folder to hold, created if necessary, and those below it that are written to.

    Raises:
        UserError: if another process holds the folder, or it cannot be created or written to.
    """
    if not is_first_process():
        yield
        return
    folder = folders[0]
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{folder}: is in use by another process; wait until it ends, or stop it") from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
        log.warning("%s: its file system has no locks; start no second command that writes there", folder)
    try:
        for place in folders:
            remove_unfinished(place)
        yield
    finally:
        lock.release()


def _job() -> str | None:
    """Return the name of the cluster job that this process belongs to, or None."""
    if "SLURM_JOB_ID" in os.environ:
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            return f"job-{os.environ['SLURM_ARRAY_JOB_ID']}-{os.environ['SLURM_ARRAY_TASK_ID']}"
        return f"job-{os.environ['SLURM_JOB_ID']}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        named = os.environ["TORCHELASTIC_RUN_ID"]
        if named == "none":
            named = f"{os.environ['MASTER_ADDR']}-{os.environ['MASTER_PORT']}"
        return f"torchrun-{named}"
    return None


def _overrides_in(folder: Path) -> list[str] | None:
    """Return the overrides of the command that began a run or extended it, sorted, or None if they are unknown."""
    try:
        recorded = overrides_of(read_mapping(folder / CONFIGURATION_FILE))
        if recorded is None:
            recorded = yaml.safe_load((folder / HYDRA_FOLDER / "overrides.yaml").read_text()) or []
    except (OSError, UserError, yaml.YAMLError):
        return None
    return sorted(one for one in map(str, recorded) if not _is_start_only(one))


def _is_start_only(override: str) -> bool:
    """Return whether an override (`key=value`, `+key.part=value`, `group@key=value`) may differ between two starts."""
    return re.split(r"[.=@]", override.lstrip("+~"))[0].split("/")[0] in _START_ONLY
