"""Records in a run's folder: its configuration, command and commit, and the settings that identify its method."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from edue_lightning.atomic import write_whole
from edue_lightning.config.build import preparation_settings
from edue_lightning.config.schema import with_current_targets
from edue_lightning.data.identity import TrainingCases
from edue_lightning.errors import UserError
from edue_lightning.metrics import MEAN_STRUCTURE, MetricSettings
from edue_lightning.runs.checkpoints import LAST
from edue_lightning.runs.files import (
    CONFIGURATION_FILE,
    METRICS_COLUMNS,
    VALIDATION_FILE,
    read_mapping,
    read_table,
)
from edue_lightning.uncertainty import MaskRule

START_ONLY_KEYS = frozenset({"resume", "logger", "members_at_once", "checkpoint_every_steps", "figures"})
"""Top-level keys of the configuration that may differ between two starts of one run."""

_MODULE, _CONFIG_FOLDER = "edue_lightning.", "--config-dir"

# the label is recorded as the method names itself
_NOT_COMPARED = START_ONLY_KEYS | {"label"}

TRAINING = "training"
"""Key of an evaluation's record for the configuration of the training behind its checkpoint."""

TRAINING_CASES = "training_cases"
"""Key of a training's record, and of its checkpoints' configuration, for the number of the cases and a digest of their
ids."""

TRAINING_CONTENT = "training_content"
"""Key beside it for a digest of images and masks; absent in records of earlier versions."""

TRAINING_SPACING = "training_spacing"
"""Key beside it for a digest of the voxel sizes, unknown ones among them; absent in records of earlier versions."""

CAUTIONS = "cautions"
"""Key of an evaluation's record for one text per reason to doubt its values, which every report repeats."""

CKPT_MEASURED = "ckpt_measured"
"""Key of an evaluation's record for whether the training measured this checkpoint, see `checkpoints.LoadedMethod`;
absent in records of earlier versions."""

READ_OUT = "read_out"
"""Key of the record of measured files for the number of their members and how maps are read from these."""

INIT_DIGEST = "init_digest"
"""Key of a training's record for the digest of the checkpoint it began from."""

COMMAND = "command"
"""Key of a record for the command that repeats the run."""

EXTENDED_FROM = "extended_from"
"""Key of a training's record for the numbers of epochs after which it was resumed for more."""

# keys that do not identify a method: the seed, options of a start or an output, speed, and what is compared on its own
_NOT_OF_THE_METHOD = _NOT_COMPARED | {
    *("seed", "test", COMMAND, "commit", "image_note", "ckpt", "predictions", "output", "split", "save_predictions"),
    # the digest of the file, and the number of epochs in the end, count
    *("init", EXTENDED_FROM),
    *("bootstrap_resamples", "allow_overlap", "metrics", TRAINING),
    *("compile", "device", "distortions", "hydra", "triage_sensitivity", "wandb"),
    # its values are those of the other keys
    "plan",
}
_NOT_OF_THE_METHOD_BELOW = {
    *("data.name", "data.note", "data.seed", "data.cache", "data.source.cache"),
    *("data.num_workers", "data.cache_cases", "data.eval_batch_size"),
    *("trainer.accelerator", "trainer.benchmark", "trainer.default_root_dir", "trainer.log_every_n_steps"),
    *("trainer.enable_checkpointing", "trainer.enable_model_summary", "trainer.enable_progress_bar"),
    *("trainer.logger", "trainer.profiler", "network.channels_last"),
    "inference.batch_size",
}
ROOTS = ("data.root", "data.source.root")
"""Settings of the place of the data, by dotted key."""

# keys of an evaluation by a model of 2D images through volumes
_SLICING = ("slice_axis", "slice_directions", "slice_window")

_SHORT_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}

PARTLY_KNOWN = (TRAINING_CASES, TRAINING_CONTENT, TRAINING_SPACING, *ROOTS)
"""Settings of a method that not every record holds; they count where both of two records do."""


