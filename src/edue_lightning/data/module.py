"""The LightningDataModule of all data sets: a source's cases, split, cached, augmented and batched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytorch_lightning as pl
import torch
from monai.transforms import Compose
from torch.utils.data import DataLoader

from edue_lightning.data.augmentation import Augmentation
from edue_lightning.data.exclusive import shared_voxels
from edue_lightning.data.file_source import MOST_PROBLEMS_LISTED, FileSource
from edue_lightning.data.loading import (
    CaseDataset,
    CaseSampler,
    KeyedSample,
    ResumableLoader,
    collate,
    ignore_stop_signals,
    load_case,
)
from edue_lightning.data.patches import PatchSampling, default_patch_size
from edue_lightning.data.sample import RaterBatch, RaterSample
from edue_lightning.data.source import CaseRecord, CaseSource, Split, Subset
from edue_lightning.data.splits import Fold, SplitFractions, fold_cases, split_cases
from edue_lightning.data.votes import CAVEAT
from edue_lightning.errors import UserError
from edue_lightning.text import NO_FILE_NAME, ambiguous_structures, can_be_in_file_name, counted, one_line, times

log = logging.getLogger(__name__)

RESERVED_STRUCTURE = "mean"
"""Name that no structure can have: tables use it for the mean over structures."""


class RaterDataModule(pl.LightningDataModule):
    """Batches of multi-rater cases.

    Args:
        name: name of the data set in every table.
        source: collection of the cases.
        fractions: shares of the splits, for cases without a prescribed split.
        augmentation: random changes to training cases, or None.
        patch: choice of a patch per training case and step; None for the whole case, or, if the images differ in size
            and a batch holds several, for patches of `default_patch_size`. Evaluation always sees the whole.
        batch_size: cases (or patches) per training batch and device.
        eval_batch_size: cases per validation or test batch; 1 is used where the cases differ in size.
        num_workers: number of loader processes; the batches do not depend on it.
        cache_cases: largest number of samples kept in memory, per split.
        seed: seed of the order of the training cases and of their augmentation.
        note: caveat to show with every result on this data set, or None; that on votes is added by itself.
        training_raters: positions on the rater axis, from 0, of the raters that training and validation see; None for
            all. In batches of these two splits the rater axis holds only them, in ascending order. The splits do not
            depend on it, and test always sees every rater.
        train_draw: `one_per_unit` to train on one case per unit and epoch, such as a slice per nodule, drawn anew in
            each epoch, so that large ones do not fill an epoch; None for all cases. See `CaseRecord.unit`.
        folds: number of folds of a cross-validation, or None for the single division of `fractions`.
        fold: position of the fold whose cases are tested, from 0; needed with `folds`.

    Raises:
        UserError: if a setting is invalid or does not fit the images.
    """

    def __init__(
        self,
        name: str,
        source: CaseSource,
        fractions: SplitFractions | None = None,
        augmentation: Augmentation | None = None,
        patch: PatchSampling | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        cache_cases: int = 5000,
        seed: int = 0,
        note: str | None = None,
        training_raters: Sequence[int] | None = None,
        folds: int | None = None,
        fold: int | None = None,
        train_draw: Literal["one_per_unit"] | None = None,
    ) -> None:
        super().__init__()
        counts = {"batch_size": (batch_size, 1), "eval_batch_size": (eval_batch_size, 1)}
        counts |= {"num_workers": (num_workers, 0), "cache_cases": (cache_cases, 0), "seed": (seed, 0)}
        for setting, (value, least) in counts.items():
            if value < least:
                raise UserError(f"data.{setting} must be at least {least}, not {value}")
        if RESERVED_STRUCTURE in source.structures:
            raise UserError(
                f"structure {RESERVED_STRUCTURE!r}: tables use this name for the mean over structures; "
                "rename the structure"
            )
        for structure in source.structures:
            if "/" in structure:
                raise UserError(
                    f"structure {structure!r}: must not contain '/', as files are named after it; rename the structure"
                )
        if ambiguous := ambiguous_structures(source.structures):
            raise UserError(
                f"structures {ambiguous[0]!r} and {ambiguous[1]!r}: files of two cases could have one name; rename the "
                "first"
            )
        self.name: str = name
        self.source = source
        self.augmentation = augmentation
        self.patch = _patch_for(source, patch, batch_size)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.cache_cases = cache_cases
        self.order_seed = seed
        if source.exclusive and source.votes:
            raise UserError(
                "data.source.exclusive=true: votes do not say which rater gave a voxel to which structure; set "
                "data.source.exclusive=false"
            )
        if source.votes:
            if training_raters is not None:
                raise UserError(
                    f"data.training_raters={list(training_raters)}: who gave which vote is unknown in this data set, "
                    "so no rater can be held out; set null"
                )
            note = CAVEAT if note is None else f"{note}; {CAVEAT}"
        self.note = note
        self.training_raters = None if training_raters is None else _checked_positions(training_raters)
        cases = list(source.cases())
        _require_names(cases, name)
        if self.patch is not None and self.patch.size is not None and len(self.patch.size) != source.spatial_dims:
            raise UserError(f"data.patch.size={list(self.patch.size)}: the images are {source.spatial_dims}D")
        self.splits: dict[Subset, list[CaseRecord]] = {"all": cases}
        if train_draw not in (None, "one_per_unit"):
            raise UserError(f"data.train_draw={train_draw}: must be one_per_unit, or null for all cases")
        if train_draw is not None and not any(case.unit for case in cases):
            raise UserError(
                f"data.train_draw={train_draw}: no case of data={name} says to which unit it belongs; set null"
            )
        self.train_draw = train_draw
        self.fold = _checked_fold(folds, fold)
        for split, members in _divided(cases, fractions or SplitFractions(), self.fold, source.official_splits).items():
            self.splits[split] = members
        self._datasets: dict[Subset, CaseDataset] = {}
        self._rated: set[Subset] = set()
        self._train_loader: ResumableLoader | None = None
        self._place: dict[str, int] | None = None

    def require(self, *splits: Subset) -> None:
        """Check that each of the splits has a case, and that the training cases can be batched.

        With `training_raters`, each case of training and validation is loaded once to check that one of them outlined
        it; and so is each case of a source without files whose structures exclude each other.

        Raises:
            UserError: if a split is empty, naming it, if none of `training_raters` outlined a case, or if a rater gave
                a voxel to two structures that exclude each other.
        """
        empty = [split for split in splits if not self.splits[split]]
        if empty:
            cases = self.splits["all"]
            if self.fold is None and all(case.split is not None for case in cases):
                raise UserError(
                    f"data={self.name}: no case is left for {', '.join(empty)}, as all {len(cases)} cases have another "
                    "split; write this one for some patients, or leave training cases without one to draw from them"
                )
            raise UserError(
                f"data={self.name}: no case is left for {', '.join(empty)}: {len(cases)} cases of "
                f"{len({case.group for case in cases})} patients; add cases or "
                + ("change data.fractions" if self.fold is None else "use fewer folds (data.folds)")
            )
        if "train" in splits and self.source.mixed_sizes and self.patch is None and self.batch_size > 1:
            raise UserError(
                f"data={self.name}: the images differ in size and cannot be stacked whole; train on patches with "
                "data.patch.size=[ROWS,COLUMNS] (three numbers for volumes), or with data.batch_size=1"
            )
        for split in splits:
            if split not in self._rated:
                self._require_exclusive(split)
                self._require_raters(split)
                self._rated.add(split)

    def records(self, split: Subset) -> list[CaseRecord]:
        """Return the cases of a split in the order of `RaterBatch.case_index`.

        Raises:
            UserError: if the split is empty.
        """
        self.require(split)
        return self.splits[split]

    def dataset(self, split: Subset) -> CaseDataset:
        """Return the cases of a split; the first call loads the cached ones. Training cases are cut and augmented."""
        if split not in self._datasets:
            transform = None
            if split == "train" and self.augmentation is not None:
                transform = self.augmentation.transform(self.source.spatial_dims)
            patch = self.patch if split == "train" else None
            self._datasets[split] = self._cases(split, self.cache_cases, transform, patch)
        return self._datasets[split]

    def most_raters(self, split: Subset) -> int:
        """Return the largest number of raters who outlined a case of a split, of those that the split sees.

        It loads each case once.
        """
        return max(int(self.sample(split, index).valid.sum()) for index in range(len(self.records(split))))

    def raters_seen(self, split: Subset) -> tuple[int, ...] | None:
        """Return the positions of the raters in a split's batches, or None for all raters."""
        return self.training_raters if split in ("train", "val") else None

    def sample(self, split: Subset, index: int) -> RaterSample:
        """Load one case with the raters that its split sees, not augmented and not cached."""
        return load_case(self.source, self.splits[split][index].case_id, self.raters_seen(split))

    def set_order_seed(self, seed: int) -> None:
        """Set the seed of order and augmentation of the training cases from now on (one per ensemble member)."""
        self.order_seed = seed
        if "train" in self._datasets:
            self._datasets["train"].seed = seed

    def train_dataloader(self) -> DataLoader[KeyedSample]:
        """Return a loader of the training cases, in a new order each epoch."""
        self._train_loader = self._loader(
            self.dataset("train"), self.batch_size, shuffle=True, units=self._units("train")
        )
        if self._place is not None:
            self._train_loader.load_state_dict(self._place)
            self._place = None
        return self._train_loader

    def training_batches(self) -> int:
        """Return the number of batches of an epoch, over all processes of a distributed training."""
        draws = 1 if self.patch is None else self.patch.per_case
        cases, units = len(self.records("train")), self._units("train")
        return -(-(cases if units is None else len(set(units))) * draws // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Return the position within the epoch's order of training cases (for the trainer's checkpoints)."""
        if self._train_loader is None:
            return {}
        state = self._train_loader.state_dict()
        if self.trainer is None:
            return state
        # an epoch may end before its last batch, by trainer.limit_train_batches
        return {"batches": state["batches"] % int(self.trainer.num_training_batches)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next training at that position."""
        # the trainer makes its loader before it restores the loader's own state
        self._place = state_dict or None

    def val_dataloader(self) -> DataLoader[KeyedSample]:
        """Return a loader of the validation cases in their order."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[KeyedSample]:
        """Return a loader of the test cases in their order."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: Subset) -> DataLoader[KeyedSample]:
        """Return a loader of a split's cases in their order, each once and whole, not augmented."""
        # training cases are evaluated once at most: not worth a cache
        dataset = self._cases(split, cache=0) if split == "train" else self.dataset(split)
        return self._loader(dataset, 1 if self.source.mixed_sizes else self.eval_batch_size, shuffle=False)

    def single_batch(self, split: Subset, index: int) -> RaterBatch:
        """Return one `sample` as a batch of one case."""
        return collate([KeyedSample(self.sample(split, index), index, draw_key=0)])

    def _require_exclusive(self, split: Subset) -> None:
        """Check the masks of structures that exclude each other; a data set in files has checked them already."""
        if not self.source.exclusive or isinstance(self.source, FileSource):
            return
        for record in self.splits[split]:
            shared = shared_voxels(self.source.load(record.case_id))
            if shared:
                first, second = (self.source.structures[position] for position in shared[0].structures)
                raise UserError(
                    f"case {record.case_id!r}: rater {shared[0].rater + 1} gave {shared[0].voxels} voxels both to "
                    f"{first} and to {second}, but the structures of this source exclude each other; correct the masks"
                )

    def _require_raters(self, split: Subset) -> None:
        seen = self.raters_seen(split)
        if seen is None:
            return
        most, unrated = 0, []
        for record in self.splits[split]:
            sample = self.source.load(record.case_id)
            most = max(most, len(sample.valid))
            if not sample.of_raters(seen).valid.any():
                unrated.append(record.case_id)
        if seen[-1] >= most:
            raise UserError(
                f"data.training_raters={list(seen)}: rater {seen[-1]} does not exist, positions: 0 to {most - 1}"
            )
        if unrated:
            raise UserError(
                f"data.training_raters={list(seen)}: none of these raters outlined {len(unrated)} of "
                f"{len(self.splits[split])} cases for {split}, such as {unrated[0]}; add raters until every case has "
                "one, or leave those cases out of the data"
            )

    def _cases(
        self, split: Subset, cache: int, transform: Compose | None = None, patch: PatchSampling | None = None
    ) -> CaseDataset:
        ids = [record.case_id for record in self.records(split)]
        return CaseDataset(self.source, ids, self.order_seed, cache, transform, patch, self.raters_seen(split))

    def _units(self, split: Subset) -> list[str] | None:
        """Return the unit of each case of a split, or None if every case is drawn."""
        if self.train_draw is None:
            return None
        return [f"{record.group}\n{record.unit or record.case_id}" for record in self.records(split)]

    def _loader(
        self, dataset: CaseDataset, batch_size: int, shuffle: bool, units: Sequence[str] | None = None
    ) -> ResumableLoader:
        draws = self.patch.per_case if shuffle and self.patch is not None else 1
        return ResumableLoader(
            dataset,
            batch_size=batch_size,
            sampler=CaseSampler(len(dataset), self.order_seed, shuffle, draws, units),
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=ignore_stop_signals,
            persistent_workers=self.num_workers > 0,
            # the loader must not draw from the global random state, which a resumed training restores
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
        )


def _require_names(cases: Sequence[CaseRecord], name: str) -> None:
    """Check that the name of every case can be that of a file.

    Raises:
        UserError: with one line per case whose name cannot.
    """
    lines = [
        one_line(f"case {case.case_id!r}: {NO_FILE_NAME}") for case in cases if not can_be_in_file_name(case.case_id)
    ]
    if lines:
        raise UserError("\n".join([f"data={name}: {counted(len(lines), 'problem')}:", *lines[:MOST_PROBLEMS_LISTED]]))


def _patch_for(source: CaseSource, patch: PatchSampling | None, batch_size: int) -> PatchSampling | None:
    """Return the configured patches; for images that differ in size, patches of a size that fits them all."""
    if patch is not None and patch.size is not None:
        return patch
    if not source.mixed_sizes or source.smallest_shape is None or batch_size == 1:
        if patch is not None and patch.per_case > 1:
            log.warning(
                "whole images are seen once per epoch, so data.patch.per_case=%d has no effect; "
                "set data.patch.size for patches",
                patch.per_case,
            )
        return None
    size = default_patch_size(source.smallest_shape)
    log.warning(
        "the images differ in size: training uses patches of %s; choose another size with data.patch.size=[%s], or "
        "data.batch_size=1 for whole images",
        times(size),
        ",".join(map(str, size)),
    )
    return replace(patch or PatchSampling(), size=size)


def _checked_fold(folds: int | None, fold: int | None) -> Fold | None:
    """Return the fold to test, None without folds.

    Raises:
        UserError: if only one of the two is set, or one is out of range.
    """
    if folds is None and fold is None:
        return None
    if folds is None or fold is None:
        raise UserError(
            f"data.folds={_shown(folds)} and data.fold={_shown(fold)}: set both, such as data.folds=5 data.fold=0, or "
            "neither"
        )
    return Fold(folds, fold)


def _shown(number: int | None) -> str:
    return "null" if number is None else str(number)


def _divided(
    cases: Sequence[CaseRecord], fractions: SplitFractions, fold: Fold | None, official: bool
) -> dict[Split, list[CaseRecord]]:
    return split_cases(cases, fractions, official) if fold is None else fold_cases(cases, fractions, fold)


def _checked_positions(raters: Sequence[int]) -> tuple[int, ...]:
    """Check positions on the rater axis and return them in ascending order.

    Raises:
        UserError: if the list is empty, or a position is negative or repeated.
    """
    if not raters or len(set(raters)) < len(raters) or min(raters) < 0:
        raise UserError(
            f"data.training_raters={list(raters)}: give at least one position on the rater axis, from 0, each once, or "
            "null for all raters"
        )
    return tuple(sorted(raters))
