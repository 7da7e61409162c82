"""Training that starts from the weights of another run or of a saved model."""

from __future__ import annotations

import shutil
from contextlib import nullcontext as nothing

import pytest
import torch
from safetensors.torch import load_file

from softtrunc import VPSDE, ScoreModel
from softtrunc.cli import main
from softtrunc.feedback.errors import UserError
from softtrunc.jobs.start import Start
from softtrunc.networks import ScoreUNet, preset
from softtrunc.records import read_recipe

pytestmark = pytest.mark.usefixtures("unchecked")

SMALL = ["network.options={base_channels: 8}", "training.batch_size=8", "training.samples=2"]
SMALL += ["training.warmup_steps=0", "training.sample_every=null"]
# A step so short that it leaves float32 weights as they are.
STILL = "training.learning_rate=1e-30"


def train(out, *words, steps=1, recipe="digits-vp-nll-st", sets=(STILL,)):
    told = [word for each in (*SMALL, *sets) for word in ("--set", each)]
    return main(["train", recipe, "--out", str(out), "--steps", str(steps), *told, *words])


def state(run, name, step=1):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Two steps whose average differs from the last weights."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert train(folder, steps=2, sets=("training.learning_rate=1e-2",)) == 0
    assert not same(state(folder, "model", 2), state(folder, "ema", 2))
    return folder


def test_fine_tuning_starts_from_the_average_with_a_fresh_optimiser(first, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "--init-from", str(first)) == 0
    assert f"run starts from {first}" in capsys.readouterr().err
    assert same(state(run, "model"), state(first, "ema", 2))
    assert same(state(run, "ema"), state(first, "ema", 2))
    steps = [v for name, v in state(run, "optimizer").items() if name.endswith(":step")]
    assert {float(step) for step in steps} == {1.0}
    told = read_recipe(run / "recipe.yaml").provenance["init_from"]
    assert (told["source"], told["step"], told["weights"]) == (str(first), 2, "ema")
    assert told["data"] == "digits"
    # A kill before the first checkpoint: the run begins again where it began.
    before = state(run, "model")
    shutil.rmtree(run / "checkpoints")
    assert train(run, "--resume") == 0
    assert same(state(run, "model"), before)
    assert main(["export", str(run), "--out", str(tmp_path / "export")]) == 0
    card = (tmp_path / "export" / "README.md").read_text()
    assert "started from the weights of `first`, trained on digits." in card
    # A saved model gives the same start.
    assert train(tmp_path / "two", "--init-from", str(tmp_path / "export")) == 0
    assert same(state(tmp_path / "two", "model"), before)


def test_kept_moments_go_on_from_the_last_weights(first, tmp_path):
    run = tmp_path / "run"
    assert train(run, "--init-from", str(first), "--keep-optimizer") == 0
    assert same(state(run, "model"), state(first, "model", 2))
    assert not same(state(run, "ema"), state(run, "model"))
    old, new = state(first, "optimizer", 2), state(run, "optimizer")
    assert old.keys() == new.keys()
    for name, moment in old.items():
        if name.endswith(":step"):
            assert (float(moment), float(new[name])) == (2.0, 3.0)
        elif name.endswith(":exp_avg_sq"):  # what is left of it, and a square
            assert bool((new[name] >= 0.99899 * moment).all()), name


@pytest.fixture(scope="module")
def saved(first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    assert main(["export", str(first), "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "network.options={base_channels: 16}"], "base_channels was 8, is 16"),
        (["--set", "network.conditioning=unbounded_time"], "conditioning was time, is unbounded"),
        (["--set", "sde={kind: ve}"], "value_range was (-1.0, 1.0), is (0.0, 1.0)"),
        (["--init-from", "SAVED", "--keep-optimizer"], "--keep-optimizer: no run"),
        (["--init-from", "no/where/at/all"], "no such folder"),
        (["--init-from", "fashion16"], "--init-from fashion16: another model"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(first, saved, tmp_path, capsys, words, told):
    words = [str(saved) if word == "SAVED" else word for word in words]
    words = words if "--init-from" in words else ["--init-from", str(first), *words]
    assert train(tmp_path / "run", *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("prediction", "refused"), [("edm", True), ("noise", False)])
def test_the_scale_of_the_data_decides_only_where_the_prediction_depends_on_it(
    tmp_path, prediction, refused
):
    def model(sigma_data):
        network = ScoreUNet(preset("tiny", channels=1, image_size=8, base_channels=8))
        return ScoreModel(network, VPSDE(), prediction=prediction, sigma_data=sigma_data)

    model(0.5).save_pretrained(tmp_path / "saved")
    told = pytest.raises(UserError, match=r"sigma_data was 0.5, is 0.25") if refused else nothing()
    with told:
        Start(str(tmp_path / "saved")).fill(model(0.25))


def test_a_run_that_started_from_elsewhere_is_not_gone_on_with(first, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(first, run)
    words = ["--resume", "--init-from", str(first)]
    assert train(run, *words, steps=2, sets=("training.learning_rate=1e-2",)) == 2
    assert "this run started from random weights" in capsys.readouterr().err
    assert train(tmp_path / "new", "--keep-optimizer") == 2
    assert "belongs to --init-from" in capsys.readouterr().err


def test_weights_that_changed_under_a_run_are_not_begun_from_again(first, tmp_path, capsys):
    run, source = tmp_path / "run", tmp_path / "source"
    shutil.copytree(first, source)
    assert train(run, "--init-from", str(source)) == 0
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(source)
    assert train(source, steps=1, sets=("training.seed=5",)) == 0
    assert train(run, "--resume") == 2
    assert "has changed since" in capsys.readouterr().err


def test_the_model_that_ships_can_be_trained_on(tmp_path):
    settings = ("data.source=fashion16", STILL)
    recipe = "fashion16"
    options = [s for s in SMALL if not s.startswith("network")]
    told = [word for each in (*options, *settings) for word in ("--set", each)]
    words = ["--steps", "1", "--init-from", "fashion16", "--out", str(tmp_path / "run")]
    assert main(["train", recipe, *words, *told]) == 0
    theirs = ScoreModel.from_pretrained("fashion16").state_dict()
    assert same(state(tmp_path / "run", "model"), dict(theirs))
