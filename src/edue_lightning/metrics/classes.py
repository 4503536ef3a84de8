"""One `torchmetrics` class a metric, each with its functional twin.

All classes take the same arguments and get the same batches:

    metric = Dice(structures=("disc", "cup"))
    metric.update(members, masks, valid)    # [B, M, K, *S], [B, R, K, *S] in {0, 1}, [B, R] bool
    metric.compute()                        # [K] float64, a scalar for K = 1; NaN where undefined

Their state is a row of numbers a case, so the result depends neither on the batches nor on the number of processes, and
memory not on the number of voxels. A functional twin takes all cases at once: `dice(members, masks, valid)`. For
intervals, or many metrics over one pass, see `CaseTable` and `summarise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from edue_lightning.metrics.case_statistics import BINS, CaseStatistics
from edue_lightning.metrics.case_table import CaseTable
from edue_lightning.metrics.settings import Members, MetricSettings
from edue_lightning.metrics.summary import quality_control_curves, summarise


class _OfCases(CaseTable):
    """Names its structures by number if need be."""

    metric: ClassVar[str]

    def __init__(
        self,
        structures: int | Sequence[str] = 1,
        settings: MetricSettings | None = None,
        contents: Members = "logits",
    ) -> None:
        names = [str(k) for k in range(structures)] if isinstance(structures, int) else structures
        super().__init__(names, [self.metric], settings, contents)

    def _statistics(self) -> CaseStatistics:
        return self._read(CaseTable.compute(self)).statistics


class _OneMetric(_OfCases):
    """One metric of `METRICS` alone; subclasses name it and give its range, direction and source."""

    def compute(self) -> Tensor:
        """Return the metric of each structure, `[K]` float64 (a scalar for K = 1); NaN where it is undefined."""
        summary = summarise(self._statistics(), self.structures, metrics=[self.metric], settings=self.settings)
        values = {row.structure: row.value for row in summary.rows}
        result = torch.tensor([values[structure] for structure in self.structures], dtype=torch.float64)
        return result if len(result) > 1 else result[0]


class Dice(_OneMetric):
    """Dice of the mean prediction (p >= 0.5) and the soft-majority mask (q >= 0.5), mean over cases.

    In [0, 1], higher is better. A case in which both masks are empty scores 1, one in which one of them is 0.

    >>> metric = Dice()
    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 1, 2, 2)
    >>> metric.update(logits, masks, torch.ones(1, 1, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.6667, dtype=torch.float64)
    """

    metric = "dice"


class DicePerRater(_OneMetric):
    """Dice of the mean prediction and each rater's mask, mean over the raters and then over cases.

    In [0, 1], higher is better; at best what one mask can have with raters who disagree. Empty masks as in `Dice`.

    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> dice_per_rater(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.8333, dtype=torch.float64)
    """

    metric = "dice_per_rater"


class DSoft(_OneMetric):
    """Soft multi-rater Dice: Dice of (p >= t) and (q >= t), mean over t = 0.1, 0.3, 0.5, 0.7, 0.9 and then cases.

    In [0, 1], higher is better (Ji et al., CVPR 2021). Two empty masks score 1.

    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> d_soft(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.8667, dtype=torch.float64)
    """

    metric = "d_soft"


class HausdorffDistance95(_OneMetric):
    """95th percentile of the distances between the surfaces of the masks of `Dice`, the larger of both directions.

    In [0, inf) mm (pixels where the spacing is 1), lower is better; by MONAI. A case with an empty mask defines none.

    >>> logits = torch.tensor([4.0, 4.0, 4.0, -4.0]).reshape(1, 1, 1, 1, 4)
    >>> masks = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 1, 1, 4)
    >>> hausdorff_distance_95(logits, masks, torch.ones(1, 1, dtype=torch.bool))
    tensor(1.9000, dtype=torch.float64)
    """

    metric = "hd95"


class NormalisedSurfaceDice(_OneMetric):
    """Share of the surfaces of the masks of `Dice` within a tolerance of each other, mean over cases.

    In [0, 1], higher is better (Nikolov et al. 2018); by MONAI. The tolerance is `MetricSettings.surface_tolerance`.
    Two empty masks score 1, one empty mask 0.

    >>> logits = torch.tensor([4.0, 4.0, 4.0, -4.0]).reshape(1, 1, 1, 1, 4)
    >>> masks = torch.tensor([1, 0, 0, 0], dtype=torch.uint8).reshape(1, 1, 1, 1, 4)
    >>> normalised_surface_dice(logits, masks, torch.ones(1, 1, dtype=torch.bool))
    tensor(0.7500, dtype=torch.float64)
    """

    metric = "nsd"


class NegativeLogLikelihood(_OneMetric):
    """Cross-entropy of the mean prediction in nats, mean over voxels, raters and then cases.

    In [0, inf), lower is better; at best the entropy of the raters' own labels. Computed from logits, so that a sure
    prediction gives a large finite value, never infinity.

    >>> metric = NegativeLogLikelihood()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.6931, dtype=torch.float64)
    """

    metric = "nll"


class BrierScore(_OneMetric):
    """Squared error of the mean prediction against every rater's label, mean over voxels, raters and then cases.

    In [0, 1], lower is better (Brier 1950).

    >>> metric = BrierScore()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.2500, dtype=torch.float64)
    """

    metric = "brier"


class BrierCalibration(_OneMetric):
    """Calibration part of the Brier score over the 15 bins of `ExpectedCalibrationError` (Murphy 1973).

    In [0, 1], lower is better: the squared gap of a bin, mean over all voxel-rater pairs of all cases.

    >>> brier_calibration(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.2500, dtype=torch.float64)
    """

    metric = "brier_calibration"


class BrierRefinement(_OneMetric):
    """Refinement part of the Brier score over the 15 bins of `ExpectedCalibrationError` (Murphy 1973).

    In [0, 0.25], lower is better: share (1 - share) of a bin's marked pairs, mean over all pairs of all cases. With
    `BrierCalibration` it adds up to the Brier score of the bins' mean probabilities.

    >>> brier_refinement(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    tensor(0., dtype=torch.float64)
    """

    metric = "brier_refinement"


class ExpectedCalibrationError(_OneMetric):
    """Mean gap between predicted probability and the share of raters who marked, in 15 bins (Naeini et al. 2015).

    In [0, 1], lower is better. Binned by foreground probability against every rater's label, over all voxels of all
    cases; bin sums are kept, never the voxels.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    metric = "ece"


class AverageCalibrationError(_OneMetric):
    """ACE: the gaps of `ExpectedCalibrationError`, mean over the bins that hold a pair (Neumann et al. 2018).

    In [0, 1], lower is better. Sparse bins count as much as full ones, so background does not drown the edge.

    >>> logits = torch.tensor([0.0, 9.0, 9.0, 9.0]).reshape(1, 1, 1, 2, 2)
    >>> average_calibration_error(logits, torch.ones(1, 3, 1, 2, 2), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.2501, dtype=torch.float64)
    """

    metric = "ace"


class MaximumCalibrationError(_OneMetric):
    """MCE: the largest of the gaps of `ExpectedCalibrationError` (Naeini et al. 2015).

    In [0, 1], lower is better. One pair in an otherwise empty bin can set it.

    >>> logits = torch.tensor([0.0, 9.0, 9.0, 9.0]).reshape(1, 1, 1, 2, 2)
    >>> maximum_calibration_error(logits, torch.ones(1, 3, 1, 2, 2), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.5000, dtype=torch.float64)
    """

    metric = "mce"


class AdaptiveCalibrationError(_OneMetric):
    """Calibration error over 15 ranges of equally many voxels, mean over cases (ACE of Nixon et al. 2019).

    In [0, 1], lower is better; see `adaptive_calibration_error` of `edue_lightning.metrics.calibration`.

    >>> adaptive_ece(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    tensor(0.5000, dtype=torch.float64)
    """

    metric = "adaptive_ece"


class GeneralisedEnergyDistance(_OneMetric):
    """GED²: `2 E d(s, y) - E d(s, s') - E d(y, y')` of members s and raters y over all pairs, mean over cases.

    In [0, 2], lower is better; d = 1 - IoU, or 1 - Dice by `MetricSettings.ged_distance`. Two empty masks have d = 0,
    one empty mask has d = 1 (Kohl et al. 2018; Baumgartner et al. 2019).

    >>> logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).reshape(1, 1, 1, 2, 2)
    >>> masks = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 2, 2)
    >>> generalised_energy_distance(logits, masks, torch.ones(1, 2, dtype=torch.bool))
    tensor(0.2500, dtype=torch.float64)
    """

    metric = "ged2"


class VolumeCRPS(_OneMetric):
    """CRPS of the predicted volume (summed mean probability) under a Gaussian fitted to the raters', mean over cases.

    In [0, inf) mm² or mm³, lower is better (CURVAS, arXiv 2505.08685). Where the raters agree in volume, or there is
    one, the distance to it.

    >>> volume_crps(torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 2, 1, 2, 2), torch.ones(1, 2, dtype=torch.bool))
    tensor(2., dtype=torch.float64)
    """

    metric = "volume_crps"


class LayerAgreement(_OneMetric):
    """Dice between the masks of neighbouring members, mean over neighbours and then cases (Kushibar et al. 2022).

    In [0, 1]; agreement, neither good nor bad by itself. Undefined (NaN) for a single member.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> layer_agreement(logits, torch.ones(1, 1, 1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.6667, dtype=torch.float64)
    """

    metric = "layer_agreement"


class AreaUnderLayerAgreement(_OneMetric):
    """AULA: trapezoidal area under the layer agreement over depth, mean over cases (Kushibar et al. 2022).

    In [0, M - 2], not divided by its length. Undefined (NaN) for fewer than three members.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 3, 1, 1, 3)
    >>> aula(logits, torch.ones(1, 1, 1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.8333, dtype=torch.float64)
    """

    metric = "aula"


class ModelAgreement(_OneMetric):
    """Dice between the masks of every two members, mean over pairs and then cases (Kushibar et al. 2022).

    In [0, 1]; agreement, neither good nor bad by itself. Undefined (NaN) for a single member.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> model_agreement(logits, torch.ones(1, 1, 1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.6667, dtype=torch.float64)
    """

    metric = "model_agreement"


class ImagePearson(_OneMetric):
    """Pearson's correlation over cases of SV, the sum of the variance between members, with the raters' SV*.

    In [-1, 1], higher is better. NaN for fewer than three cases with two raters, or a constant series.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> found = image_pearson(masks.double(), masks, torch.ones(3, 3, dtype=torch.bool), contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    metric = "image_pearson"


class ImageSpearman(_OneMetric):
    """Spearman's rank correlation over cases of SV with the raters' SV*; otherwise as `ImagePearson`.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> found = image_spearman(masks.double(), masks, torch.ones(3, 3, dtype=torch.bool), contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    metric = "image_spearman"


class NormalisedImagePearson(_OneMetric):
    """As `ImagePearson`, of scores by size: SV over the predicted area with SV* over that of the soft-majority mask.

    A large structure has more boundary, so more variance; this correlation owes less to size. Cases in which either
    mask is empty take no part.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> valid = torch.ones(3, 3, dtype=torch.bool)
    >>> found = image_pearson_normalised(masks.double(), masks, valid, contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    metric = "image_pearson_normalised"


class NormalisedImageSpearman(_OneMetric):
    """As `ImageSpearman`, of the scores by size of `NormalisedImagePearson`.

    >>> panel = torch.tensor([[[1, 1, 0]] * 3, [[1, 1, 0], [1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    >>> masks = panel.reshape(3, 3, 1, 1, 3)
    >>> valid = torch.ones(3, 3, dtype=torch.bool)
    >>> found = image_spearman_normalised(masks.double(), masks, valid, contents="probabilities")
    >>> found.round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    metric = "image_spearman_normalised"


class PixelPearson(_OneMetric):
    """Correlation over voxels of the variance between members with that between raters, mean over cases.

    In [-1, 1], higher is better. Cases in which either map is constant, or with fewer than two raters, take no part.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> masks = torch.tensor([[1, 0, 0], [1, 1, 0]]).reshape(1, 2, 1, 1, 3)
    >>> pixel_pearson(logits, masks, torch.ones(1, 2, dtype=torch.bool)).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    metric = "pixel_pearson"


class TotalPixelPearson(_OneMetric):
    """As `PixelPearson`, with p (1 - p) of the mean prediction in the place of the variance between members.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> masks = torch.tensor([[1, 0, 0], [1, 1, 0]]).reshape(1, 2, 1, 1, 3)
    >>> pixel_pearson_total(logits, masks, torch.ones(1, 2, dtype=torch.bool)).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    metric = "pixel_pearson_total"


class PixelSNCC(_OneMetric):
    """S_NCC of PHiSeg (Baumgartner et al. 2019): correlation of cross-entropy maps, rater by rater, mean over cases.

    In [-1, 1], higher is better; see `cross_entropy_correlation` of `edue_lightning.metrics.correlation`. Cases as in
    `PixelPearson`.

    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> masks = torch.tensor([[1, 0, 0], [1, 1, 0]]).reshape(1, 2, 1, 1, 3)
    >>> pixel_s_ncc(logits, masks, torch.ones(1, 2, dtype=torch.bool)).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    metric = "pixel_s_ncc"


class QualityControlArea(_OneMetric):
    """d-AUC: area between the quality-control curve of SV and its ideal line (the paper, Fig. 2).

    In [0, 0.25], lower is better. Cases are flagged from the largest SV on; y is the share of all cases that are poor
    (Dice below `MetricSettings.poor_dice`) and not yet flagged. NaN if no case or every case is poor. `d_auc_total` and
    others in `METRICS` flag by other scores.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> d_auc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(0.2222, dtype=torch.float64)
    """

    metric = "d_auc"


class RiskCoverageArea(_OneMetric):
    """AURC: mean over n of the mean risk, 1 - Dice, of the n cases with the smallest SV (Geifman et al. 2019).

    In [0, 1], lower is better; it holds the quality of the segmentations and that of their order.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> aurc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(0.3825, dtype=torch.float64)
    """

    metric = "aurc"


class ExcessRiskCoverageArea(_OneMetric):
    """E-AURC: `RiskCoverageArea` minus that of the best order, by the risk itself (Geifman et al. 2019).

    In [0, 1], lower is better.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> e_aurc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(0.2762, dtype=torch.float64)
    """

    metric = "e_aurc"


class NormalisedRiskCoverageArea(_OneMetric):
    """`ExcessRiskCoverageArea` as a share of that of an order without information (Zenk et al., arXiv 2406.03323).

    0 for the best order, 1 for one without information, above for a misleading one; lower is better. NaN if all cases
    have the same risk.

    >>> drawn = [[[1, 1, 1, 1]] * 2 + [[1, 1, 1, 0]], [[1, 1, 1, 0]] * 2 + [[1, 1, 0, 1]], [[1, 0, 0, 0]] * 3]
    >>> members = torch.tensor(drawn).double().reshape(3, 3, 1, 1, 4)
    >>> masks = torch.ones(3, 1, 1, 1, 4)  # so Dice is 1, 6/7 and 2/5, and the worst case has the smallest SV
    >>> normalised_aurc(members, masks, torch.ones(3, 1, dtype=torch.bool), contents="probabilities")
    tensor(1.9551, dtype=torch.float64)
    """

    metric = "normalised_aurc"


class ReliabilityCurve(_OfCases):
    """The bins behind `ExpectedCalibrationError`, to draw.

    >>> metric = ReliabilityCurve()
    >>> metric.update(torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), torch.ones(1, 3, dtype=torch.bool))
    >>> metric.compute()[0, 7]
    tensor([48.0000,  0.5000,  1.0000], dtype=torch.float64)
    """

    metric = "ece"

    def compute(self) -> Tensor:
        """Return for each bin the voxel-rater pairs, their mean probability and the share marked, `[K, 15, 3]`.

        Mean and share of an empty bin are NaN.
        """
        bins = self._statistics()[BINS].sum(dim=0)
        return torch.cat([bins[..., :1], bins[..., 1:] / bins[..., :1]], dim=-1)


class QualityControlCurve(_OfCases):
    """The curve behind `QualityControlArea`, to draw.

    >>> members = torch.tensor([[1.0, 1.0], [0.5, 0.75], [0.0, 0.25]]).reshape(3, 2, 1, 1, 1)
    >>> metric = QualityControlCurve(contents="probabilities")
    >>> metric.update(members, torch.ones(3, 1, 1, 1, 1), torch.ones(3, 1, dtype=torch.bool))
    >>> flagged, missed = metric.compute()[0]  # the second and the third case have the same SV, the third is poor
    >>> missed
    tensor([0.3333, 0.0000, 0.0000], dtype=torch.float64)
    """

    metric = "d_auc"

    def compute(self) -> list[tuple[Tensor, Tensor]]:  # type: ignore[override]
        """Return of each structure the fractions flagged and missed, over the cases that define SV and Dice."""
        curves = quality_control_curves(self._statistics(), self.structures, self.settings)
        return [(torch.from_numpy(curve.flagged), torch.from_numpy(curve.missed)) for curve in curves]


class Functional(Protocol):
    """A metric of all cases at once."""

    def __call__(
        self, members: Tensor, masks: Tensor, valid: Tensor, spacing: Tensor | None = None, **settings: Any
    ) -> Tensor:
        """Return what the class returns; `settings` are the class's own arguments."""
        ...


def _functional(metric_class: type[_OneMetric]) -> Functional:
    def functional(
        members: Tensor, masks: Tensor, valid: Tensor, spacing: Tensor | None = None, **settings: Any
    ) -> Tensor:
        metric = metric_class(**{"structures": members.shape[2], **settings})
        metric.update(members, masks, valid, spacing)
        return metric.compute()

    functional.__name__ = functional.__qualname__ = metric_class.metric
    functional.__doc__ = f"""Return `{metric_class.__name__}` of all cases at once.

    {(metric_class.__doc__ or "").partition(">>>")[0].strip()}

    Args:
        members: `[B, M, K, *S]` logits, or probabilities with `contents="probabilities"`.
        masks: `[B, R, K, *S]` in {{0, 1}}.
        valid: `[B, R]` bool, false for a rater without masks.
        spacing: `[B, n]`, mm along each spatial axis; None for 1.
        settings: the class's arguments.

    Returns:
        `[K]` float64, a scalar for K = 1.
    """
    return functional


dice = _functional(Dice)
dice_per_rater = _functional(DicePerRater)
d_soft = _functional(DSoft)
hausdorff_distance_95 = _functional(HausdorffDistance95)
normalised_surface_dice = _functional(NormalisedSurfaceDice)
negative_log_likelihood = _functional(NegativeLogLikelihood)
brier_score = _functional(BrierScore)
brier_calibration = _functional(BrierCalibration)
brier_refinement = _functional(BrierRefinement)
expected_calibration_error = _functional(ExpectedCalibrationError)
average_calibration_error = _functional(AverageCalibrationError)
maximum_calibration_error = _functional(MaximumCalibrationError)
adaptive_ece = _functional(AdaptiveCalibrationError)
generalised_energy_distance = _functional(GeneralisedEnergyDistance)
volume_crps = _functional(VolumeCRPS)
layer_agreement = _functional(LayerAgreement)
aula = _functional(AreaUnderLayerAgreement)
model_agreement = _functional(ModelAgreement)
image_pearson = _functional(ImagePearson)
image_spearman = _functional(ImageSpearman)
image_pearson_normalised = _functional(NormalisedImagePearson)
image_spearman_normalised = _functional(NormalisedImageSpearman)
pixel_pearson = _functional(PixelPearson)
pixel_pearson_total = _functional(TotalPixelPearson)
pixel_s_ncc = _functional(PixelSNCC)
d_auc = _functional(QualityControlArea)
aurc = _functional(RiskCoverageArea)
e_aurc = _functional(ExcessRiskCoverageArea)
normalised_aurc = _functional(NormalisedRiskCoverageArea)
