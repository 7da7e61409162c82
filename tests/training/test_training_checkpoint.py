import json

import pytest
import torch
from accelerate import Accelerator
from training_small import SmallNetwork, small_data, small_objective, small_state, weights

from softtrunc.training import (
    CheckpointError,
    TrainingConfig,
    TrainState,
    find_checkpoint,
    fit,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    read_checkpoint_info,
    remove_unfinished,
    save_checkpoint,
)

CONFIG = TrainingConfig(batch_size=6, warmup_steps=0, learning_rate=1e-2)


@pytest.fixture
def trained():
    state = small_state(CONFIG)
    accelerator = Accelerator(cpu=True)
    list(fit(state, small_objective(), small_data(), CONFIG, steps=3, accelerator=accelerator))
    return state


def test_round_trip_is_exact(trained, tmp_path):
    path = save_checkpoint(tmp_path, trained, seconds=12.5)
    assert path.name == "step-00000003"
    assert read_checkpoint_info(path).seconds == 12.5
    other = small_state(CONFIG, seed=5)
    load_checkpoint(path, other)
    expected, got = weights(trained), weights(other)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[n], got[n]) for n in expected)
    assert (other.step, other.ema.updates) == (3, 3)


def test_averaged_and_raw_weights_are_told_apart(trained, tmp_path):
    path = save_checkpoint(tmp_path, trained)
    raw, averaged = small_state(CONFIG, seed=5).model, small_state(CONFIG, seed=5).model
    load_weights(path, raw, "raw")
    load_weights(path, averaged, "ema")
    name = "network.first.weight"
    assert torch.equal(raw.state_dict()[name], trained.model.state_dict()[name])
    assert torch.equal(averaged.state_dict()[name], trained.ema.shadow[name])
    assert not torch.equal(raw.state_dict()[name], averaged.state_dict()[name])


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("damage", ["cut", "edited", "missing"])
def test_damage_is_named_and_nothing_is_half_loaded(trained, tmp_path, name, damage):
    path = save_checkpoint(tmp_path, trained)
    file = path / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-3])
    elif damage == "edited":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    other = small_state(CONFIG, seed=5)
    before = weights(other)
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: (cut short|missing)"):
        load_checkpoint(path, other)
    assert all(torch.equal(value, before[n]) for n, value in weights(other).items())
    assert other.step == 0


def test_damaged_state_is_named(trained, tmp_path):
    path = save_checkpoint(tmp_path, trained)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match=r"state\.json is missing, cut short or edited"):
        load_checkpoint(path, small_state(CONFIG))
    good = json.loads(text)
    edited = [{**good, "step": 7}, {**good, "files": {}}, {**good, "files": None}, [], "x"]
    for content in [json.dumps(c).encode() for c in edited] + [b"\xff\xfe"]:
        (path / "state.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.json is missing, cut short or edited"):
            load_checkpoint(path, small_state(CONFIG))
    (path / "state.json").write_text(json.dumps({**good, "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99, this version reads"):
        load_checkpoint(path, small_state(CONFIG))


def test_a_network_of_another_shape_is_refused_with_every_key(trained, tmp_path):
    path = save_checkpoint(tmp_path, trained)
    other = small_state(CONFIG)
    other.model.network = SmallNetwork(channels=3)
    del other.model.network.label
    with pytest.raises(CheckpointError) as raised:
        load_weights(path, other.model, "raw")
    for words in ("unknown network.label.weight", "network.first.weight has shape (8, 1, 3, 3)"):
        assert words in raised.value.__notes__[0]


@pytest.mark.parametrize("part", ["model", "ema", "moments"])
def test_values_that_are_not_finite_are_refused(trained, tmp_path, part):
    """As nothing writes them: the checksums are right."""
    parameter = next(p for p in trained.model.parameters() if p.requires_grad)
    slots = trained.optimizer.state[parameter]
    slots.setdefault("exp_avg", torch.zeros_like(parameter))
    where = {
        "model": parameter.data,
        "ema": next(iter(trained.ema.shadow.values())),
        "moments": slots["exp_avg"],
    }
    where[part].view(-1)[0] = torch.inf
    path = save_checkpoint(tmp_path, trained)
    other = small_state(CONFIG, seed=5)
    before = weights(other)
    with pytest.raises(CheckpointError, match="holds 1 values that are not finite"):
        load_checkpoint(path, other)
    assert all(torch.equal(value, before[n]) for n, value in weights(other).items())


def test_old_ones_go_unfinished_ones_are_ignored(trained, tmp_path):
    for step in (1, 2, 10):
        trained.step = step
        save_checkpoint(tmp_path, trained, keep=2)
    names = [p.name for p in list_checkpoints(tmp_path)]
    assert names == ["step-00000002", "step-00000010"]
    (tmp_path / ".step-00000011.partial").mkdir()
    assert find_checkpoint(tmp_path).name == "step-00000010"
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        find_checkpoint(tmp_path / "nowhere")


def test_a_parameter_that_never_had_a_gradient_is_no_damage(tmp_path):
    """A network of one's own may have some: Adam holds nothing for them."""

    def idle():
        state = small_state(CONFIG)
        state.model.network.idle = torch.nn.Parameter(torch.ones(2))
        return TrainState.create(state.model, CONFIG)

    def trained(state, steps):
        accelerator = Accelerator(cpu=True)
        list(
            fit(
                state, small_objective(), small_data(), CONFIG, steps=steps, accelerator=accelerator
            )
        )
        return state

    path = save_checkpoint(tmp_path, trained(idle(), 2))
    again = idle()
    load_checkpoint(path, again)
    straight, resumed = weights(trained(idle(), 4)), weights(trained(again, 4))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_moments_of_a_parameter_that_is_not_trained_are_refused(trained, tmp_path):
    path = save_checkpoint(tmp_path, trained)
    model = small_state(CONFIG).model
    model.network.first.weight.requires_grad_(False)
    other = TrainState.create(model, CONFIG)
    with pytest.raises(
        CheckpointError, match=r"network\.first\.weight:\w+ belongs to no parameter"
    ):
        load_checkpoint(path, other)
