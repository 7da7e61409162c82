"""Public checkpoints: what is loaded computes what it computed where it was trained."""

import copy
import json
import math
import pickle

import pytest
import safetensors.torch
import torch
from public_network import CONFIG, VARIANTS, VE, checkpoint, configuration
from safetensors.torch import load_file

from softtrunc.interop import (
    ModelDescription,
    describe_public_config,
    load_score_sde_checkpoint,
    public_layout,
)
from softtrunc.networks import ScoreUNet, ScoreUNetConfig, preset
from softtrunc.score import noise_label
from softtrunc.sde import VPSDE

pytestmark = pytest.mark.usefixtures("unchecked")


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "prefix"), [(name, "module.") for name in VARIANTS] + [("ddpmpp", ""), ("ncsnpp", "")]
)
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_loaded_network_computes_what_the_public_one_does(tmp_path, name, weights, prefix):
    config = configuration(VARIANTS[name])
    content, raw, average = checkpoint(config, prefix=prefix)
    model = load_score_sde_checkpoint(
        save(tmp_path / "c.pth", content), copy.deepcopy(config), weights=weights
    )
    assert not model.training
    size, channels = config["data"]["image_size"], config["data"]["num_channels"]
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(3)).double()
    t = torch.tensor([0.02, 0.7], dtype=torch.float64)
    label = noise_label(model.sde, model.conditioning, t)
    with torch.no_grad():
        truth = (raw if weights == "raw" else average)(x, label)
        ours = model.network.double()(x, label)
    torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-8 * float(truth.abs().max()))


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_scores_divide_by_sigma_and_map_the_data_range(tmp_path, name):
    config = configuration(VARIANTS[name])
    content, raw, _ = checkpoint(config)
    model = load_score_sde_checkpoint(save(tmp_path / "c.pth", content), config, weights="raw")
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        if name == "ddpmpp":
            b = 0.1 * t.double() + 0.5 * 19.9 * t.double() ** 2
            sigma = (1 - torch.exp(-b)).sqrt()
            truth = -raw(x, 999 * t) / sigma[:, None, None, None]
        else:
            sigma = 0.01 * 5000 ** t.double()
            truth = raw(2 * x - 1, sigma.log()) / sigma[:, None, None, None]
        ours = model.score(x, t).double()
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


