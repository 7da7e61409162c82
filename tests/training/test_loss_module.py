"""The loss as a module: one tau for a step wherever its parts are, and conditions by name."""

import pytest
import torch
from torch import Tensor, nn

from softtrunc import (
    VPSDE,
    ImportanceTimes,
    PowerPrior,
    ScoreModel,
    SoftTruncationLoss,
    likelihood_weight,
)
from softtrunc.training import LossModule, step_draw

SDE = VPSDE()
LOSS = SoftTruncationLoss(
    SDE, PowerPrior(1.0), ImportanceTimes(SDE, stratified=True), likelihood_weight(SDE)
)


class Labelled(nn.Module):
    """A network that adds something of its own for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Embedding(3, 2)

    def forward(self, x: Tensor, _label: Tensor, y: Tensor) -> Tensor:
        return x + self.shift(y)


def test_parts_of_a_step_share_its_tau_and_its_strata():
    parts = [step_draw(LOSS, 12, seed=3, step=5, rank=rank, ranks=3) for rank in range(3)]
    whole = step_draw(LOSS, 12, seed=3, step=5)
    assert {float(part.tau) for part in parts} == {float(whole.tau)}
    torch.testing.assert_close(torch.cat([part.t for part in parts]), whole.t, rtol=0, atol=0)
    others = {float(step_draw(LOSS, 12, seed=3, step=step).tau) for step in range(20)}
    assert len(others) == 20


@pytest.mark.parametrize(("rank", "ranks"), [(0, 5), (3, 3)])
def test_a_batch_that_does_not_divide_is_refused(rank, ranks):
    with pytest.raises(ValueError, match="step_draw: batch_size=12"):
        step_draw(LOSS, 12, seed=0, step=0, rank=rank, ranks=ranks)


def test_the_module_is_the_loss_of_the_bound_model_and_reaches_its_weights():
    model = ScoreModel(Labelled(), SDE)
    x, y = torch.randn(6, 2), torch.tensor([0, 2, 1, 1, 0, 2])
    draw, noise = step_draw(LOSS, 6, seed=0, step=0), torch.randn(6, 2)
    module = LossModule(model, LOSS)
    terms = module(x, draw=draw, noise=noise, condition={"y": y})
    expected = LOSS(model.given(y=y), x, draw=draw, noise=noise)
    torch.testing.assert_close(terms.loss, expected.loss, rtol=0, atol=0)
    terms.loss.mean().backward()
    assert model.network.shift.weight.grad.abs().min() > 0
    assert set(module.state_dict()) == {"model.network.shift.weight"}
