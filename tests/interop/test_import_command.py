"""`softtrunc import`: a public checkpoint is a run like any other."""

import json
import math

import numpy as np
import pytest
import torch
from public_network import VE, checkpoint, configuration
from safetensors.torch import load_file

from softtrunc.cli import main
from softtrunc.interop import load_score_sde_checkpoint
from softtrunc.jobs.import_checkpoint import recipe_of_public_config
from softtrunc.recipes import load_recipe
from softtrunc.runs.folder import Run
from softtrunc.runs.open_run import open_run

pytestmark = pytest.mark.usefixtures("unchecked")

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.3, 0.8])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """c.pth and c.json of a small NCSN++, with the working directory there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    config = configuration(VE)
    torch.save(checkpoint(config)[0], "c.pth")
    (tmp_path / "c.json").write_text(json.dumps(config))
    return tmp_path


def score(model):
    with torch.no_grad():
        return model.cpu()(X, T)


def test_a_run_from_a_json_configuration(files, capsys):
    assert main(["import", "c.pth", "--config", "c.json", "--out", "run"]) == 0
    assert "step 1234, conditioning log_sigma" in capsys.readouterr().err
    for weights in ("ema", "raw"):
        opened = open_run(files / "run", weights=weights)
        assert opened.step == 1234
        truth = load_score_sde_checkpoint("c.pth", "c.json", weights=weights)
        assert torch.equal(score(opened.model), score(truth))
    assert main(["sample", "run", "-n", "2", "--sampler", "heun", "--steps", "2",
                 "--out", "drawn.npz"]) == 0  # fmt: skip
    assert np.load("drawn.npz")["images"].shape[0] == 2


def test_raw_weights_can_stand_in_for_the_average(files):
    assert main(["import", "c.pth", "--config", "c.json", "--weights", "raw", "--out", "run"]) == 0
    truth = load_score_sde_checkpoint("c.pth", "c.json", weights="raw")
    assert torch.equal(score(open_run(files / "run").model), score(truth))


def test_the_conditioning_is_kept(files, capsys):
    arguments = ["import", "c.pth", "--config", "c.json", "--conditioning"]
    assert main([*arguments, "unbounded_sigma", "--out", "given"]) == 0
    assert open_run(files / "given").model.conditioning == "unbounded_sigma"
    assert main([*arguments, "auto", "--out", "auto"]) == 0
    said = capsys.readouterr().err
    errors = {
        name: float(line.split()[-1])
        for name in ("log_sigma", "unbounded_sigma")
        for line in said.splitlines()
        if line.startswith(f"conditioning {name}:")
    }
    assert open_run(files / "auto").model.conditioning == min(errors, key=errors.get)


RECIPE = """
sde: {kind: ve}
network:
  preset: ncsnpp
  options: {base_channels: 8, channel_multipliers: [1, 2], blocks_per_level: 1,
            attention_resolutions: [8]}
