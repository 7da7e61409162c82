"""Public configurations: what they say, what they mean, and what is refused."""

import json
import math

import pytest
import torch
from public_network import VARIANTS, VE, configuration

from softtrunc.interop import describe_public_config, read_public_config
from softtrunc.jobs.import_checkpoint import recipe_of_public_config
from softtrunc.networks import preset
from softtrunc.recipes.build import build_sde
from softtrunc.sde import VESDE, VPSDE, ReciprocalVESDE, SubVPSDE, TabulatedVPSDE

pytestmark = pytest.mark.usefixtures("unchecked")

RVE = VE | {"training.sde": "reciprocal_vesde", "model.sigma_min": 1e-3}


def describe(changes):
    return describe_public_config(configuration(changes))


@pytest.mark.parametrize(
    ("changes", "sde", "conditioning"),
    [
        ({}, VPSDE(0.1, 20.0), "time"),
        ({"training.unbounded_parametrization": True}, VPSDE(), "unbounded_time"),
        ({"training.sde": "subvpsde", "model.beta_max": 12}, SubVPSDE(0.1, 12.0), "time"),
        (VE, VESDE(0.01, 50.0), "log_sigma"),
        (VE | {"training.eta": 1e-3}, VESDE(0.01, 50.0), "log_sigma"),
        (VE | {"training.unbounded_parametrization": True}, VESDE(), "unbounded_sigma"),
        (RVE, ReciprocalVESDE(1e-3, 50.0, 1e-5), "log_sigma"),
        (RVE | {"training.sde": "RVESDE"}, ReciprocalVESDE(), "log_sigma"),
        (RVE | {"training.model_mode": "reciprocal"}, ReciprocalVESDE(), "unbounded_sigma"),
        (
            RVE | {"training.unbounded_parametrization": True, "training.truncation_time": 1e-4},
            ReciprocalVESDE(1e-3, 50.0, 1e-4),
            "unbounded_sigma",
        ),
    ],
)
def test_sde_and_conditioning(changes, sde, conditioning):
    description = describe(changes)
    assert description.sde == sde
    assert description.conditioning == conditioning
    exploding = isinstance(sde, VESDE | ReciprocalVESDE)
    assert description.prediction == ("scaled_score" if exploding else "noise")
    assert description.value_range == ((0.0, 1.0) if exploding else (-1.0, 1.0))


def test_discrete_models_are_told_their_steps():
    vp = describe({"training.continuous": False, "model.num_scales": 500})
    assert vp.sde == TabulatedVPSDE.from_schedule("linear", 500, 0.1 / 500, 20 / 500)
    assert (vp.conditioning, vp.prediction) == ("timestep", "noise")
    changes = {"training.continuous": False, "model.embedding_type": "positional"}
    ve = describe(VE | changes)
    assert (ve.sde, ve.conditioning, ve.prediction) == (VESDE(), "reversed_time", "scaled_score")
    # Step j of their table is the SDE's own level at t = 1 - j / 999.
    sigma = ve.sde.marginal(1 - torch.arange(1000, dtype=torch.float64) / 999).sigma
    table = torch.linspace(math.log(50), math.log(0.01), 1000, dtype=torch.float64).exp()
    torch.testing.assert_close(sigma, table, rtol=1e-9, atol=0)
    recipe = recipe_of_public_config(configuration({"training.continuous": False}), name="r")
    assert build_sde(recipe) == TabulatedVPSDE.from_schedule()
    assert (recipe.truncation.eps, recipe.evaluation.eps) == (1e-3, 1e-3)


@pytest.mark.parametrize("sde", ["vpsde", "subvpsde"])
def test_ddpm_is_ncsnpp_with_fewer_words(sde):
    """Its configurations name neither blocks nor pyramids, and an embedding that it never reads."""
    config = configuration({"training.sde": sde})
    kept = "nf ch_mult num_res_blocks attn_resolutions resamp_with_conv conditional nonlinearity "
    kept += "dropout beta_min beta_max sigma_min sigma_max num_scales ema_rate"
    config["model"] = {key: config["model"][key] for key in kept.split()}
    config["model"] |= {"name": "ddpm", "nf": 128, "embedding_type": "fourier"}
    described = describe_public_config(config)
    assert described.conditioning == "time"
    network = described.network
    assert (network.residual_block, network.embedding) == ("ddpm", "positional")
    assert (network.skip_rescale, network.fir, network.resample_with_conv) == (False, False, True)
    assert (network.input_pyramid, network.output_pyramid) == ("none", "none")


def test_the_older_unbounded_files():
    config = configuration(RVE | {"training.sde": "rve-sde"})
    config["uncsn"] = {"eta": 1e-3, "threshold": "initial"}
    description = describe_public_config(config)
    assert description.sde == ReciprocalVESDE()
    assert description.conditioning == "unbounded_sigma"
    config["uncsn"]["eta"] = 1e-5
    with pytest.raises(ValueError, match="eta = 1e-05 differs"):
        describe_public_config(config)