GOLDEN = ["ddpmpp_vp_small", "ncsnpp_ve_small"]


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_are_reproduced(shared, name, weights):
    folder = shared / "golden"
    truth = load_file(folder / f"{name}.safetensors")
    model = load_score_sde_checkpoint(
        folder / f"{name}.pth", folder / f"{name}.json", weights=weights
    )
    x, t, label = truth["x"], truth["t"], truth["label"]
    with torch.no_grad():
        score = model.score(x, t)
        if model.prediction == "noise":
            net = model.network(x, label)
        else:  # the public network takes its data in [0, 1] and sigma itself
            net = model.network(2 * x - 1, label.log()) / label[:, None, None, None]

    def error(ours, theirs):
        return float(((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).max())

    assert error(net, truth[f"net_{weights}"]) < 1e-5
    assert error(score, truth[f"score_{weights}"]) < 1e-3


def blocks(first: int, *kinds: str) -> dict[int, str]:
    return dict(enumerate(kinds, first))


# Module numbers as documented for the public CIFAR-10 networks.
DDPMPP = (
    blocks(0, "linear", "linear", "conv", *["block"] * 4, "down")
    | blocks(8, *["block", "attention"] * 4, "down")
    | blocks(17, *["block"] * 4, "down", *["block"] * 4)
    | blocks(26, "block", "attention", "block")
    | blocks(29, *["block"] * 5, "up", *["block"] * 5, "up")
    | blocks(41, *["block"] * 5, "attention", "up", *["block"] * 5, "norm", "conv")
)
NCSNPP = (
    blocks(0, "frequencies", "linear", "linear", "conv", *["block"] * 4, "down", "pyramid")
    | blocks(10, *["block", "attention"] * 4, "down", "pyramid")
    | blocks(20, *["block"] * 4, "down", "pyramid", *["block"] * 4)
    | blocks(30, "block", "attention", "block")
    | blocks(33, *["block"] * 5, "up", *["block"] * 5, "up")
    | blocks(45, *["block"] * 5, "attention", "up", *["block"] * 5, "norm", "conv")
)
BLOCK = ["GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1"]
AFFINE = ["weight", "bias"]
KEYS = {
    "frequencies": ["W"],
    "linear": AFFINE,
    "conv": AFFINE,
    "norm": AFFINE,
    "pyramid": ["Conv2d_0.weight", "Conv2d_0.bias"],
    "block": [f"{part}.{end}" for part in BLOCK for end in AFFINE],
    "down": [f"{part}.{end}" for part in [*BLOCK, "Conv_2"] for end in AFFINE],
    "attention": ["GroupNorm_0.weight", "GroupNorm_0.bias"]
    + [f"NIN_{i}.{end}" for i in range(4) for end in "Wb"],
}
KEYS["up"] = KEYS["down"]


@pytest.mark.parametrize(
    ("name", "modules", "count"), [("ddpmpp", DDPMPP, 55), ("ncsnpp", NCSNPP, 59)]
)
def test_keys_of_the_cifar10_networks(name, modules, count):
    assert len(modules) == count
    with torch.device("meta"):
        network = ScoreUNet(preset(name, image_size=32))
    layout = public_layout(network)
    found: dict[int, list[str]] = {}
    for entry in layout:
        _, index, rest = entry.key.split(".", 2)
        found.setdefault(int(index), []).append(rest)
    assert list(found) == list(range(count))
    shortcut = ["Conv_2.weight", "Conv_2.bias"]
    for index, kind in modules.items():
        plain = [k for k in found[index] if k not in shortcut] if kind == "block" else found[index]
        assert plain == KEYS[kind], f"module {index}: {kind}"
    assert {e.key for e in layout if not e.trained} == (
        {"all_modules.0.W"} if name == "ncsnpp" else set()
    )
    assert sum(e.view.numel() for e in layout) == sum(p.numel() for p in network.parameters())
    shapes = {e.key: tuple(e.view.shape) for e in layout}
    if name == "ncsnpp":
        assert shapes["all_modules.9.Conv2d_0.weight"] == (128, 3, 3, 3)
        assert shapes["all_modules.19.Conv2d_0.weight"] == (256, 128, 3, 3)
    assert shapes[f"all_modules.{count - 1}.weight"] == (3, 128, 3, 3)


def test_views_cover_every_parameter_once():
    """What is not in the layout would keep its random start."""
    for changes in VARIANTS.values():
        description = describe_public_config(configuration(changes))
        network = ScoreUNet(description.network, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            for entry in public_layout(network):
                entry.view.add_(1.0)
        assert all(bool((p == 1.0).all()) for p in network.parameters())


@pytest.fixture
def ncsnpp(tmp_path):
    """A small checkpoint to spoil, and how to load it."""
    config = configuration(VE)
    content, _, _ = checkpoint(config)

    def load(**options):
        path = save(tmp_path / "c.pth", content)
        return load_score_sde_checkpoint(path, config, **options)

    return content, load


def message(load, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load(**options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 280
    return "; ".join([text, *getattr(caught.value, "__notes__", ["\n"])[0].split("\n"), ""])


def test_all_that_does_not_fit_is_named_at_once(ncsnpp):
    content, load = ncsnpp
    model = content["model"]
    del model["module.all_modules.0.W"], model["module.all_modules.5.Conv_2.bias"]
    model["module.all_modules.99.weight"] = torch.zeros(1)
    model["module.extra"] = torch.zeros(1)
    model["module.all_modules.1.weight"] = torch.zeros(3, 4)
    model["module.all_modules.2.bias"] = torch.zeros(32, dtype=torch.int64)
    model["module.all_modules.3.bias"] = "text"
    content["ema"]["shadow_params"][2] = torch.zeros(7)
    last = content["ema"]["shadow_params"].pop()
    assert last.shape == (3,)
    text = message(load)
    for part in [
        "missing all_modules.0.W;",
        "missing all_modules.5.Conv_2.bias;",
        "unknown all_modules.99.weight",
        "unknown extra",
        "all_modules.1.weight has shape (3, 4) instead of (32, 16)",
        "all_modules.2.bias has type torch.int64",
        "all_modules.3.bias is a str",
        "ema: all_modules.2.weight has shape (7,) instead of (32, 32)",
        "missing all_modules.19.bias in ema",
    ]:
        assert part in text
    assert "ema" not in message(load, weights="raw")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_prefixes_of_wrappers_are_no_part_of_a_name(ncsnpp, prefix):
    content, load = ncsnpp
    right = load().state_dict()
    model = content["model"]
    content["model"] = {prefix + k.removeprefix("module."): v for k, v in model.items()}
    for name, value in load().state_dict().items():
        assert torch.equal(value, right[name])


@pytest.mark.parametrize("form", ["list", "tuple", "state", "shadow state"])
def test_averages_in_the_usual_forms(ncsnpp, form):
    content, load = ncsnpp
    right = load().state_dict()
    shadow = content["ema"]["shadow_params"]
    trained = [k for k in content["model"] if k not in ("module.sigmas", "module.all_modules.0.W")]
    state = dict(zip(trained, shadow, strict=True))
    forms = {"list": shadow, "tuple": tuple(shadow), "state": state}
    content["ema"] = forms.get(form, {"shadow_params": state})
    for name, value in load().state_dict().items():
        assert torch.equal(value, right[name])
    if form == "state":
        del state["module.all_modules.2.weight"]
        state["module.extra"] = torch.zeros(1)
        assert "missing all_modules.2.weight in ema; unknown extra in ema" in message(load)


def test_values_that_are_not_finite_are_refused(ncsnpp):
    content, load = ncsnpp
    content["model"]["module.all_modules.2.weight"][3, 4] = math.inf
    content["ema"]["shadow_params"][3][:5] = math.nan
    text = message(load)
    assert "all_modules.2.weight holds 1 values that are not finite" in text
    assert "ema: all_modules.2.bias holds 5 values that are not finite" in text


def test_a_configuration_far_too_large_is_refused_before_it_is_built(tmp_path):
    content, _, _ = checkpoint(configuration({}))
    path = save(tmp_path / "c.pth", content)
    with pytest.raises(ValueError, match=r"all_modules.0.weight has shape .* instead of \(32000"):
        load_score_sde_checkpoint(path, configuration({"model.nf": 8000}))
    with pytest.raises(ValueError, match="2 levels of 1000000 blocks are more than 1,000"):
        load_score_sde_checkpoint(path, configuration({"model.num_res_blocks": 10**6}))


def test_averaged_frequencies_are_refused(ncsnpp):
    """Had W been averaged, every later tensor would stand one place further on."""
    content, load = ncsnpp
    content["ema"]["shadow_params"].insert(0, content["model"]["module.all_modules.0.W"])
    text = message(load)
    assert f"holds {len(content['ema']['shadow_params'])} tensors" in text
    load(weights="raw")


def test_a_file_without_averages(ncsnpp):
    content, load = ncsnpp
    del content["ema"]
    assert "averaged" in message(load)
    load(weights="raw")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: s.flip(0), "descend"),
        (lambda s: 2 * s, "runs from 100 to 0.02"),
        (lambda s: s[None], "not a list"),
        (lambda s: s, None),
        (None, None),
    ],
)
def test_noise_levels_agree_with_the_configuration(ncsnpp, change, part):
    content, load = ncsnpp
    sigmas = content["model"].pop("module.sigmas")
    if change is not None:
        content["model"]["module.sigmas"] = change(sigmas)
    if part is None:
        load()
    else:
        assert part in message(load)


def test_noise_levels_mean_nothing_to_a_preserving_sde(tmp_path):
    config = configuration({})
    content, _, _ = checkpoint(config)
    content["model"]["module.sigmas"] *= 3
    load_score_sde_checkpoint(save(tmp_path / "c.pth", content), config)


def test_both_prefixes_at_once_are_refused(ncsnpp):
    content, load = ncsnpp
    content["model"]["all_modules.0.W"] = content["model"]["module.all_modules.0.W"]
    assert "all_modules.0.W stands twice" in message(load)


class Harmful:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_in_a_file_is_executed(ncsnpp, tmp_path):
    content, load = ncsnpp
    content["step"] = Harmful()
    assert "holds a exec, which is no plain tensor and could run code" in message(load)
    (tmp_path / "old.pth").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"holds a torch\.storage\._load_from_bytes"):
        load_score_sde_checkpoint(tmp_path / "old.pth", configuration(VE))


