import pytest
import torch
from torch import Tensor

from edue_lightning.losses import mean_prediction_nll


def raters() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    valid = torch.tensor([[True, True, True], [True, False, True]])
    masks = torch.randint(0, 2, (2, 3, 2, 4, 4), generator=generator, dtype=torch.uint8)
    return masks * valid[:, :, None, None, None], valid


def test_it_is_the_mean_over_valid_raters_of_the_cross_entropy_of_the_mean_prediction() -> None:
    masks, valid = raters()
    logits = torch.randn(2, 5, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = mean_prediction_nll(logits, masks, valid)
    mean = torch.sigmoid(logits).mean(dim=1)
    for case in range(2):
        entropies = [
            torch.nn.functional.binary_cross_entropy(mean[case], masks[case, rater].double())
            for rater in range(3)
            if valid[case, rater]
        ]
        assert float(found[case]) == pytest.approx(float(sum(entropies)) / len(entropies))


def test_gradients_are_right_and_finite_for_large_logits() -> None:
    masks, valid = raters()
    logits = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mean_prediction_nll(x, masks, valid), logits.requires_grad_())
    far = torch.full((2, 3, 2, 4, 4), 300.0, requires_grad=True)
    loss = mean_prediction_nll(far, masks, valid).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()


def test_the_optimum_is_the_share_of_the_raters() -> None:
    masks, valid = raters()
    share = masks.double().sum(dim=1) / valid.sum(dim=1)[:, None, None, None]
    logits = torch.zeros(2, 1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mean_prediction_nll(logits, masks, valid).mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[arg-type]
    inner = (share > 0) & (share < 1)
    assert torch.sigmoid(logits[:, 0])[inner].detach().numpy() == pytest.approx(share[inner].numpy(), abs=1e-3)


def test_half_precision_is_widened() -> None:
    masks, valid = raters()
    logits = torch.randn(2, 3, 2, 4, 4).to(torch.bfloat16)
    found = mean_prediction_nll(logits, masks, valid)
    assert found.dtype == torch.float32
    assert torch.equal(found, mean_prediction_nll(logits.float(), masks, valid))