training: {steps: 10}
"""


def test_a_run_from_a_recipe(files):
    (files / "r.yaml").write_text(RECIPE + "data: {image_size: 16}\n")
    assert main(["import", "c.pth", "--recipe", "r.yaml", "--out", "run"]) == 0
    truth = load_score_sde_checkpoint("c.pth", "c.json")
    assert torch.equal(score(open_run(files / "run").model), score(truth))
    assert torch.equal(score(load_score_sde_checkpoint("c.pth", "r.yaml")), score(truth))
    recipe = Run(files / "run").recipe()
    assert recipe.network.conditioning == "log_sigma"
    assert recipe.model_copy(update={"network": load_recipe("r.yaml").network}) == load_recipe(
        "r.yaml"
    )


def test_evaluating_needs_the_data_by_name(files, capsys):
    """Of an imported run nobody knows the data: any of its shape may be given."""
    arguments = ["import", "c.pth", "--config", "c.json", "--out", "run"]
    assert main([*arguments, "--set", "data.dequantize=true"]) == 0
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.save("images.npy", images)
    capsys.readouterr()
    assert main(["evaluate", "run", "--bpd", "--limit", "2"]) == 2
    assert "--data" in capsys.readouterr().err
    settings = ["--set", "evaluation.rtol=1e-1", "--set", "evaluation.atol=1e-1"]
    few = ["--set", "evaluation.nelbo_draws=2"]
    arguments = ["evaluate", "run", "--bpd", "--limit", "1", "--split", "train"]
    assert main([*arguments, "--data", "images.npy", *settings, *few]) == 0
    content = json.loads((files / "run" / "evaluation.json").read_text())
    assert {figure["data"]["name"] for figure in content["figures"]} == {"images"}
    # Its recipe is a guess, and no step of its training is recorded.
    small = ["-n", "2", "--bins", "2", "--draws", "1", "--times", "1", "--split", "train"]
    capsys.readouterr()
    assert main(["anatomy", "run", "--data", "images.npy", *small,
                 "--set", "sampling={sampler: heun, steps: 2}"]) == 0  # fmt: skip
    assert "draws and weight by its recipe" in " ".join(capsys.readouterr().out.split())
    page = (files / "run" / "anatomy" / "anatomy.html").read_text()
    assert "run, by its recipe, since no steps of its training are recorded" in page


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["none.pth", "--config", "c.json"], "none.pth: no such file"),
        (["c.pth", "--config", "none.json"], "none.json: no such file"),
        (["c.pth"], "either --recipe NAME or --config JSON"),
        (["c.pth", "--recipe", "r.yaml", "--config", "c.json"], "either --recipe"),
        (["c.pth", "--recipe", "r.yaml"], "--set data.image_size"),
        (
            ["c.pth", "--recipe", "r.yaml", "--set", "data.image_size=16",
             "--set", "network.options.blocks_per_level=2"],
            "missing all_modules.",
        ),
        (["c.pth", "--config", "c.json", "--conditioning", "log_sgma"], "did you mean 'log_sigma'"),
        (["c.pth", "--config", "c.json", "--conditioning", "unbounded_time"], "VP or sub-VP"),
        (["c.pth", "--config", "c.json", "--weights", "mean"], "not one of 'ema', 'raw'"),
    ],
)  # fmt: skip
def test_mistakes_leave_nothing_behind(files, capsys, arguments, part):
    (files / "r.yaml").write_text(RECIPE)
    assert main(["import", *arguments, "--out", "run"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert part in lines[0]
    assert not (files / "run").exists()


def test_a_taken_folder_is_refused(files, capsys):
    arguments = ["import", "c.pth", "--config", "c.json", "--out", "run"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err


def recipe(changes, **sections):
    config = configuration(changes)
    for name, values in sections.items():
        config[name] = config.get(name, {}) | values
    return recipe_of_public_config(config, name="r")


def test_a_configuration_in_the_words_of_a_recipe():
    got = recipe(
        {"model.sigma_max": 50, "model.lsgm": True, "model.embedding_dim": 12, "model.nf": 16},
        data={"random_flip": False, "dequantization": "uniform"},
        training={
            "st": True,
            "k": 0.9,
            "mixed": True,
            "ddpm_weight": 100.0,
            "reduce_mean": True,
            "truncation_time": 1e-4,
            "n_iters": 7,
        },
        optim={"lr": 1e-3, "beta1": 0.8, "warmup": 10, "grad_clip": -1.0},
        sampling={"method": "pc", "corrector": "none", "predictor": "euler_maruyama", "snr": 0.2},
    )
    assert (got.sde.kind, got.truncation.k, got.truncation.eps) == ("vp", 0.9, 1e-4)
    assert (got.objective.weighting, got.objective.mixed.coefficient) == ("mixed", 100.0)
    assert got.objective.reduction == "mean"
    assert got.network.preset == "ddpmpp"
    assert got.network.options["embedding_size"] == 12
    assert "dropout" not in got.network.options  # as in the preset
    assert (got.data.flip, got.data.dequantize, got.data.image_size) == (False, True, 16)
    assert (got.training.learning_rate, got.training.betas) == (1e-3, (0.8, 0.999))
    assert (got.training.grad_clip, got.training.steps) == (None, 7)
    assert (got.sampling.sampler, got.sampling.corrector_steps) == ("pc", 0)
    assert (got.sampling.predictor, got.sampling.steps) == ("euler_maruyama", 1000)


@pytest.mark.parametrize(
    ("changes", "training", "k"),
    [
        ({}, {}, math.inf),
        ({}, {"st": True}, 1.0),
        (VE, {"st": True}, 2.0),
        (VE | {"training.sde": "rvesde"}, {"st": True, "k": 1.0}, 2.0),
    ],
)
def test_soft_truncation_as_it_was_meant(changes, training, k):
    assert recipe(changes, training=training).truncation.k == k


def test_what_no_recipe_says():
    with pytest.raises(ValueError, match=r"data\.centered = False"):
        recipe({"data.centered": False})


def test_every_constant_that_decides_a_figure_is_kept():
    rve = VE | {"training.sde": "reciprocal_vesde", "model.sigma_min": 1e-3}
    got = recipe(
        rve,
        data={"dataset": "CELEBA"},
        training={"truncation_time": 2e-5, "eta": 1e-3},
        sampling={"method": "ode", "truncation_time": 3e-5, "noise_removal": False, "rtol": 1e-4},
        eval={"atol": 1e-6},
    )
    # 98.9 % of times uniform in t would see sigma_max.
    assert (got.objective.times, got.objective.average) == ("log_snr", True)
    assert (got.truncation.eps, got.sde.eps, got.evaluation.eps) == (2e-5, 2e-5, 2e-5)
    assert (got.sampling.t_end, got.sampling.denoise_final) == (3e-5, False)
    assert (got.sampling.rtol, got.sampling.atol) == (1e-4, 1e-5)
    solver = got.evaluation.solver, got.evaluation.rtol, got.evaluation.atol
    assert solver == ("rk45", 1e-5, 1e-6)
    assert got.evaluation.resize == "clean"
    assert recipe({}, data={"dataset": "CIFAR10"}).evaluation.resize == "legacy"
    assert recipe(VE).objective.times == "uniform"
    pc = recipe({}, sampling={"method": "pc", "truncation_time": 1e-3})
    assert (pc.sampling.sampler, pc.sampling.t_end) == ("pc", 1e-3)


def adam(content, frozen_too):
    """An optimiser's state whose moments are told by the weights; the frozen have a number only."""
    weights = {k: v for k, v in content["model"].items() if not k.endswith("sigmas")}
    trained = [v for k, v in weights.items() if not k.endswith("modules.0.W")]
    numbered = enumerate(weights.values() if frozen_too else trained)
    slots = {
        i: {"step": torch.tensor(77.0), "exp_avg": 0.1 * w, "exp_avg_sq": w.square()}
        for i, w in numbered
        if any(w is v for v in trained)
    }
    group = {"lr": 1e-3, "params": list(range(len(weights if frozen_too else trained)))}
    return {"state": slots, "param_groups": [group]}


