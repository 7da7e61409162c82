"""`softtrunc import FOLDER`: a pipeline of diffusers is a run like any other."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from pipelines import SCHEDULES, diffusers, pipeline, unet
from safetensors.torch import load_file, save_file

from softtrunc import ScoreModel
from softtrunc.cli import main
from softtrunc.feedback.locks import only_one
from softtrunc.interop import from_diffusers
from softtrunc.jobs.import_pipeline import is_pipeline
from softtrunc.recipes.build import build_sde
from softtrunc.runs.open_run import open_run

pytestmark = pytest.mark.usefixtures("unchecked")

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.001, 0.8])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pipelines, the run of one of them and some images."""
    place = tmp_path_factory.mktemp("import")
    for name, schedule in SCHEDULES.items():
        pipeline(**schedule).save_pretrained(place / name)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    np.save(place / "images.npy", images)
    return place


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_run_has_the_model(folder, tmp_path, capsys, name):
    assert main(["import", str(folder / name), "--out", str(tmp_path / "run")]) == 0
    assert "densities end at the first step" in capsys.readouterr().err
    opened, truth = open_run(tmp_path / "run"), from_diffusers(folder / name)
    first = 1 / truth.sde.steps
    assert opened.model.sde == truth.sde == build_sde(opened.recipe)
    assert (opened.recipe.truncation.eps, opened.recipe.evaluation.eps) == (first, first)
    assert opened.recipe.truncation.hard
    t = T.clamp(min=first)
    assert torch.equal(opened.model.cpu().score(X, t), truth.score(X, t))


def test_it_is_sampled_measured_taken_apart_trained_on_and_exported(folder, tmp_path):
    run, data = str(tmp_path / "run"), ["--data", str(folder / "images.npy")]
    assert main(["import", "epsilon", "--out", run]) == 0
    drawn = str(tmp_path / "drawn.npz")
    assert main(["sample", run, "-n", "2", "--steps", "2", "--out", drawn]) == 0
    assert np.load(drawn)["images"].shape == (2, 8, 8, 3)
    few = ["--set", "evaluation.nelbo_draws=2", "--set", "evaluation.figures=[nelbo]"]
    assert main(["evaluate", run, "--bpd", "--limit", "2", "--split", "train", *data, *few]) == 0
    (figure,) = json.loads((tmp_path / "run/evaluation.json").read_text())["figures"]
    assert figure["protocol"]["eps"] == 1e-3  # where a model of 1,000 steps ends
    small = ["--images", "4", "--draws", "2", "--bins", "4", "--split", "train"]
    assert main(["anatomy", run, *data, *small]) == 0
    assert main(["export", run]) == 0
    again = ScoreModel.from_pretrained(tmp_path / "run/export")
    assert type(again.network) is diffusers.UNet2DModel
    on = [*data, "--set", "training.steps=2", "--set", "training.batch_size=4"]
    soft = ["--set", "truncation.k=1", "--set", "truncation.eps=1e-5"]
    command = ["train", str(tmp_path / "run/recipe.yaml"), "--out", str(tmp_path / "more")]
    assert main([*command, *on, *soft]) == 0


def test_a_dry_run_knows_its_cost(folder, tmp_path, capsys):
    assert main(["import", "sample", "--out", str(tmp_path / "run")]) == 0
    assert main(["train", str(tmp_path / "run/recipe.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    count = sum(p.numel() for p in unet().parameters())
    assert f"{count:,}" in said


def test_a_run_is_imported_by_one(folder, tmp_path, capsys):
    run = tmp_path / "run"
    for source, options in (("sample", []), ("x.pth", ["--recipe", "cifar10-ddpmpp-vp-nll-st"])):
        with only_one(run, "busy there"):
            assert main(["import", source, "--out", str(run), *options]) == 2
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert f"{run}: another process is importing to it" in line
            assert not run.exists()
    assert main(["import", "sample", "--out", str(run)]) == 0
    assert not list(tmp_path.glob(".*.partial"))


def test_the_words_of_the_hub():
    assert is_pipeline("hf://google/ddpm-cifar10-32")
    assert not is_pipeline("checkpoint.pth")


def a_pipeline_of_classes(folder, place):
    pipeline(unet(num_class_embeds=3)).save_pretrained(place)


def another_size(folder, place):
    shutil.copytree(folder / "epsilon", place)
    config = place / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [4, 16]}))


def changed(file, **values):
    """A pipeline with other values in a file."""

    def make(folder, place):
        shutil.copytree(folder / "epsilon", place)
        config = place / file
        config.write_text(json.dumps(json.loads(config.read_text()) | values))

    return make


def weights_of_another_type(folder, place):
    shutil.copytree(folder / "epsilon", place)
    file = place / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: value.cfloat() for name, value in load_file(file).items()}, file)


NETWORK, SCHEDULE = "unet/config.json", "scheduler/scheduler_config.json"


def no_index(folder, place):
    place.mkdir()


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (a_pipeline_of_classes, [], "the network is told classes"),
        (another_size, [], "does not fit the network"),
        (no_index, [], "no pipeline of diffusers (no model_index.json)"),
        (weights_of_another_type, [], "has type torch.complex64 instead of torch.float32"),
        (changed(NETWORK, layers_per_block=10**9), [], "layers_per_block = 1000000000: need"),
        (changed(NETWORK, dropout=math.nan), [], "dropout = nan: need a finite number"),
        (changed(NETWORK, center_input_sample="yes"), [], "'yes': need true or false"),
        (changed(SCHEDULE, num_train_timesteps=10**12), [], "steps: need 2 to 100,000"),
        (changed(SCHEDULE, num_train_timesteps=-3), [], "-3 steps: need 2 to 100,000"),
        (changed(SCHEDULE, prediction_type=["epsilon"]), [], "is unknown: only epsilon"),
        (None, ["--recipe", "x"], "--recipe: a pipeline says what model it is"),
        (None, ["--weights", "raw"], "--weights: a pipeline says what model it is"),
        (None, ["--set", "network.options.block_out_chanels=[8]"], "unknown argument"),
    ],
)
def test_mistakes_leave_nothing_behind(folder, tmp_path, capsys, make, options, said):
    source = folder / "epsilon"
    if make is not None:
        source = tmp_path / "theirs"
        make(folder, source)
    out = tmp_path / "run"
    assert main(["import", str(source), "--out", str(out), *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not out.exists()


def test_a_repository_is_named_by_its_owner_too(tmp_path, capsys):
    assert main(["import", "hf://ddpm", "--out", str(tmp_path / "run")]) == 2
    assert "write hf://OWNER/NAME" in capsys.readouterr().err


# {"ema": torch_utils.persistence._reconstruct_persistent_obj()}, as pickle writes it.
EDM = b"\x80\x02}X\x03\x00\x00\x00emactorch_utils.persistence\n_reconstruct_persistent_obj\n)Rs."


def test_pickles_of_edm_are_refused_with_what_to_do(tmp_path, capsys):
    (tmp_path / "edm.pkl").write_bytes(EDM)
    out = tmp_path / "run"
    assert main(["import", str(tmp_path / "edm.pkl"), "--recipe", "cifar10-edm",
                 "--out", str(out)]) == 2  # fmt: skip
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "a pickled network of EDM, whose code would run" in line
    assert "give its net.model to ScoreModel" in line
    assert not out.exists()
