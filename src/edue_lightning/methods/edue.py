"""EDUE: one network whose heads disagree where the raters disagree (Abutalip et al., arXiv 2403.16594)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from edue_lightning.data.sample import RaterBatch
from edue_lightning.losses import VarianceGuidance, mean_prediction_nll
from edue_lightning.methods.base import MethodParts, NetworkMethod
from edue_lightning.methods.targets import draw_raters, select_raters
from edue_lightning.networks import HeadLayout


class EDUE(NetworkMethod):
    """Expert disagreement-guided uncertainty estimation.

    The loss is `mean_m L_seg(p_m, y_r(m)) + lambda * L_dis(V, V*)`: each head learns from a rater drawn at
    random, and the variance between the heads is guided towards the variance between the raters. The paper's page
    prints no equation; this is our reading of its text, and every choice in it is an option.

    With `mean_weight` the mean of the heads is guided as well, by its likelihood under all raters: `+ mu *
    L_nll(mean_m p_m, q)`. The first two moments of the heads then follow the raters' own, so that a larger lambda does
    less harm to Dice and likelihood. This term is ours, not the paper's.

    Args:
        parts: see `MethodParts`.
        heads: heads of the network, at least two in all.
        guidance: the term `lambda * L_dis`.
        rater_draw: `per_head` draws a rater for each head, `shared` one for all heads, anew for each case and
            epoch.
        mean_weight: mu, see `mean_prediction_nll`; 0 for the paper's loss.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(
        self,
        parts: MethodParts,
        heads: HeadLayout,
        guidance: VarianceGuidance,
        rater_draw: Literal["per_head", "shared"] = "per_head",
        mean_weight: float = 0.0,
    ) -> None:
        super().__init__(parts, heads)
        if not 0 <= mean_weight < math.inf:
            raise ValueError(f"mean_weight must be finite and not negative: {mean_weight}")
        self.guidance = guidance
        self.first_epochs = guidance.ramp_up_epochs if guidance.weight else 0
        self.rater_draw = rater_draw
        self.mean_weight = mean_weight

    @property
    def label(self) -> str:
        """`edue` if the variance is guided, `edue_mean` the mean, `edue_moments` both, `edue_unguided` neither."""
        if self.mean_weight:
            return "edue_moments" if self.guidance.weight else "edue_mean"
        return "edue" if self.guidance.weight else "edue_unguided"

    def head_targets(self, batch: RaterBatch, members: int) -> Tensor:
        """Return each head's drawn mask, `[B, M, K, *S]`."""
        draws = members if self.rater_draw == "per_head" else 1
        raters = draw_raters(batch.valid, batch.draw_key, draws).expand(-1, members)
        return select_raters(batch.masks, raters)

    def training_loss(self, batch: RaterBatch) -> dict[str, Tensor]:
        """Return `loss`, `segmentation` (mean over heads), and if used, unweighted, `guidance` and `mean`."""
        logits = self(batch.image)
        segmentation = self.member_losses(logits, self.head_targets(batch, logits.shape[1]), batch).mean()
        parts = {"loss": segmentation, "segmentation": segmentation}
        if self.guidance.weight:
            parts["guidance"] = self.guidance(self.readout.log_odds(logits), batch.masks, batch.valid, batch.region)
            parts["loss"] = parts["loss"] + self.guidance.current_weight(self.current_epoch) * parts["guidance"]
        if self.mean_weight:
            nll = mean_prediction_nll(logits, batch.masks, batch.valid, batch.region, self.exclusive)
            parts["mean"] = nll.mean()
            parts["loss"] = parts["loss"] + self.mean_weight * parts["mean"]
        return parts