def test_what_is_no_checkpoint(tmp_path):
    config = configuration({})
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_score_sde_checkpoint(tmp_path / "none.pth", config)
    for content, words in (
        (b"hello", "no file of tensors"),
        (b"", "empty"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(50), "damaged or cut short"),
        (safetensors.torch.save({"a": torch.zeros(1)}), "a safetensors file"),
    ):
        (tmp_path / "text.pth").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_score_sde_checkpoint(tmp_path / "text.pth", config)
    with pytest.raises(ValueError, match="holds no 'model'"):
        load_score_sde_checkpoint(save(tmp_path / "c.pth", {"a": torch.zeros(1)}), config)


def test_the_configuration_comes_in_several_forms(tmp_path):
    config = configuration({})
    content, _, _ = checkpoint(config)
    path = save(tmp_path / "c.pth", content)
    file = tmp_path / "c.json"
    file.write_text(json.dumps(config))
    shape = ScoreUNetConfig(
        16,
        base_channels=8,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(8,),
    )
    description = ModelDescription(shape, VPSDE(), "time", "noise", (-1.0, 1.0))
    assert describe_public_config(config) == description
    states = [
        load_score_sde_checkpoint(str(path), form).state_dict()
        for form in (config, file, str(file), description)
    ]
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in states[0])
    with pytest.raises(ValueError, match="recipe 'digits-vp-nl' is unknown: did you mean"):
        load_score_sde_checkpoint(path, "digits-vp-nl")
    with pytest.raises(ValueError, match="does not fit the network: missing"):
        load_score_sde_checkpoint(path, "digits-vp-nll")
    with pytest.raises(ValueError, match="'ema' or 'raw'"):
        load_score_sde_checkpoint(path, config, weights="mean")
    with pytest.raises(ValueError, match="write one of time"):
        load_score_sde_checkpoint(path, config, conditioning="sigma")


def test_loading_leaves_the_global_random_stream_alone(ncsnpp):
    _, load = ncsnpp
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load()
    assert torch.equal(torch.rand(3), expected)


def test_the_configuration_given_is_not_changed():
    before = copy.deepcopy(CONFIG)
    describe_public_config(CONFIG)
    assert before == CONFIG
