"""Weights of an earlier training, from which a new one begins."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edue_lightning.config.build import differing_preparation
from edue_lightning.data import RaterDataModule
from edue_lightning.data.identity import TrainingCases
from edue_lightning.errors import UserError
from edue_lightning.evaluation.unseen import same_place, seen_cases
from edue_lightning.methods import SegmentationMethod
from edue_lightning.runs.checkpoints import all_training_cases, configuration_of, read_checkpoint
from edue_lightning.text import named

log = logging.getLogger(__name__)

# below this share of a network's weights, a checkpoint is that of another network
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a checkpoint that this package wrote.

    Attributes:
        path: path of the checkpoint.
        weights: its tensors by name.
        cases: cases that it was trained and validated on; None if they are unknown.
        data: node `data` of its configuration.
        digest: SHA-256 of the file, kept with the run.
    """

    path: Path
    weights: Mapping[str, Tensor]
    cases: TrainingCases | None
    data: Mapping[str, Any]
    digest: str

    @classmethod
    def read(cls, path: str) -> InitialWeights:
        """Read a checkpoint; nothing in it is executed.

        Raises:
            UserError: if it cannot be read, or holds one member of an ensemble.
        """
        file = Path(path)
        checkpoint = read_checkpoint(file)
        data = configuration_of(checkpoint, file).get("data") or {}
        try:
            cases = all_training_cases(checkpoint)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}") from error
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return cls(file, checkpoint["state_dict"], cases, data, digest)

    def load_into(self, method: SegmentationMethod) -> None:
        """Copy every tensor whose name and shape agree, and log which ones stay as they were drawn.

        Raises:
            UserError: if fewer than half of the method's weights agree.
        """
        own = method.state_dict()
        agreeing = {name: self.weights[name] for name in own if _same_shape(own[name], self.weights.get(name))}
        total = sum(value.numel() for value in own.values())
        share = sum(own[name].numel() for name in agreeing) / max(total, 1)
        others = [name for name in own if name not in agreeing]
        if share < _LEAST_SHARE:
            raise UserError(
                f"init={self.path}: only {share:.0%} of the weights of method and network have the same names and "
                f"shapes there (not {named(others)}); choose the method and network of that training"
            )
        method.load_state_dict({**own, **agreeing})
        drawn = f"; drawn anew, since missing there or of another shape: {named(others)}" if others else ""
        log.info("init=%s: %.1f %% of the weights are taken from it%s", self.path, 100 * share, drawn)

    def check_cases(self, data: RaterDataModule, cases: TrainingCases, node: Mapping[str, Any]) -> None:
        """Check that its training cases are not in this validation, nor its training or validation cases in this test.

        Args:
            data: data of the new training.
            cases: its training and validation cases.
            node: node `data` of the new training's configuration.

        Raises:
            UserError: naming some of the cases.
        """
        same_data = same_place(node, self.data)
        fix = "keep the splits of that training (data.fractions, data.folds), or begin from other weights"
        # the validation cases are known already
        seen = seen_cases(self.cases, data, same_data, "val", self.path, cases["val"])
        seen = seen or seen_cases(self.cases, data, same_data, "test", self.path)
        if seen:
            raise UserError(f"{seen}; {fix}")
        try:
            differing = differing_preparation(node, self.data)
        # settings of another program or version raise errors of any type
        except Exception:
            return
        if differing:
            log.warning(
                "init=%s: was trained on images that were prepared in another way (%s)",
                self.path,
                ", ".join(f"{name}={before}, now {now}" for name, (before, now) in differing.items()),
            )


def _same_shape(own: Tensor, other: Tensor | None) -> bool:
    return isinstance(other, Tensor) and own.shape == other.shape