def write_configuration(
    configuration: Mapping[str, Any],
    label: str,
    note: str | None,
    folder: Path,
    training: TrainingCases | None = None,
) -> None:
    """Write `config.yaml`: the resolved configuration, the command, the commit and a caveat on the data.

    Args:
        configuration: resolved plain configuration.
        label: name of the method in tables.
        note: caveat to show with every result on this data set, or None.
        folder: folder of the run; made if it does not exist.
        training: cases of a training, None for other commands.

    Raises:
        UserError: if the folder already holds a run.
    """
    path = folder / CONFIGURATION_FILE
    if path.exists():
        # only trainings can be resumed
        other = "remove it" if training is None else "resume that run with resume=auto"
        raise UserError(f"{folder}: already holds a run; choose another folder, or {other}")
    folder.mkdir(parents=True, exist_ok=True)
    record = {**configuration, "label": label, COMMAND: command_line(), "commit": _commit(), "image_note": note}
    if training is not None:
        record |= training_entries(training)
    _write_record(record, path)


def extend_record(configuration: Mapping[str, Any], folder: Path, epochs: int) -> None:
    """Let `config.yaml` say that a run is resumed for more epochs, and from which number.

    Args:
        configuration: resolved plain configuration with the larger number of epochs.
        folder: folder of the run.
        epochs: number of epochs that it was planned for.
    """
    path = folder / CONFIGURATION_FILE
    record = read_mapping(path)
    record |= {"trainer": configuration["trainer"], COMMAND: command_line(), "commit": _commit()}
    record[EXTENDED_FROM] = [*record.get(EXTENDED_FROM, []), epochs]
    _write_record(record, path)


def _write_record(record: Mapping[str, Any], path: Path) -> None:
    write_whole(path, lambda temporary: temporary.write_text(yaml.safe_dump(dict(record), sort_keys=False)))


def digest(parts: Iterable[str]) -> str:
    """Return a short digest of some texts in their order."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def cases_text(case_ids: Iterable[str]) -> str:
    """Return the number of some cases and the digest of their ids, in any order."""
    ids = sorted(case_ids)
    return f"{len(ids)} ({digest(ids)})"


def training_entries(cases: TrainingCases) -> dict[str, str]:
    """Return the entries of a training's record that identify its cases, whatever their order and preparation.

    Args:
        cases: cases of the training, identified by this version.
    """
    content = sorted(
        f"{split} {case.case_id} {case.content} {case.masks}" for split, of_split in cases.items() for case in of_split
    )
    spacing = sorted(f"{split} {case.case_id} {case.spacing_text}" for split in cases for case in cases[split])
    return {
        TRAINING_CASES: cases_text(case.case_id for case in cases["train"]),
        TRAINING_CONTENT: digest(content),
        TRAINING_SPACING: digest(spacing),
    }


def method_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that identify a method, by dotted key; seeds of one method agree in them.

    These are all of the resolved configuration but the seed, keys of a start alone, outputs, caches, the settings of
    the metrics (see `metric_settings`) and, where the training cases are recorded or it is an evaluation, the place of
    the data. An evaluation has the settings of its checkpoint's training, but for its own windows and rule for masks,
    and, where its precision or the preparation of its images is another one, these too, as `evaluation.precision`; so
    are the slices of volumes, and a checkpoint that is not the training's best one. Predictions in files have the
    settings of their data alone.

    Args:
        record: content of `config.yaml`.
    """
    trained = record.get(TRAINING) or record
    chosen = {key: trained[key] for key in trained if key not in _NOT_OF_THE_METHOD}
    if record.get("predictions") is not None:
        # its other settings say nothing of the model
        chosen = {"data": record.get("data"), "predictions": "files", READ_OUT: record.get(READ_OUT)}
    else:
        # the target `majority` follows the training's own tie
        tie = metric_settings(trained)["metrics.majority_tie"]
        chosen |= {"predictions": "model", "training_majority_tie": tie}
    if trained is not record and record.get("inference") is not None:
        chosen["inference"] = record["inference"]
    chosen["mask"] = _mask_rule(record, trained)
    settings = _flat(with_current_targets(chosen))
    if "trainer.precision" in settings:
        settings["trainer.precision"] = _precision(settings["trainer.precision"])
    if trained is not record:
        settings |= _of_the_evaluation(record, trained)
    if settings.get("trainer.devices") in ("free", "1"):
        # one device, whichever it is
        settings["trainer.devices"] = 1
    ignored = {*_NOT_OF_THE_METHOD_BELOW, *(ROOTS if TRAINING_CASES in trained or trained is not record else ())}
    return {key: value for key, value in settings.items() if key not in ignored}


