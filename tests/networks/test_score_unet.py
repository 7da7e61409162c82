"""The score U-Net: what it computes does not depend on how it is run."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from softtrunc.networks import ScoreUNet, ScoreUNetConfig, estimate_activation_bytes, preset
from softtrunc.networks.blocks import AttentionBlock, ResidualBlock, group_norm
from softtrunc.networks.cost import _LiveElements
from softtrunc.networks.embeddings import FourierFeatures, SinusoidalFeatures
from softtrunc.networks.initial import fan_avg_uniform_

BASE = ScoreUNetConfig(
    image_size=16,
    base_channels=8,
    channel_multipliers=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(8,),
    init_scale=1.0,  # so that every branch is heard
)
VARIANTS = {
    "ddpmpp": {},
    "ddpmpp-fir": {"fir": True, "embedding_size": 4},
    "ncsnpp": {"embedding": "fourier", "fir": True, "input_pyramid": "residual"},
    "ncsnpp-256": {
        "embedding": "fourier",
        "fir": True,
        "input_pyramid": "input_skip",
        "output_pyramid": "output_skip",
        "channel_multipliers": (1, 2, 2),
    },
    "cat": {"input_pyramid": "input_skip", "input_combine": "cat"},
    "ddpm": {"residual_block": "ddpm"},
    "ddpm-fir": {"residual_block": "ddpm", "fir": True, "input_pyramid": "residual"},
    "ddpm-plain": {"residual_block": "ddpm", "resample_with_conv": False, "skip_rescale": False},
    "unconditional": {"conditional": False, "nonlinearity": "elu"},
    "grayscale": {"channels": 1, "nonlinearity": "relu"},
    "oblong": {"image_size": (8, 20), "attention_resolutions": (4,)},
    "48": {"image_size": 48, "attention_resolutions": (16,), "nonlinearity": "leaky_relu"},
    "frugal": {"checkpoint_activations": True},
    "patches": {"patch_size": 2, "channels": 1, "image_size": (16, 24)},
    "patches-pyramids": {
        "patch_size": 2,
        "image_size": 32,
        "input_pyramid": "input_skip",
        "output_pyramid": "output_skip",
    },
    "odd widths": {"base_channels": 12, "channel_multipliers": (1, 3)},
}


def network(name: str = "ddpmpp", **changes) -> ScoreUNet:
    config = dataclasses.replace(BASE, **(VARIANTS[name] | {"dropout": 0.0} | changes))
    return ScoreUNet(config, generator=torch.Generator().manual_seed(0))


def batch(net: ScoreUNet, n: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (n, net.config.channels, *net.config.size)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    return x, torch.linspace(0.1, 3.0, n, dtype=dtype)


@pytest.mark.parametrize("name", VARIANTS)
def test_shape_and_gradient_of_every_parameter(name) -> None:
    net = network(name)
    x, c = batch(net)
    out = net(x, c)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    out.square().sum().backward()
    for key, parameter in net.named_parameters():
        if key == "embedding.features.frequencies":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key


def test_patches_are_channels_of_a_smaller_image() -> None:
    patched = network("patches")
    plain = network(channels=4, image_size=(8, 12))
    plain.load_state_dict(patched.state_dict())
    x, c = batch(patched)
    inside = torch.nn.functional.pixel_unshuffle(x, 2)
    expected = torch.nn.functional.pixel_shuffle(plain(inside, c), 2)
    torch.testing.assert_close(patched(x, c), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_derivative_agrees_with_finite_differences(name) -> None:
    net = network(name).double()
    x, c = batch(net, dtype=torch.float64)
    x.requires_grad_()
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.manual_seed(2))
    (gradient,) = torch.autograd.grad((net(x, c) * direction).sum(), x)
    step = 1e-5
    with torch.no_grad():
        difference = net(x + step * direction, c) - net(x - step * direction, c)
    want = (difference * direction).sum() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "ncsnpp-256", "ddpm-fir", "oblong"])
def test_channels_last_changes_nothing(name) -> None:
    net = network(name).double()
    x, c = batch(net, dtype=torch.float64)
    want = net(x, c)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    got = net(x.to(memory_format=torch.channels_last), c)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "ncsnpp-256"])
def test_bfloat16_autocast_stays_close(name) -> None:
    net = network(name)
    x, c = batch(net)
    want = net(x, c)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x, c)
    assert got.dtype == torch.float32
    error = (got - want).norm() / want.norm()
    assert 1e-5 < error < 0.03  # bfloat16 keeps 8 bits, so equality would mean it was not used


def test_label_is_read_in_full_precision_under_autocast() -> None:
    """Labels near 999 a quarter apart: equal in bfloat16 (spacing 4), apart for the network."""
    embedding = network().embedding
    with torch.autocast("cpu", torch.bfloat16):
        features = embedding.features(torch.tensor([998.0, 998.25]))
        a, b = embedding(torch.tensor([998.0, 998.25]))
    assert features.dtype == torch.float32
    assert not torch.equal(a, b)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(name, dropout) -> None:
    gradients = []
    for frugal in (False, True):
        net = network(name, dropout=dropout, checkpoint_activations=frugal)
        torch.manual_seed(3)
        net(*batch(net)).square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.requires_grad])
    for plain, frugal in zip(*gradients, strict=True):
        torch.testing.assert_close(frugal, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "backend"), [("ddpmpp", "aot_eager"), ("ncsnpp-256", "eager"), ("frugal", "eager")]
)
def test_compiles_without_graph_breaks(name, backend) -> None:
    net = network(name, base_channels=4, embedding_size=4)
    x, c = batch(net)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    got = compiled(x, c)
    torch.testing.assert_close(got, net(x, c))
    got.square().sum().backward()
    assert net.input_conv.weight.grad is not None
    torch.compiler.reset()


def test_same_seed_same_network_and_global_state_untouched() -> None:
    before = torch.get_rng_state()
    first, second = network("ncsnpp"), network("ncsnpp")
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    x, c = batch(first)
    assert torch.equal(first(x, c), second(x, c))
    other = ScoreUNet(first.config, generator=torch.Generator().manual_seed(9))
    assert not torch.equal(other.input_conv.weight, first.input_conv.weight)


def test_dropout_only_while_training() -> None:
    net = network(dropout=0.5)
    x, c = batch(net)
    assert not torch.equal(net(x, c), net(x, c))
    net.eval()
    assert torch.equal(net(x, c), net(x, c))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_image_is_treated_alone(name) -> None:
    net = network(name).double()
    x, c = batch(net, dtype=torch.float64)
    together = net(x, c)
    alone = torch.cat([net(x[i : i + 1], c[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


def test_noise_label_matters_unless_unconditional() -> None:
    for name, matters in (("ddpmpp", True), ("ncsnpp", True), ("unconditional", False)):
        net = network(name)
        x, c = batch(net)
        assert torch.equal(net(x, c), net(x, c + 1)) is not matters


def test_state_survives_the_round_trip_to_disk(tmp_path: Path) -> None:
    net = network("ncsnpp")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = ScoreUNet(net.config)
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(net(*batch(net)), other(*batch(net)))


@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs_are_refused() -> None:
    net = network()
    x, c = batch(net)
    with pytest.raises(ValueError, match=r"\(3, 3, 16, 8\).*\(batch, 3, 16, 16\)"):
        net(x[..., :8], c)
    with pytest.raises(ValueError, match=r"\(3, 1, 16, 16\)"):
        net(x[:, :1], c)
    with pytest.raises(ValueError, match="one per image"):
        net(x, c[:2])


def test_first_output_is_almost_zero() -> None:
    net = network(init_scale=0.0)
    out = net(*batch(net))
    assert 0 < out.abs().max() < 1e-3


def test_initial_weights_are_uniform_with_fan_average_variance() -> None:
    layer = nn.Conv2d(40, 60, 3)
    fan_avg_uniform_(layer, 0.5, generator=torch.manual_seed(0))
    variance = 0.5 / (9 * 50)
    assert layer.weight.var().item() == pytest.approx(variance, rel=0.03)  # 21,600 draws: SE 0.6 %
    assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=1e-3)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_fused_projections_start_like_separate_ones() -> None:
    block = AttentionBlock(64)
    block.initialise(torch.manual_seed(0))
    assert block.qkv.weight.abs().max().item() == pytest.approx(math.sqrt(0.3 / 64), rel=1e-3)


def test_attention_equals_its_definition() -> None:
    block = AttentionBlock(8, init_scale=1.0).double()
    block.initialise(torch.manual_seed(0))
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, generator=torch.manual_seed(1))
    tokens = block.norm(x).reshape(2, 8, 15)
    q, k, v = (
        torch.einsum("dc,bcn->bdn", w, tokens) + b[:, None]
        for w, b in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True)
    )
    share = (torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(8)).softmax(dim=2)
    mixed = torch.einsum("bnm,bcm->bcn", share, v)
    h = torch.einsum("dc,bcn->bdn", block.out.weight, mixed) + block.out.bias[:, None]
    want = (x + h.reshape(x.shape)) / math.sqrt(2)
    torch.testing.assert_close(block(x), want, rtol=1e-12, atol=1e-12)


def test_residual_block_keeps_variance() -> None:
    """Branch and skip of equal variance: the sum over sqrt(2) has it too."""
    block = ResidualBlock(64, 64, None, init_scale=1.0)
    block.initialise(torch.manual_seed(0))
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(8, 64, 8, 8, generator=torch.manual_seed(1))
    torch.testing.assert_close(block(x, None), x / math.sqrt(2))


def test_groups_divide_any_width() -> None:
    for channels in range(1, 300):
        groups = group_norm(channels).num_groups
        assert channels % groups == 0
        assert groups <= max(1, min(channels // 4, 32))
    assert group_norm(128).num_groups == 32
    assert group_norm(16).num_groups == 4


def test_label_features_by_their_formulas() -> None:
    c = torch.tensor([0.0, 1.5, 700.0], dtype=torch.float64)
    features = SinusoidalFeatures(6)(c)
    for i in range(3):
        angle = c * 10_000 ** (-i / 2)
        torch.testing.assert_close(features[:, i], angle.sin())
        torch.testing.assert_close(features[:, 3 + i], angle.cos())
    fourier = FourierFeatures(500, scale=16.0).double()
    fourier.initialise(torch.Generator().manual_seed(0))
    w = fourier.frequencies
    assert w.std().item() == pytest.approx(16, rel=0.15)  # SE 3 %
    want = torch.cat([(2 * math.pi * c[1] * w).sin(), (2 * math.pi * c[1] * w).cos()])
    torch.testing.assert_close(fourier(c)[1], want)
    assert not w.requires_grad


@pytest.mark.parametrize("name", ["ncsnpp", "frugal"])
def test_memory_estimate_is_what_a_real_step_holds(name) -> None:
    net = network(name, attention_resolutions=())
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    x, c = batch(net, n=8)
    with _LiveElements() as live:
        net(x, c).sum().backward()
    # The kernels of attention in the middle differ between devices, hence the margin.
    assert estimate_activation_bytes(net.config, 8) == pytest.approx(4 * live.peak, rel=0.1)


def test_memory_estimate_covers_what_autograd_saves() -> None:
    net = network("ncsnpp", attention_resolutions=())
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(*batch(net, n=32))
    estimate = estimate_activation_bytes(net.config, 32)
    assert out.requires_grad
    assert sum(saved.values()) <= estimate <= 1.6 * sum(saved.values())


def public_order(state: dict[str, Tensor]) -> list[Tensor]:
    """Tensors of a public checkpoint in order; the four projections of attention become two."""
    tensors: list[Tensor] = []
    items = [(k, v) for k, v in state.items() if not k.endswith("sigmas")]
    while items:
        if "NIN_0" in items[0][0]:
            weights, biases = ([v for _, v in items[i:8:2]] for i in (0, 1))
            tensors += [torch.cat([w.T for w in weights[:3]]), torch.cat(biases[:3])]
            tensors += [weights[3].T, biases[3]]
            items = items[8:]
        else:
            tensors.append(items.pop(0)[1])
    return tensors


@pytest.mark.parametrize("name", ["ddpmpp_vp_small", "ncsnpp_ve_small"])
def test_parameters_stand_in_the_order_of_public_checkpoints(name, shared) -> None:
    golden = shared / "golden"
    public = json.loads((golden / f"{name}.json").read_text())["model"]
    net = ScoreUNet(
        ScoreUNetConfig(
            image_size=16,
            base_channels=public["nf"],
            channel_multipliers=tuple(public["ch_mult"]),
            blocks_per_level=public["num_res_blocks"],
            attention_resolutions=tuple(public["attn_resolutions"]),
            embedding=public["embedding_type"],
            fir=public["fir"],
            input_pyramid=public["progressive_input"],
        )
    ).eval()
    state = torch.load(golden / f"{name}.pth", weights_only=True)["model"]
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), public_order(state), strict=True):
            assert mine.shape == theirs.shape
            mine.copy_(theirs)
    data = load_file(golden / f"{name}.safetensors")
    if public["scale_by_sigma"]:
        out = net(2 * data["x"] - 1, data["label"].log()) / data["label"].reshape(-1, 1, 1, 1)
    else:
        out = net(data["x"], data["label"])
    assert (out - data["net_raw"]).norm() / data["net_raw"].norm() < 1e-5


def told_network(**fields) -> ScoreUNet:
    config = preset("tiny", image_size=8, channels=1, **fields)
    network = ScoreUNet(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the last convolution starts near zero, and labels are hardly seen
        network.head.conv.weight.normal_(generator=torch.Generator().manual_seed(1))
        network.told.classes.weight.normal_(generator=torch.Generator().manual_seed(2))
    return network


def test_each_image_follows_its_own_label_and_no_label_is_the_null_one():
    network = told_network(num_classes=3, vector_size=5)
    x, c = torch.randn(4, 1, 8, 8), torch.full((4,), 300.0)
    x = x[:1].expand(4, -1, -1, -1)
    y = torch.tensor([0, 2, 0, 3])
    out = network(x, c, y=y)
    torch.testing.assert_close(out[0], out[2])
    assert (out[0] - out[1]).abs().max() > 1e-4
    torch.testing.assert_close(out[3:], network(x[3:], c[3:]))
    vector = torch.randn(4, 5)
    moved = network(x, c, y=y, vector=vector)
    assert (moved - out).abs().amax((1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(network(x, c, y=y, vector=torch.zeros(4, 5)), out)


def test_what_a_network_cannot_be_told_is_refused():
    x, c, plain = torch.randn(2, 1, 8, 8), torch.ones(2), tiny_network()
    with pytest.raises(ValueError, match=r"y: this network takes none.*num_classes"):
        plain(x, c, y=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"vector: this network takes none.*vector_size"):
        plain(x, c, vector=torch.ones(2, 3))
    told = told_network(num_classes=3, vector_size=5)
    with pytest.raises(ValueError, match=r"vector has shape \(2, 4\).*\(2, 5\)"):
        told(x, c, vector=torch.ones(2, 4))
    with pytest.raises(ValueError, match="need conditional = true"):
        preset("tiny", image_size=8, channels=1, conditional=False, num_classes=3)


def tiny_network() -> ScoreUNet:
    return ScoreUNet(preset("tiny", image_size=8, channels=1))


def test_the_weights_of_a_network_without_classes_are_drawn_as_ever():
    def drawn(**fields) -> dict[str, torch.Tensor]:
        config = preset("tiny", image_size=8, channels=1, **fields)
        return ScoreUNet(config, generator=torch.Generator().manual_seed(0)).state_dict()

    plain, told = drawn(), drawn(num_classes=3)
    assert set(told) - set(plain) == {"told.classes.weight"}
    assert all(torch.equal(plain[name], told[name]) for name in plain)