@pytest.mark.parametrize("frozen_too", [True, False])
def test_moments_of_adam_go_on(files, capsys, frozen_too):
    content = torch.load("c.pth")
    arguments = ["import", "c.pth", "--config", "c.json"]
    assert main([*arguments, "--out", "fresh"]) == 0
    assert "training would go on with fresh ones" in capsys.readouterr().err
    torch.save(content | {"optimizer": adam(content, frozen_too)}, "c.pth")
    assert main([*arguments, "--out", "run"]) == 0
    assert "fresh" not in capsys.readouterr().err
    folder = files / "run" / "checkpoints" / "step-00001234"
    weights = load_file(folder / "model.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    trained = {k: v for k, v in weights.items() if not k.endswith("frequencies")}
    assert moments.keys() == {
        f"{name}:{slot}" for name in trained for slot in ("step", "exp_avg", "exp_avg_sq")
    }
    for name, weight in trained.items():
        torch.testing.assert_close(moments[f"{name}:exp_avg"], 0.1 * weight)
        torch.testing.assert_close(moments[f"{name}:exp_avg_sq"], weight.square())
        assert moments[f"{name}:step"] == 77


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda a: a["param_groups"][0]["params"].clear(), "of 0 parameters instead of"),
        (lambda a: a["state"].pop(5), "exp_avg: missing all_modules."),
        (lambda a: a["state"][5]["exp_avg"].fill_(math.nan), "values that are not finite"),
        (lambda a: a["state"][5]["exp_avg_sq"].fill_(-1.0), "holds negative numbers"),
        (lambda a: a["state"][5].pop("exp_avg_sq"), "exp_avg_sq: all_modules"),
    ],
)
def test_moments_that_do_not_fit_are_refused(files, capsys, change, part):
    content = torch.load("c.pth")
    content["optimizer"] = adam(content, True)
    change(content["optimizer"])
    torch.save(content, "c.pth")
    assert main(["import", "c.pth", "--config", "c.json", "--out", "run"]) == 2
    assert part in capsys.readouterr().err
    assert not (files / "run").exists()


@pytest.mark.parametrize("name", ["ncsnv2_64", "ncsn"])
def test_a_network_of_another_family_is_told_by_name(files, capsys, name):
    config = configuration(VE)
    config["model"] = {"name": name, "nf": 128}
    (files / "c.json").write_text(json.dumps(config))
    assert main(["import", "c.pth", "--config", "c.json", "--out", "run"]) == 2
    assert f"model.name = '{name}': only networks of the ncsnpp family" in capsys.readouterr().err