def _mask_rule(record: Mapping[str, Any], trained: Mapping[str, Any]) -> Any:
    """Return the rule for masks of a training or evaluation; None for the usual one, as of runs that name none."""
    rule = record.get("mask") or trained.get("mask")
    return None if rule is None or rule.get("rule", MaskRule.rule) == MaskRule.rule else rule


def _of_the_evaluation(record: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return precision, preparation and checkpoint of an evaluation where they differ from the training's, and slices.

    A training's own results are those of `best.ckpt`. Its file may have any name; one named `last.ckpt` is another one.
    """
    differing: dict[str, Any] = {}
    name = Path(record.get("ckpt") or "").name
    if not record.get(CKPT_MEASURED, name != LAST):
        differing["ckpt"] = name if name == LAST else "intermediate"
    precisions = [_precision((part.get("trainer") or {}).get("precision")) for part in (record, trained)]
    if None not in precisions and precisions[0] != precisions[1]:
        differing["precision"] = precisions[0]
    found, expected = (_preparation(part.get("data") or {}) for part in (record, trained))
    if found and expected:
        differing |= {name: value for name, value in found.items() if value != expected.get(name)}
    differing |= {name: record[name] for name in _SLICING if record.get(name) is not None}
    return _flat({"evaluation": {name: "null" if value is None else value for name, value in differing.items()}})


def _precision(value: Any) -> str | None:
    return None if value is None else _SHORT_PRECISIONS.get(str(value), str(value))


def _preparation(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return `preparation_settings`; of a data set from elsewhere, the settings of its source but for its place."""
    try:
        return preparation_settings(data)
    # settings of another program or version raise errors of any type
    except Exception:
        source = data.get("source") or {}
        return {name: source[name] for name in source if name not in ("root", "cache", "file")}


def same_method(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two results of `method_settings` are those of one method.

    An evaluation may not know the training cases, so these are compared where both know them; a root likewise.
    """
    unknown = {key for key in PARTLY_KNOWN if key not in first or key not in second}
    return all(first.get(key) == second.get(key) for key in {*first, *second} - unknown)


def metric_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the metrics by dotted key, defaults where `config.yaml` has none."""
    trained = record.get(TRAINING) or {}
    chosen = record.get("metrics") or trained.get("metrics") or {}
    settings = {**asdict(MetricSettings()), **{key: chosen[key] for key in chosen if key != "_target_"}}
    return _flat({"metrics": settings})


def data_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run's data by dotted key, its place among them, without those of speed and storage."""
    settings = _flat(with_current_targets({"data": record.get("data") or {}}))
    return {key: value for key, value in settings.items() if key not in _NOT_OF_THE_METHOD_BELOW}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key; leaves that are None are left out."""
    if isinstance(node, Mapping):
        return {
            name: leaf
            for key, value in node.items()
            for name, leaf in _flat(value, f"{path}.{key}" if path else str(key)).items()
        }
    return {} if node is None else {path: node}


def check_same_run(configuration: Mapping[str, Any], folder: Path) -> None:
    """Check that a folder holds a run of this configuration.

    Args:
        configuration: resolved and plain.
        folder: the run's folder.

    Raises:
        UserError: if it holds no run, or one of another configuration.
    """
    path = folder / CONFIGURATION_FILE
    if not path.is_file():
        raise UserError(f"{folder}: holds no run to resume; check the path, or leave out resume")
    recorded = read_mapping(path)
    method = configuration.get("method")
    if method and method.get("levels", 0) is None:
        # a number that is left to the data was filled in
        levels = (recorded.get("method") or {}).get("levels")
        configuration = {**configuration, "method": {**method, "levels": levels}}
    # a key that is null is one that an earlier version did not have
    differing = [
        name
        for name in configuration
        if name not in _NOT_COMPARED and _flat({name: configuration[name]}) != _flat({name: recorded.get(name)})
    ]
    if differing:
        raise UserError(
            f"{folder}: holds a run with another {', '.join(differing)}; choose another folder, or resume that run by "
            f"its own command with resume=auto: {recorded.get(COMMAND)}"
        )


def check_same_cases(cases: TrainingCases | None, folder: Path) -> None:
    """Check that a training resumes on the cases that it recorded when it began, even before its first checkpoint.

    Args:
        cases: cases of the training now; None in other processes than the first.
        folder: the run's folder.

    Raises:
        UserError: if they differ.
    """
    if cases is None:
        return
    recorded, path = read_mapping(folder / CONFIGURATION_FILE), folder / CONFIGURATION_FILE
    now = training_entries(cases)
    # a record of an earlier version holds fewer entries
    differing = [key for key, value in now.items() if key in recorded and recorded[key] != value]
    if differing == [TRAINING_SPACING]:
        raise UserError(
            f"{path}: the voxel sizes of the training cases have changed since the training began; restore them, or "
            "train anew in another folder"
        )
    if differing:
        before = f"{recorded.get(TRAINING_CASES, 'other')}, now {now[TRAINING_CASES]}"
        raise UserError(
            f"{path}: the training cases, their images or masks have changed since the training began (number and "
            f"digest of their ids: {before}); restore them, or train anew in another folder"
        )


def check_same_beginning(configuration: Mapping[str, Any], folder: Path) -> None:
    """Check that the checkpoint of `init` is still that with which a run began.

    Args:
        configuration: configuration with `INIT_DIGEST`, if the run began from a checkpoint.
        folder: the run's folder.

    Raises:
        UserError: if it is another one.
    """
    recorded = read_mapping(folder / CONFIGURATION_FILE).get(INIT_DIGEST)
    if recorded != configuration.get(INIT_DIGEST):
        raise UserError(
            f"init={configuration['init']}: the file has changed since {folder} began from it; restore it, or train "
            "anew in another folder"
        )


def finished_value(folder: Path, metric: str) -> float | None:
    """Return the value of a metric on a finished run's validation cases, None if the run is not finished.

    Args:
        folder: the run's folder.
        metric: name of the metric, averaged over structures.
    """
    if not (folder / VALIDATION_FILE).is_file():
        return None
    found = read_table(folder / VALIDATION_FILE, METRICS_COLUMNS)
    values = found[found["metric"] == metric].set_index("structure")["value"]
    return float(values[MEAN_STRUCTURE] if MEAN_STRUCTURE in values else values.iloc[0])


def write_mapping(values: Mapping[str, Any], path: Path) -> None:
    """Write keys and values as JSON."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(dict(values), indent=2) + "\n"))


def command_line() -> str:
    """Return the command that repeats this run; for a run of a sweep, the command that runs it alone."""
    if not HydraConfig.initialized():
        return shlex.join(["python", *sys.argv])
    hydra = HydraConfig.get()
    # not from sys.argv: a launcher may run this in a process of its own
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    directories = [part for folder in folders for part in (_CONFIG_FOLDER, os.path.relpath(folder, hydra.runtime.cwd))]
    own = [override for override in hydra.overrides.hydra if override != "hydra.mode=RUN"]
    overrides = [*hydra.overrides.task, *(own if hydra.mode == RunMode.RUN else [])]
    return shlex.join(["python", "-m", f"{_MODULE}{hydra.job.name}", *directories, *overrides])


def overrides_of(record: Mapping[str, Any]) -> list[str] | None:
    """Return the overrides of the command of a record, or None if it has none that `command_line` wrote.

    Args:
        record: content of `config.yaml`.
    """
    try:
        python, option, module, *rest = shlex.split(str(record.get(COMMAND)))
    except ValueError:
        return None
    if (python, option) != ("python", "-m") or not module.startswith(_MODULE):
        return None
    while rest[:1] == [_CONFIG_FOLDER]:
        rest = rest[2:]
    return rest


def _commit() -> str | None:
    """Return the commit of the checkout this code runs from, with `+` for uncommitted changes, or None."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
