"""Agreement of the members' masks with each other; the formulas are in `edue_lightning.uncertainty`."""

from __future__ import annotations

from edue_lightning.metrics.definition import mean_over_cases
from edue_lightning.metrics.metric import CaseMetric, functional
from edue_lightning.metrics.scores import MODEL_SCORES


class LayerAgreement(CaseMetric):
    """Dice between the masks of neighbouring members, mean over neighbours and then cases (Kushibar et al. 2022).

    In [0, 1]; agreement, neither good nor bad by itself. Undefined (NaN) for a single member.

    >>> import torch
    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> layer_agreement(logits, torch.ones(1, 1, 1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.6667, dtype=torch.float64)
    """

    definition = mean_over_cases("layer_agreement", MODEL_SCORES, "neither")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


layer_agreement = functional(LayerAgreement)


class AreaUnderLayerAgreement(CaseMetric):
    """AULA: trapezoidal area under the layer agreement over depth, mean over cases (Kushibar et al. 2022).

    In [0, M - 2], not divided by its length. Undefined (NaN) for fewer than three members.

    >>> import torch
    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 3, 1, 1, 3)
    >>> aula(logits, torch.ones(1, 1, 1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.8333, dtype=torch.float64)
    """

    definition = mean_over_cases("aula", MODEL_SCORES, "neither")
    plot_lower_bound = 0.0


aula = functional(AreaUnderLayerAgreement)


class ModelAgreement(CaseMetric):
    """Dice between the masks of every two members, mean over pairs and then cases (Kushibar et al. 2022).

    In [0, 1]; agreement, neither good nor bad by itself. Undefined (NaN) for a single member.

    >>> import torch
    >>> logits = torch.tensor([[4.0, 4.0, -4.0], [4.0, -4.0, -4.0]]).reshape(1, 2, 1, 1, 3)
    >>> model_agreement(logits, torch.ones(1, 1, 1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    tensor(0.6667, dtype=torch.float64)
    """

    definition = mean_over_cases("model_agreement", MODEL_SCORES, "neither")
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0


model_agreement = functional(ModelAgreement)

METRICS = (LayerAgreement.definition, AreaUnderLayerAgreement.definition, ModelAgreement.definition)
