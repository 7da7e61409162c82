"""A run on floats that are no images, end to end: every command says what they are, or refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from softtrunc.cli import main
from softtrunc.data import from_model
from softtrunc.jobs.anatomy import anatomy
from softtrunc.jobs.plan import describe
from softtrunc.jobs.train import train
from softtrunc.objective import SoftTruncationLoss
from softtrunc.recipes import UserError, load_recipe
from softtrunc.recipes.build import build_sampler
from softtrunc.records import read_evaluation
from softtrunc.runs.draw import draw_to
from softtrunc.runs.open_run import open_run

pytestmark = pytest.mark.usefixtures("unchecked")

RANGE = (-6.0, 10.0)
SETTINGS = [
    "data={value_range: [-6, 10], labels: true}",
    "network={preset: tiny, options: {base_channels: 8}}",
    "training={steps: 4, batch_size: 8, sample_every: 4, samples: 4}",
    "sampling={sampler: dpm_solver, steps: 3}",
    "evaluation={rtol: 0.1, atol: 0.1, solver_check: 0, nelbo_draws: 2}",
]


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    x = (2.0 + torch.randn(48, 5, 4, 4, generator=torch.Generator().manual_seed(0))).clamp(-6, 10)
    y = torch.arange(48) % 3
    tensors = {"x_train": x[:40], "y_train": y[:40], "x_test": x[40:], "y_test": y[40:]}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def recipe(latents):
    return load_recipe("latents-small", [*SETTINGS, f"data.source={latents}"])


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("floats") / "run"
    train(recipe, folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def refusal(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_recipe_knows_floats_by_their_range(recipe, latents):
    assert (recipe.data.flip, recipe.data.dequantize) == (False, False)
    assert recipe.evaluation.figures == ("nll_continuous", "nelbo_continuous")
    assert "40 tensors of floats of 5 x 4 x 4" in describe(recipe)
    for setting, why in [
        ("data.flip=true", "not mirrored: write flip: false"),
        ("data.dequantize=true", "not dequantised: write dequantize: false"),
        ("data.value_range=[1, -1]", "the low one first"),
        ("data.value_range=[0, inf]", "the low one first"),
        ("data.preset=cifar10", "preset=cifar10: is of images"),
        ("evaluation.figures=[nll]", "not on a grid: density yes, bits/dim no: write nll_cont"),
        ("evaluation.features=inception", "features are of images"),
    ]:
        with pytest.raises(UserError, match=why):
            load_recipe("latents-small", [*SETTINGS, setting])
    with pytest.raises(UserError, match="nll_continuous: is of floats"):
        load_recipe("digits-vp-nll", ["evaluation.figures=[nll_continuous]"])
    with pytest.raises(UserError, match="channels=4: images have 1 or 3"):
        load_recipe("folder-32", ["data.channels=4"])


def test_the_model_learns_of_the_declared_range(run, recipe, latents):
    opened = open_run(run)
    assert opened.card.value_range == RANGE
    assert opened.card.classes == ("0", "1", "2")
    assert opened.event == (5, 4, 4)
    with Image.open(run / "samples" / "data.png") as picture:
        # Three classes side by side, each four channels of four columns with lines between.
        scale = 64 // 19
        assert picture.size == (3 * (19 * scale + 2) + 2, 2 * (4 * scale + 2) + 2)
        assert picture.mode == "L"
    assert (run / "samples" / "step-00000004.png").is_file()


def test_training_goes_on_with_the_same_range_alone(copy, recipe, latents):
    longer = load_recipe("latents-small", [*SETTINGS, f"data.source={latents}", "training.steps=5"])
    assert train(longer, copy, resume=True).step == 5
    wider = [*SETTINGS, f"data.source={latents}", "data.value_range=[-7, 10]", "training.steps=6"]
    with pytest.raises(UserError, match=r"data\.value_range"):
        train(load_recipe("latents-small", wider), copy, resume=True)


def test_the_loss_is_of_the_values_in_the_models_range(recipe, monkeypatch, tmp_path):
    """What the loop hands to the model is the stored value, mapped: its mean says so."""
    seen = []
    call = SoftTruncationLoss.__call__

    def watched(self, model, x, **options):
        seen.append(x)
        return call(self, model, x, **options)

    monkeypatch.setattr(SoftTruncationLoss, "__call__", watched)
    train(recipe, tmp_path / "run")
    x = torch.cat(seen)
    stored = load_file(recipe.data.source)["x_train"]
    expected = (stored - 2.0) / 8.0  # [-6, 10] onto [-1, 1]
    assert x.amin() >= expected.amin() - 1e-6
    assert x.amax() <= expected.amax() + 1e-6
    rows = {tuple(round(float(v), 4) for v in row[0, 0]) for row in expected}
    assert {tuple(round(float(v), 4) for v in row[0, 0]) for row in x} <= rows


def test_samples_are_floats_in_the_units_of_the_data(copy, capsys):
    for name in ("a.npy", "b.safetensors"):
        draw_to(copy, 7, copy / name, seed=3, batch_size=3)
    drawn = np.load(copy / "a.npy")
    assert (drawn.shape, drawn.dtype) == ((7, 5, 4, 4), np.float32)
    assert np.array_equal(load_file(copy / "b.safetensors")["samples"].numpy(), drawn)
    opened = open_run(copy)
    part = range(3)
    sampler = build_sampler(opened.recipe.sampling, opened.model.sde)
    x = sampler.sample(opened.drawn_from(part), (3, 5, 4, 4), seeds=[3, 4, 5]).x
    assert torch.equal(
        from_model(x, opened.card, opened.model.value_range), torch.tensor(drawn[:3])
    )
    assert np.allclose(drawn[:3], 2.0 + 8.0 * x.numpy(), atol=1e-4)
    told = json.loads((copy / "a.npy.json").read_text())
    assert told["value_range"] == list(RANGE)
    assert main(["sample", str(copy), "-n", "2"]) == 0
    assert "2 samples in" in capsys.readouterr().err
    assert np.load(copy / "samples" / "drawn.npy").shape == (2, 5, 4, 4)
    for name in ("pictures", "a.zip", "a.npz", "a.png"):
        line = refusal(capsys, "sample", copy, "-n", 2, "--out", copy / name)
        assert "the samples are floats, no images: write a file that ends in .npy" in line
    assert main(["sample", str(copy), "-n", "2", "--trajectory", str(copy / "t.png")]) == 0


def test_density_yes_bits_no_distances_no(copy, capsys):
    assert main(["evaluate", str(copy), "--bpd"]) == 0
    assert "bits/dim of density" in capsys.readouterr().out
    figures = read_evaluation(copy / "evaluation.json").figures
    assert [figure.key for figure in figures] == ["nll_continuous", "nelbo_continuous"]
    assert {figure.unit for figure in figures} == {"bits/dim of density"}
    assert {figure.protocol["given"] for figure in figures} == {"each image's class"}
    line = refusal(capsys, "evaluate", copy, "--bpd", "--dequantization", "uniform")
    assert "not on a grid: density yes, bits/dim no" in line
    for option in ("--fid", "--is", "--kid", "--prdc", "--intra-fid"):
        assert "features are of images" in refusal(capsys, "evaluate", copy, option)
    assert main(["report", str(copy), "--out", str(copy / "r.html")]) == 0
    page = (copy / "r.html").read_text()
    assert "bits/dim of density" in page
    assert "the first four channels side by side in grey" in page
    assert "floats within [-6.0, 10.0]" in page


def test_the_anatomy_is_that_of_the_density(copy):
    found = anatomy([copy], images=8, bins=4, times=2)
    (run,) = found.runs
    assert found.unit == "bits/dim of density"
    assert run.offset == pytest.approx(3.0)  # of the range 16 wide onto one 2 wide
    parts = [part.bits_per_dim for part in run.bins]
    total = run.prior + run.residual + run.offset + sum(parts)
    assert total == pytest.approx(run.total_bits_per_dim)
    assert "bits/dim of density" in (copy / "anatomy" / "anatomy.html").read_text()


def test_what_is_of_images_is_refused_or_left_out(copy, capsys):
    line = refusal(capsys, "edit", "interpolate", copy, "--seed", 1, "--seed", 2, "--out", "a.png")
    assert "edits are of images, and this run's data are floats" in line
    assert main(["export", str(copy), "--out", str(copy / "out")]) == 0
    names = {path.name for path in (copy / "out").iterdir()}
    assert "model.safetensors" in names
    assert not {"model_index.json", "scheduler"} & names
    card = (copy / "out" / "README.md").read_text()
    assert "floats in [-6, 10], mapped linearly" in card
    assert "image-generation" not in card


def test_levels_saved_as_floats_have_no_density(tmp_path, capsys):
    x = torch.randint(0, 200, (80, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 255.0
    save_file({"x_train": x, "x_test": x.clone()}, tmp_path / "a.safetensors")
    settings = [*SETTINGS, "data={value_range: [0, 1], labels: false}"]
    recipe = load_recipe("latents-small", [*settings, f"data.source={tmp_path}/a.safetensors"])
    train(recipe, tmp_path / "run")
    line = refusal(capsys, "evaluate", tmp_path / "run", "--bpd")
    assert "save the levels as uint8 images" in line


def test_inspect_and_prepare_say_that_they_are_no_images(latents, capsys, tmp_path):
    assert main(["data", "inspect", str(latents), "--grid", str(tmp_path / "g.png")]) == 0
    out = capsys.readouterr().out
    assert "no images" in out
    assert "48: 40 train, 8 test" in out
    assert "--set data.value_range=[" in out
    assert (tmp_path / "g.png").is_file()
    line = refusal(capsys, "data", "prepare", latents, "--out", tmp_path / "p")
    assert "need no preparing" in line
    line = refusal(capsys, "train", "latents-small", "--data", latents, "--out", tmp_path / "r")
    assert "say in which range all values lie" in line
    assert not (tmp_path / "r").exists()
