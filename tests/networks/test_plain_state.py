"""Networks with tied weights, compiled or spread over devices: saved plainly, loaded anywhere."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from softtrunc import VPSDE, ScoreModel
from softtrunc.networks import ScoreUNet, preset
from softtrunc.networks.plain_state import plain_names, plain_state, unwrapped
from softtrunc.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from softtrunc.training.state import TrainingConfig, TrainState

pytestmark = pytest.mark.usefixtures("unchecked")


class Body(nn.Module):
    """Two layers of one weight; a buffer that is part of another."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.module = nn.Linear(4, 4)  # a name like a wrapper's
        self.b = nn.Linear(4, 4)
        if tied:
            self.b.weight = self.module.weight
        self.register_buffer("table", torch.arange(8.0))
        self.register_buffer("head", self.table[:3])

    def forward(self, x, label):
        return self.b(torch.tanh(self.module(x))) + label[:, None]


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")


def inside(network: nn.Module) -> nn.Module:
    """Compiled in part, and the whole spread over devices."""
    network.b = compiled(network.b)
    return nn.DataParallel(network)


WRAPS = [lambda network: network, compiled, nn.DataParallel, inside]
NAMES = ["plain", "compiled", "parallel", "in part"]


def output(model: nn.Module) -> torch.Tensor:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the network itself: nothing is compiled here
        return unwrapped(model.network)(x, torch.ones(3))


@pytest.mark.parametrize("into", WRAPS, ids=NAMES)
@pytest.mark.parametrize("wrap", WRAPS, ids=NAMES)
def test_weights_go_from_any_wrapper_to_any_other(tmp_path, wrap, into):
    model = ScoreModel(wrap(Body()), VPSDE())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == {"weight", "bias", "b.bias", "table", "head"}
    assert json.loads((tmp_path / "config.json").read_text())["network"]["type"] == "Body"
    again = ScoreModel.from_pretrained(tmp_path, network=into(Body()))
    assert torch.equal(*(unwrapped(m.network).table for m in (model, again)))
    body = unwrapped(again.network)
    assert getattr(body.b, "_orig_mod", body.b).weight is body.module.weight
    for name, value in plain_state(model).items():
        assert torch.equal(plain_state(again)[name], value)


def test_a_compiled_network_of_our_own_needs_no_network_to_be_read(tmp_path):
    config = preset("ddpmpp", image_size=(8, 8), channels=1, base_channels=8)
    network = ScoreUNet(config, generator=torch.Generator().manual_seed(7))
    ScoreModel(compiled(network), VPSDE()).save_pretrained(tmp_path)
    again = ScoreModel.from_pretrained(tmp_path).network
    assert again.config == config
    assert all(torch.equal(again.state_dict()[n], v) for n, v in network.state_dict().items())


@pytest.mark.parametrize("into", WRAPS[:3], ids=NAMES[:3])
@pytest.mark.parametrize("wrap", WRAPS[:3], ids=NAMES[:3])
def test_a_training_goes_on_in_another_wrapper(tmp_path, wrap, into):
    config = TrainingConfig(batch_size=2)
    state = TrainState.create(ScoreModel(wrap(Body()), VPSDE()), config)
    for _ in range(3):
        output(state.model)
        unwrapped(state.model.network)(torch.ones(2, 4), torch.ones(2)).square().sum().backward()
        state.optimizer.step()
        state.ema.update(state.model)
    state.step = 3
    path = save_checkpoint(tmp_path, state)
    other = TrainState.create(ScoreModel(into(Body()), VPSDE()), config)
    load_checkpoint(path, other)
    assert torch.equal(output(other.model), output(state.model))
    first, second = (s.ema.shadow for s in (state, other))
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))
    moments = [
        [s.optimizer.state[p]["exp_avg"] for p in s.model.parameters()] for s in (state, other)
    ]
    assert len(moments[0]) == 3
    assert all(a.any() and torch.equal(a, b) for a, b in zip(*moments, strict=True))
    averaged = ScoreModel(Body(), VPSDE())
    load_weights(path, averaged)
    state.ema.copy_to(state.model)
    assert torch.equal(output(averaged), output(state.model))


def test_files_that_have_wrappers_names_and_each_tied_tensor_are_read(tmp_path):
    model = ScoreModel(Body(), VPSDE())
    model.save_pretrained(tmp_path)
    state = {f"_orig_mod.module.{n}": v.clone() for n, v in model.network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    again = ScoreModel.from_pretrained(tmp_path, network=Body())
    assert torch.equal(output(again), output(model))
    state["_orig_mod.module.b.weight"] += 1.0
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"b\.weight and weight differ"):
        ScoreModel.from_pretrained(tmp_path, network=Body())
    network = Body(tied=False)
    again = ScoreModel.from_pretrained(tmp_path, network=network)
    assert torch.equal(network.b.weight, state["_orig_mod.module.b.weight"])


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "shape of the tied"])
def test_what_does_not_fit_is_refused_still(tmp_path, change):
    ScoreModel(Body(), VPSDE()).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del state["weight"]
    elif change == "unknown":
        state["c.weight"] = torch.zeros(1)
    elif change == "shape":
        state["b.bias"] = torch.zeros(1, 4)
    else:
        state["b.weight"] = torch.zeros(16)
    save_file(state, tmp_path / "model.safetensors")
    network = Body()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the network"):
        ScoreModel.from_pretrained(tmp_path, network=network)
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())


def test_a_network_with_weights_for_one_only_is_not_tied(tmp_path):
    """Weights that were one are no weights of two."""
    ScoreModel(Body(), VPSDE()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing b\.weight"):
        ScoreModel.from_pretrained(tmp_path, network=Body(tied=False))


def test_names_that_would_become_one_stay_as_they_are():
    assert plain_names(["module.a", "b"]) == {"module.a": "a", "b": "b"}
    assert plain_names(["module.a", "a"]) == {"module.a": "module.a", "a": "a"}
