"""Pipes, sockets and devices given to any verb: one line, and nobody waits for them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from harness import Proof, part, seeded, times
from PIL import Image
from test_hostile_arguments import Argument, altered, arguments
from world import VERBS, add_special_files

SPECIAL = ("fifo", "socket", "piped", "null", "zero")
NAMED = [
    *("train.json", "train.npy", "dataset_info.json", "data.mdb", "x.parquet", "0.png", "a.zip"),
    *(
        "train-images-idx3-ubyte",
        "batches.meta",
        "list_attr_celeba.txt",
        "train_X.bin",
        "state.json",
    ),
    *("data_batch_1", "data_batch_1.bin", "img_align_celeba.zip", "train_data_batch_1", "lock.mdb"),
]


@pytest.mark.parametrize("name", ["import", "export", "train", "sample", "evaluate --samples"])
def test_special_files_in_every_place(inhabited: Proof, name):
    add_special_files(inhabited.folder)
    places = [argument for argument in arguments(VERBS[name]) if argument.takes == "place"]
    draw = seeded(name)
    asked: list[Argument] = part(places, 2)
    for number in range(times(len(asked))):
        argument = asked[number % len(asked)]
        inhabited.attempt(
            f"{name} {argument.flag} {(value := draw.choice(SPECIAL))}",
            *altered(VERBS[name].command, argument, value, draw),
        )


def test_special_files_among_data(hostile: Proof):
    for name in part(NAMED, 8):
        folder = Path(f"with {name}")
        folder.mkdir()
        os.mkfifo(folder / name)
        for i in range(3):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"im{i}.png")
        # A pipe is left out, or said to be none of the data's files.
        hostile.attempt(name, "data", "inspect", folder, right=lambda _: None)
