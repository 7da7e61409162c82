"""What a tracker is handed: the rows, and the grids that lie in `samples/`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from softtrunc.cli import main
from softtrunc.jobs import trackers
from softtrunc.jobs.train import train
from softtrunc.recipes import load_recipe

pytestmark = pytest.mark.usefixtures("unchecked")

SMALL = ["network.options={base_channels: 8}", "training.batch_size=8", "training.samples=3"]
SMALL += ["training.warmup_steps=0", "training.steps=2", "training.sample_every=1"]
SMALL += ["training.log_every=1", "sampling={sampler: dpm_solver, steps: 1}"]


class Recorder(Accelerator):
    """Keeps what its tracker is handed."""

    def __init__(self, name):
        super().__init__(cpu=True)
        self.settings, self.rows, self.pictures, self.ended = {}, [], [], False
        self.trackers = [SimpleNamespace(name=name, log_images=self.keep)]

    def keep(self, values, step, **options):
        self.pictures += [(name, step, pixels, options) for name, pixels in values.items()]

    def init_trackers(self, project, config, init_kwargs):
        self.settings = config

    def log(self, values, step):
        self.rows.append((step, values))

    def end_training(self):
        self.ended = True


@pytest.mark.parametrize("name", ["tensorboard", "wandb", None])
def test_rows_and_grids_go_to_the_tracker(name, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda module: module)
    recorder, run = Recorder(name), tmp_path / "run"
    tracker = [f"training.tracker={name}"] if name else []
    train(load_recipe("digits-vp-nll-st", [*SMALL, *tracker]), run, accelerator=recorder)
    if name is None:
        assert (recorder.settings, recorder.rows, recorder.pictures) == ({}, [], [])
        return
    assert recorder.settings["training.steps"] == "2"
    assert [step for step, _ in recorder.rows] == [1, 2]
    assert recorder.ended
    assert [(n, step) for n, step, *_ in recorder.pictures] == [
        ("data", 0),
        ("samples", 1),
        ("samples", 2),
    ]
    for (*_, pixels, options), file in zip(
        recorder.pictures, ("data", "step-00000001", "step-00000002"), strict=True
    ):
        with Image.open(run / "samples" / f"{file}.png") as image:
            assert np.array_equal(pixels, np.asarray(image.convert("RGB"))[None])
        assert options == ({"dataformats": "NHWC"} if name == "tensorboard" else {})


def test_tensorboard_holds_the_grids(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = [word for each in (*SMALL, "training.tracker=tensorboard") for word in ("--set", each)]
    assert main(["train", "digits-vp-nll-st", "--out", str(tmp_path / "run"), *told]) == 0
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [image.step for image in found.Images("samples")] == [1, 2]


def test_a_tracker_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    told = ["--set", "training.tracker=wandb", "--out", str(tmp_path / "run")]
    assert main(["train", "digits-vp-nll-st", *told]) == 2
    assert "pip install 'softtrunc[tracking]'" in capsys.readouterr().err