CIFAR10 = {
    "data.image_size": 32,
    "model.nf": 128,
    "model.ch_mult": [1, 2, 2, 2],
    "model.num_res_blocks": 4,
    "model.attn_resolutions": [16],
}


@pytest.mark.parametrize(
    ("name", "size", "changes"),
    [
        ("ddpmpp", 32, {}),
        ("ncsnpp", 32, VE),
        (
            "ddpmpp-512",
            32,
            {
                "model.nf": 512,
                "model.ch_mult": [1, 1, 1],
                "model.num_res_blocks": 8,
                "model.fir": True,
                "model.dropout": 0.2,
                "model.lsgm": True,
                "model.embedding_dim": 128,
            },
        ),
        (
            "ncsnpp-256",
            256,
            VE
            | {
                "data.image_size": 256,
                "model.ch_mult": [1, 1, 2, 2, 2, 2, 2],
                "model.num_res_blocks": 2,
                "model.progressive": "output_skip",
                "model.progressive_input": "input_skip",
                "model.dropout": 0.0,
            },
        ),
    ],
)
def test_the_papers_networks(name, size, changes):
    network = describe(CIFAR10 | changes).network
    assert network == preset(name, image_size=size)


def test_embedding_size_needs_its_switch():
    assert describe({"model.embedding_dim": 12}).network.embedding_size is None
    assert describe(VE | {"model.lsgm": True}).network.embedding_size is None
    with pytest.raises(ValueError, match=r"needs model\.embedding_dim"):
        describe({"model.lsgm": True})


def test_attention_can_be_off():
    assert describe(VARIANTS["no attention"]).network.attention_resolutions == ()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"training.continuous": False, "training.sde": "subvpsde"},
            "training.continuous = false with training.sde = 'subvpsde'",
        ),
        ({"model.name": "ddpm"}, "model.nf = 8: ddpm normalises in 32 groups"),
        ({"model.name": "ncsnv2"}, "model.name = 'ncsnv2': only networks of the ncsnpp family"),
        ({"training.sde": "vpsd"}, "training.sde = 'vpsd' is unknown"),
        ({"training.sde": 3}, "training.sde = 3"),
        ({"model.embedding_type": "fourier"}, "model.embedding_type = 'fourier'"),
        (VE | {"model.embedding_type": "positional"}, "model.embedding_type = 'positional'"),
        ({"model.scale_by_sigma": True}, "model.scale_by_sigma = True"),
        (VE | {"model.scale_by_sigma": False}, "model.scale_by_sigma = False"),
        ({"model.auxiliary_resblock": False}, "model.auxiliary_resblock = False"),
        ({"model.fourier_feature": True}, "model.fourier_feature = True"),
        ({"training.ddpm_score": False}, "training.ddpm_score = False"),
        (
            {"training.unbounded_parametrization": True, "training.stabilizing_constant": 1e-2},
            "training.stabilizing_constant = 0.01",
        ),
        (RVE | {"training.eta": 1e-5}, "eta = 1e-05 differs from model.sigma_min = 0.001"),
        ({"model.nonlinearity": "gelu"}, "swish"),
        ({"model.progressive": "residual"}, "output_pyramid"),
        ({"model.nf": "128"}, "base_channels = '128'"),
        ({"model.ch_mult": 3}, "model.ch_mult = 3"),
        ({"model.beta_min": "small"}, "model.beta_min = 'small'"),
        ({"data.centered": "yes"}, "data.centered = 'yes'"),
        ({"data.image_size": 30, "model.ch_mult": [1, 2, 2]}, "cannot be halved"),
        (
            {"model.num_res_block": 3},
            "unknown model.num_res_block (did you mean 'num_res_b",
        ),
        ({"model.zzz": 3}, "unknown model.zzz"),
        (
            {"training.unbounded_parameterization": True},
            "unknown training.unbounded_parameterization (did you mean 'unbounded_param",
        ),
    ],
)
def test_what_is_refused(changes, part):
    with pytest.raises(ValueError) as caught:
        describe(changes)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_keys_are_all_named():
    config = configuration({})
    del config["data"]["centered"], config["model"]["nf"], config["training"]
    with pytest.raises(ValueError, match=r"data\.centered; missing model\.nf; .*'training'"):
        describe_public_config(config)
    config = configuration({})
    del config["model"]["beta_max"]
    with pytest.raises(ValueError, match=r"missing model\.beta_max"):
        describe_public_config(config)


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_public_config(tmp_path / "none.json")
    file = tmp_path / "c.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_public_config(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        read_public_config(file)
    file.write_text(json.dumps(configuration({})))
    assert read_public_config(file) == configuration({})
