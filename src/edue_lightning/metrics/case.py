"""One case as it is passed to a metric of your own."""

from __future__ import annotations

from torch import Tensor

from edue_lightning.metrics.case_batch import CaseBatch
from edue_lightning.metrics.settings import MetricSettings
from edue_lightning.uncertainty import PairOverlap, Readout


class Case:
    """The prediction and the raters' masks of one case, with its V voxels in a row, in float64.

    Where the case has a region, V counts the voxels within it alone. Maps are computed on first use, for all cases of
    its batch.

    Args:
        batch: cases that are measured together.
        position: position of this case among them.
    """

    def __init__(self, batch: CaseBatch, position: int) -> None:
        self._batch = batch
        self._position = position

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the K structures."""
        return self._batch.structures

    @property
    def settings(self) -> MetricSettings:
        """Choices in the metrics' definitions."""
        return self._batch.settings

    @property
    def readout(self) -> Readout:
        """How the maps are read from the members."""
        return self._batch.readout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image, `*S`."""
        return self._batch.shape

    @property
    def spacing(self) -> Tensor:
        """Size of a voxel along each axis, mm, `[n]`; 1 where it is unknown."""
        return self._batch.spacing[self._position]

    @property
    def voxel_size(self) -> float:
        """Size of a voxel, mm² or mm³."""
        return float(self._batch.voxel_size[self._position])

    @property
    def n_members(self) -> int:
        """Number of members, M."""
        return self._batch.n_members

    @property
    def n_raters(self) -> int:
        """Number of valid raters."""
        return self._batch.n_raters

    @property
    def masks(self) -> Tensor:
        """Masks of the valid raters, `[R, K, V]` bool."""
        return self._of_case(self._batch.masks)

    @property
    def channels(self) -> Tensor:
        """Probabilities of the members and of the prediction's own maps, see `Readout`, `[M + n, K, V]`."""
        return self._of_case(self._batch.channels)

    @property
    def probabilities(self) -> Tensor:
        """Member probabilities, `[M, K, V]`."""
        return self._of_case(self._batch.probabilities)

    @property
    def mean(self) -> Tensor:
        """Probability p, the mean of the members unless the prediction has its own, `[K, V]`."""
        return self._of_case(self._batch.mean)

    @property
    def has_disagreement(self) -> bool:
        """Whether V is defined: a single opinion has no variance."""
        return self._batch.has_disagreement

    @property
    def disagreement(self) -> Tensor:
        """Disagreement V, `[K, V]`; 0 where it is undefined, or rounding explains all of a structure's V."""
        return self._of_case(self._batch.disagreement)

    @property
    def total(self) -> Tensor:
        """p (1 - p), `[K, V]`."""
        return self._of_case(self._batch.total)

    @property
    def decision(self) -> Tensor:
        """Map that the mask is taken from, p unless the read-out has another, `[K, V]`."""
        return self._of_case(self._batch.decision)

    @property
    def predicted(self) -> Tensor:
        """Predicted mask, `[K, V]` bool."""
        return self._of_case(self._batch.predicted)

    @property
    def log_mean(self) -> tuple[Tensor, Tensor]:
        """Log p and log (1 - p), each `[K, V]` and finite for every finite logit."""
        log_p, log_not_p = self._batch.log_mean
        return self._of_case(log_p), self._of_case(log_not_p)

    @property
    def mean_log(self) -> tuple[Tensor, Tensor]:
        """Mean over members of log p and of log (1 - p), each `[K, V]`."""
        log_p, log_not_p = self._batch.mean_log
        return self._of_case(log_p), self._of_case(log_not_p)

    @property
    def marked(self) -> Tensor:
        """Number of raters who marked each voxel, `[K, V]`."""
        return self._of_case(self._batch.marked)

    @property
    def share(self) -> Tensor:
        """Share q of the raters who marked each voxel, `[K, V]`; a tie is exactly 0.5."""
        return self._of_case(self._batch.share)

    @property
    def expert(self) -> Tensor:
        """Variance V* = q (1 - q) between the raters, `[K, V]`."""
        return self._of_case(self._batch.expert)

    @property
    def consensus(self) -> Tensor:
        """Soft-majority mask, q >= 0.5 (or > 0.5, see `MetricSettings`), or `plurality`, `[K, V]` bool."""
        return self._of_case(self._batch.consensus)

    def share_reached(self, share: float) -> Tensor:
        """Return the mask of the voxels that at least a share of the raters is expected to mark, `[K, V]`."""
        return self._of_case(self._batch.share_reached(share))

    @property
    def overlap(self) -> PairOverlap:
        """Overlap of the masks: predicted, consensus, the M members', the R raters', `[K, 2 + M + R, 2 + M + R]`."""
        return PairOverlap(self._of_case(self._batch.overlap.intersection))

    @property
    def of_members(self) -> slice:
        """Positions of the members' masks in `overlap`."""
        return self._batch.of_members

    @property
    def of_raters(self) -> slice:
        """Positions of the raters' masks in `overlap`."""
        return self._batch.of_raters

    def on_grid(self, values: Tensor) -> Tensor:
        """Return values `[K, V]` on the image's grid, `[K, *S]`; zero outside of the region."""
        return self._batch.on_grid(values[None], slice(self._position, self._position + 1))[0]

    def _of_case(self, values: Tensor) -> Tensor:
        return values[self._position]
