"""Exported models as runs, and the model that ships."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from softtrunc import ScoreModel
from softtrunc.cli import main
from softtrunc.data import DataCard
from softtrunc.feedback.progress import Silent
from softtrunc.hub import shipped_folder, shipped_names
from softtrunc.jobs.adopt import adopt
from softtrunc.jobs.card import model_card
from softtrunc.recipes import UserError
from softtrunc.recipes.load import parse_recipe
from softtrunc.records import read_evaluation, read_recipe
from softtrunc.runs.draw import draw
from softtrunc.runs.open_run import open_run

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["network.options={base_channels: 8}", "training.batch_size=16"]
    options += ["training.steps=2", "training.samples=4", "training.warmup_steps=0"]
    command = ["train", "digits-vp-nll-st", "--out", str(folder)]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    return folder


def test_an_export_becomes_the_run_it_was(run, tmp_path):
    assert main(["export", str(run), "--out", str(tmp_path / "export")]) == 0
    adopted = adopt(tmp_path / "export", tmp_path / "again")
    ours, theirs = open_run(run), open_run(adopted.path)
    assert (theirs.step, theirs.card, theirs.recipe) == (ours.step, ours.card, ours.recipe)
    for name, value in ours.model.state_dict().items():
        assert torch.equal(theirs.model.state_dict()[name], value), name
    drawn = [draw(opened, 3, progress=Silent()).images for opened in (ours, theirs)]
    assert torch.equal(*drawn)
    with pytest.raises(UserError, match="holds a run already"):
        adopt(tmp_path / "export", adopted.path)


def test_an_export_without_its_data_card_is_no_run(run, tmp_path):
    main(["export", str(run), "--out", str(tmp_path / "export")])
    recipe = tmp_path / "export" / "recipe.yaml"
    recipe.write_text(recipe.read_text().split("provenance:")[0])
    with pytest.raises(UserError, match=r"recipe\.yaml|export"):
        adopt(tmp_path / "export", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", shipped_names())
def test_what_ships_is_small_and_works_by_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ScoreModel.from_pretrained(name)
    assert sum(p.numel() for p in model.parameters()) * 4 < 4_000_000
    assert main(["sample", name, "-n", "2", "--steps", "2", "--out", "drawn.npz"]) == 0
    assert main(["evaluate", name, "--bpd", "--limit", "2", "--set", "evaluation.eps=1e-3"]) == 0
    made = tmp_path / "runs" / f"{name}-shipped"
    content = json.loads((made / "evaluation.json").read_text())
    assert {f["key"] for f in content["figures"]} >= {"nelbo", "frechet_distance"}
    assert main(["export", name, "--out", "copy"]) == 0
    again = ScoreModel.from_pretrained(tmp_path / "copy")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    loose = ["--set", "evaluation.rtol=0.1", "--set", "evaluation.atol=0.1"]
    assert main(["edit", "encode", name, "-n", "1", "--out", "latents.npz", *loose]) == 0
    filled = ["edit", "inpaint", name, "-n", "1", "--variants", "1", "--steps", "2"]
    assert main([*filled, "--out", "filled.png"]) == 0
    with np.load("latents.npz") as latents, Image.open("filled.png") as picture:
        assert latents["latents"].shape == (1, 1, 16, 16)
        assert min(picture.size) >= 16
    small = ["-n", "2", "--bins", "2", "--draws", "1", "--times", "1", "--set", "sampling.steps=2"]
    assert main(["anatomy", name, *small]) == 0
    (taken_apart,) = json.loads((made / "anatomy" / "anatomy.json").read_text())["runs"]
    assert len(taken_apart["bins"]) == 2
    assert main(["sample", "no-such-model"]) == 2
    assert "no run here" in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_names())
def test_the_card_of_what_ships_is_what_export_writes(name):
    folder = shipped_folder(name)
    record = read_recipe(folder / "recipe.yaml")
    card = model_card(
        parse_recipe(record.settings, name),
        DataCard.from_dict(record.provenance["data"]),
        ScoreModel.from_pretrained(name),
        read_evaluation(folder / "evaluation.json"),
        title=name,
        step=record.provenance["step"],
        weights="ema",
        picture="samples.png",
        licence="apache-2.0",
        source=name,
    )
    shown = (folder / "README.md").read_text()
    # Keys that recipes have since been given are not in its own.
    assert shown.partition("## Recipe")[0] == card.partition("## Recipe")[0]
    for told in (f'from_pretrained("{name}")', "license: apache-2.0", "MIT licence"):
        assert told in shown


def test_a_folder_comes_before_a_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion16").symlink_to(run)
    assert main(["sample", "fashion16", "-n", "2", "--steps", "2", "--out", "drawn.npz"]) == 0
    assert not (tmp_path / "runs").exists()
