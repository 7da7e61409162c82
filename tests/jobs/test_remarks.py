"""What a training says of its data before its first step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from accelerate import Accelerator

from softtrunc.data import ImageDataset, Skipped
from softtrunc.jobs.remarks import remarks
from softtrunc.jobs.trackers import Trackers
from softtrunc.recipes import load_recipe


def images(count=20, **fields):
    pixels = np.zeros((count, 1, 8, 8), dtype=np.uint8)
    return ImageDataset.create(pixels, name="mine", split="train", source="here", **fields)


def said(data, *settings):
    return list(remarks(load_recipe("digits-vp-nll", settings), data))


def test_nothing_is_said_of_what_is_as_it_should_be():
    # 10,000 epochs and no more.
    whole = replace(images(), splits=("train", "test"))
    assert said(whole, "training.batch_size=100", "training.steps=2000") == []


def test_many_epochs_and_a_split_that_is_not_there_are_warned_of():
    data = replace(images(), splits=("train",))
    epochs, split = said(data, "training.batch_size=100", "training.steps=2001")[::-1]
    assert "2,001 steps of 100 are 10,005 epochs of these 20 images" in epochs
    assert "no image of mine is held out" in split
    # Where it is not known, as of data that a library user made, nothing is said.
    assert said(images(), "training.batch_size=1", "training.steps=1") == []


def test_files_that_were_left_out_are_named_once(tmp_path):
    skipped = [Skipped(f"{i}.png", "broken") for i in range(22)]
    few = ("training.batch_size=1", "training.steps=1", f"data.source={tmp_path}")
    told = said(images(skipped=skipped), *few)
    assert told[0] == "left out 0.png: broken"
    assert len(told) == 21
    assert told[-1] == f"left out 2 more: softtrunc data inspect {tmp_path} names them all"
    # Of prepared data every one was named when they were prepared, and their card still does.
    (tmp_path / "train.json").touch()
    (line,) = said(images(skipped=skipped), *few)
    assert line.startswith("22 files were left out when these were prepared (")
    assert str(tmp_path / "train.json") in line


def test_a_tracker_gets_a_place_and_a_project_of_its_run(tmp_path):
    seen = {}

    class Told(Accelerator):
        def init_trackers(self, p, **rest):
            seen.update(rest, p=p)

    accelerator = Told(cpu=True)
    Trackers(
        accelerator, load_recipe("digits-vp-nll", ["training.tracker=wandb"]), tmp_path
    ).begin()
    assert seen["p"] == "digits-vp-nll"
    assert seen["init_kwargs"]["wandb"] == {"name": tmp_path.name, "dir": str(tmp_path)}
    assert seen["config"]["training.steps"] == "3000"
    recipe = load_recipe("digits-vp-nll", ["training.tracker=tensorboard"])
    Trackers(accelerator, recipe, tmp_path).begin()
    assert seen["p"] == "tensorboard"
