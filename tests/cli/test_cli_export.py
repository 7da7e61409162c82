"""`softtrunc export`: a run leaves as files that others read, whole or not at all."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import yaml
from command_line import TINY

from softtrunc import ScoreModel
from softtrunc.cli import main
from softtrunc.interop import noise_levels
from softtrunc.jobs import export as export_command
from softtrunc.recipes import load_recipe
from softtrunc.runs.open_run import open_run

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps with one grid of samples and an evaluation of its own making."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    command = ["train", "digits-vp-nll-st", "--out", str(folder), *TINY]
    sampling = ["training.sample_every=3", "sampling.steps=2"]
    changes = ["training.steps=3", "training.ema_rate=0.5", *sampling]
    assert main([*command, *(word for change in changes for word in ("--set", change))]) == 0
    evaluation = {
        "step": 3,
        "weights": "ema",
        "figures": [
            {
                "key": "nll",
                "name": "bits/dim without residual",
                "value": 5.25,
                "standard_error": 0.125,
                "unit": "bits/dim",
                "protocol": {"split": "test", "n": 360, "solver": {"name": "rk45", "order": None}},
            }
        ],
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def state(model):
    return {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_exported_model_is_the_runs_to_the_bit(run, tmp_path, weights):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--weights", weights]) == 0
    opened = open_run(run, weights=weights)
    ours, theirs = state(opened.model), state(ScoreModel.from_pretrained(out))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    settings = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert settings["_class_name"] == "DDIMScheduler"
    levels = noise_levels(opened.model.sde, opened.model.value_range)
    assert settings["trained_betas"] == levels.betas


LOAD = """
import sys, torch
from diffusers import DiffusionPipeline
from softtrunc.interop import DiffusersUNet  # brings the class that the folder names
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
out = pipeline(batch_size=2, num_inference_steps=3, generator=generator, output_type="np")
print(type(pipeline).__name__, type(pipeline.unet).__name__, out.images.shape)
"""


def test_diffusers_opens_the_folder_as_a_pipeline(run, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is an extra: softtrunc[hub]")
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out)]) == 0
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "DDIMPipeline DiffusersUNet (2, 8, 8, 1)"


def test_the_card_tells_recipe_data_and_figures(run, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out)]) == 0
    text = (out / "README.md").read_text()
    opened = open_run(run)
    assert f"`{opened.card.fingerprint}`" in text
    assert "| bits/dim without residual | 5.250 ± 0.125 bits/dim | split: test; n: 360" in text
    assert "solver: name rk45" in text
    assert "None is chosen for these weights" in text
    assert 'from_pretrained("PATH OR OWNER/NAME")' in text
    assert "| source | scikit-learn" in text
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "softtrunc"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0] == {
        "type": "nll",
        "name": "bits/dim without residual",
        "value": 5.25,
    }
    recipe = load_recipe(str(out / "recipe.yaml"))
    assert recipe == opened.recipe
    block = text.split("```yaml\n")[1].split("```")[0]
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    provenance = written.pop("provenance")
    assert yaml.safe_load(block) == written
    assert (provenance["step"], provenance["data"]["levels"]) == (opened.step, opened.card.levels)
    assert (out / "samples.png").read_bytes() == (run / "samples/step-00000003.png").read_bytes()
    from huggingface_hub import ModelCard

    assert ModelCard(text).data.eval_results[0].metric_value == 5.25


def test_the_card_names_licence_and_place(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_command, "push_export", lambda *_, **__: "there")
    out = tmp_path / "out"
    options = ["--license", "cc-by-4.0", "--push", "someone/model"]
    assert main(["export", str(run), "--out", str(out), *options]) == 0
    text = (out / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "cc-by-4.0"
    assert "The weights: cc-by-4.0." in text
    assert 'from_pretrained("someone/model")' in text


def test_figures_of_other_weights_stay_out(run, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--weights", "raw"]) == 0
    text = (out / "README.md").read_text()
    assert "5.25" not in text
    assert "Nothing has been measured on these weights" in text
    assert not (out / "evaluation.json").exists()


def test_unless_told_it_goes_into_the_run(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert main(["export", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "export")
    assert (copy / "export" / "config.json").is_file()


def test_a_taken_place_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "file"):
        assert main(["export", str(run), "--out", str(place)]) == 2
        assert "exists and is not empty" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_no_run_no_export(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no run here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_hub_out_of_reach_keeps_the_folder(run, tmp_path, capsys, monkeypatch):
    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, *_, **__):
            raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--push", "someone/model"]) == 2
    error = capsys.readouterr().err.strip()
    assert "--push someone/model: no route to host: the model is in" in error
    assert len(error.splitlines()) == 1
    assert (out / "model.safetensors").is_file()
