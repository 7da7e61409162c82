"""A folder with something of every kind, and every verb as a command that works there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from softtrunc.cli import main

sys.path += [str(Path(__file__).parents[1] / "interop"), str(Path(__file__).parents[1])]
from public_network import checkpoint, configuration
from stand_in import save_stand_in

RECIPE = "digits-vp-nll-st"
SMALL = ("network.options={base_channels: 8}", "training.batch_size=8", "training.samples=2")
SHORT = (*SMALL, "training.steps=2", "training.warmup_steps=0", "sampling.steps=2")
ROUGH = tuple(
    f"evaluation.{change}"
    for change in ("rtol=0.1", "atol=0.1", "solver_check=0", "nelbo_draws=1", "samples=4")
)
FAST = ("--sampler", "dpm_solver", "--steps", "1")


def sets(*changes: str) -> list[str]:
    """Changes of a recipe as the command line takes them."""
    return [word for change in changes for word in ("--set", change)]


class Verb(NamedTuple):
    """A command that works in the world, and what it writes there."""

    command: list[str]
    writes: tuple[str, ...] = ()


def verb(words: str, *writes: str, changes: tuple[str, ...] = ()) -> Verb:
    """A command written in one line, with changes of the recipe besides."""
    return Verb([*words.split(), *sets(*changes)], writes)


_FLOW = "sampling={sampler: ode, rtol: 0.1, atol: 0.1}"
_OFTEN = ("training.checkpoint_every=1", "training.log_every=1", "training.sample_every=2")
_BOUND = ("evaluation.figures=[nelbo]", "evaluation.features=null")
_FAST = " ".join(FAST)

# In the order of what they cost.
VERBS: dict[str, Verb] = {
    "recipes list": verb("recipes list"),
    "recipes show": verb("recipes show own.yaml"),
    "data presets": verb("data presets"),
    "data inspect": verb("data inspect images --grid grid.png", "grid.png"),
    "data prepare": verb("data prepare images --workers 1 --out prepared", "prepared"),
    "import": verb("import c.pth --config c.json --out imported", "imported"),
    "export": verb("export run --out exported", "exported"),
    "report": verb("report run --out page.html", "page.html"),
    "sample": verb(f"sample run -n 3 --batch-size 2 {_FAST} --out drawn", "drawn", "drawn.json"),
    "sample to a zip": verb(
        f"sample run -n 3 --batch-size 2 {_FAST} --out drawn.zip", "drawn.zip", "drawn.zip.json"
    ),
    "sample two runs": verb(
        f"sample --above run --below two --at 0.5 -n 2 {_FAST} --out both.npz",
        *("both.npz", "both.npz.json"),
    ),
    "sample --trajectory": verb(f"sample run -n 2 {_FAST} --trajectory way.gif", "way.gif"),
    "edit encode": verb(
        "edit encode run grey.png --out latents.npz", "latents.npz", changes=(_FLOW,)
    ),
    "edit interpolate": verb(
        f"edit interpolate run --seed 1 --seed 2 --frames 2 {_FAST} --out between.png",
        "between.png",
    ),
    "edit inpaint": verb(
        f"edit inpaint run grey.png --variants 1 --mask mask.png {_FAST} --out filled.png",
        "filled.png",
    ),
    "edit colorize": verb(
        f"edit colorize colour images/0.png --variants 1 {_FAST} --out coloured.png",
        "coloured.png",
    ),
    "evaluate --samples": verb(
        "evaluate --samples images --data more --fid --features net.pt --out figures.json",
        "figures.json",
    ),
    "evaluate": verb(
        "evaluate run --bpd --limit 3 --per-image bits.csv",
        *("run/evaluation.json", "bits.csv"),
        changes=ROUGH,
    ),
    "anatomy": verb(
        "anatomy run -n 2 --bins 2 --draws 1 --times 1 --out apart",
        "apart",
        changes=("sampling.steps=1",),
    ),
    "train": verb(f"train {RECIPE} --out new", "new", changes=(*SHORT, *_OFTEN)),
    "study": verb(
        f"study {RECIPE} --vary truncation.k=1 --seeds 1 --out study",
        "study",
        changes=(*SHORT, *ROUGH, *_BOUND),
    ),
}


def _images(folder: str, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    Path(folder).mkdir()
    for i in range(count):
        pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{folder}/{i}.png")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def build_world(folder: Path) -> None:
    """Make the world: two runs, one of colour, images, a public checkpoint, an extractor."""
    with contextlib.chdir(folder), _quiet():
        _images("images", 8, 0)
        _images("more", 8, 1)
        Image.linear_gradient("L").resize((8, 8)).save("grey.png")
        Image.linear_gradient("L").resize((8, 8)).save("mask.png")
        Path("own.yaml").write_text(f"extends: {RECIPE}\n")
        save_stand_in(Path("net.pt"))
        config = configuration({"model.num_res_blocks": 1})
        Path("c.json").write_text(json.dumps(config))
        torch.save(checkpoint(config)[0], "c.pth")
        assert main(["import", "c.pth", "--config", "c.json", "--out", "colour"]) == 0
        steps = ("training.sample_every=2", "training.log_every=1")
        for name, seed in (("run", 0), ("two", 1)):
            changes = sets(*SHORT, *steps, f"training.seed={seed}")
            assert main(["train", RECIPE, *changes, "--out", name]) == 0
        # A run with everything in it.
        assert main(["evaluate", "run", "--bpd", "--limit", "1", *sets(*ROUGH)]) == 0
        apart = ["-n", "2", "--bins", "2", "--draws", "1", "--times", "1"]
        assert main(["anatomy", "run", *apart, *sets("sampling.steps=1")]) == 0


def add_special_files(folder: Path) -> None:
    """A pipe, a socket, a link to itself and one to the pipe; devices where one may make them.

    They are ours: a command that does what it must not would replace the machine's own `/dev/null`.
    """
    for name, minor in (("null", 3), ("zero", 5)):
        with contextlib.suppress(OSError):
            os.mknod(folder / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(os.path.relpath(folder / "socket"))  # a long path is refused
    (folder / "loop").symlink_to("loop")
    (folder / "piped").symlink_to("fifo")
