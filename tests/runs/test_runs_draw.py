"""Images into files, batch by batch: whatever ends the work, the result is the same."""

from __future__ import annotations

import io
import json
import zipfile
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from softtrunc import VPSDE
from softtrunc.cli import main
from softtrunc.data import open_dataset, stretch_levels
from softtrunc.feedback.progress import Silent
from softtrunc.jobs.trajectory import draw_trajectory
from softtrunc.recipes import UserError, load_recipe, sampling
from softtrunc.recipes.build import build_drawn, build_sampler
from softtrunc.runs.draw import cut, draw, draw_batches, draw_to
from softtrunc.runs.open_run import open_run
from softtrunc.runs.sample_files import Destination, missing
from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Grid,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)

pytestmark = pytest.mark.usefixtures("unchecked")

STEPS = ["sampling.steps=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, whose samples are noise, but each its own."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    options = ["network.options={base_channels: 8}", "training.batch_size=16"]
    options += ["training.steps=2", "training.samples=4", "training.checkpoint_every=1"]
    command = ["train", "digits-vp-nll-st", "--out", str(folder)]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    return folder


def test_any_checkpoint_can_be_opened_and_others_are_told(run):
    first, last = open_run(run, checkpoint=1), open_run(run)
    assert (first.step, last.step) == (1, 2)
    pairs = zip(first.model.parameters(), last.model.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    assert open_run(run, checkpoint=2).step == 2
    with pytest.raises(UserError, match="no checkpoint of step 3: write one of 1, 2"):
        open_run(run, checkpoint=3)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run like `run` whose weights have moved far."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    options = ["network.options={base_channels: 8}", "training.batch_size=16"]
    options += ["training.steps=2", "training.samples=4"]
    options += ["training.learning_rate=0.1", "training.warmup_steps=0", "training.ema_rate=0"]
    command = ["train", "digits-vp-nll-st", "--out", str(folder)]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    return folder


@pytest.mark.parametrize("t", [0.0, 0.7, 1.0])
def test_two_runs_draw_together(run, other, tmp_path, t):
    out = tmp_path / "chimera.npz"
    command = ["sample", "--above", str(run), "--below", str(other), "--at", str(t)]
    assert main([*command, "-n", "4", "--steps", "8", "--out", str(out)]) == 0
    alone = [
        draw(open_run(path, overrides=["sampling.steps=8"]), 4, progress=Silent()).images
        for path in (run, other)
    ]
    drawn = read(out)
    same = [np.array_equal(drawn, stretch_levels(images, 17)[:, 0]) for images in alone]
    assert same == {0.0: [True, False], 0.7: [False, False], 1.0: [False, True]}[t]
    told = json.loads((tmp_path / "chimera.npz.json").read_text())
    assert (told["run"], told["below"]["run"], told["t"]) == ("two", "other", t)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--above", "RUN", "--at", "0.5"], "write --above RUN --below RUN --at TIME"),
        (["RUN", "--above", "RUN", "--below", "OTHER", "--at", "0.5"], "and no other"),
        (["--above", "RUN", "--below", "RUN", "--at", "0.5"], "one run twice"),
        (["--above", "RUN", "--below", "OTHER", "--at", "1.5"], "need 0 <= t <= 1.0"),
        ([], "name a run folder"),
    ],
)
def test_two_runs_that_cannot_draw_together(run, other, capsys, arguments, words):
    folders = {"RUN": str(run), "OTHER": str(other)}
    assert main(["sample", *(folders.get(word, word) for word in arguments)]) == 2
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told


def read(path):
    """The images (N, H, W) of any form."""
    if path.suffix == ".npz":
        return np.load(path)["images"][..., 0]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            files = [io.BytesIO(archive.read(name)) for name in archive.namelist()]
    else:
        files = sorted(path.iterdir())
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_every_option_of_every_sampler_is_a_key():
    changes = {
        "pc": ("steps: 9, snr: 0.2, corrector_steps: 2, predictor: ancestral", PredictorCorrector),
        "euler_maruyama": ("steps: 9", EulerMaruyama),
        "ancestral": ("steps: 9", Ancestral),
        "ode": ("rtol: 1e-3, atol: 1e-4, max_steps: 99", ProbabilityFlow),
        "heun": ("steps: 9, churn: 2, churn_range: [0.1, 50], churn_noise: 1.003", Heun),
        "dpm_solver": ("steps: 9, order: 3, stochastic: true", DPMSolver),
    }
    for name, (keys, kind) in changes.items():
        more = "t_end: 0.01, denoise_final: false" + ("" if name == "ode" else ", grid: reciprocal")
        text = f"sampling={{sampler: {name}, {keys}, {more}}}"
        sampler = build_sampler(load_recipe("digits-vp-nll", [text]).sampling, VPSDE())
        assert type(sampler) is kind
        default = kind()
        for key in kind.__dataclass_fields__:
            if key != "_":
                assert getattr(sampler, key) != getattr(default, key), f"{name}.{key}"
    open_above = load_recipe("digits-vp-nll", ["sampling={sampler: heun, churn_range: [1, null]}"])
    assert build_sampler(open_above.sampling, VPSDE()).churn_range == (1.0, float("inf"))
    assert get_args(sampling.Grid) == get_args(Grid)
    json.dumps(open_above.sampling.model_dump(mode="json"), allow_nan=False)


def test_the_defaults_of_recipes_are_those_of_the_samplers():
    for name, kind in {
        "pc": PredictorCorrector,
        "euler_maruyama": EulerMaruyama,
        "ancestral": Ancestral,
        "ode": ProbabilityFlow,
        "heun": Heun,
        "dpm_solver": DPMSolver,
    }.items():
        recipe = load_recipe("digits-vp-nll", [f"sampling={{sampler: {name}}}"])
        assert build_sampler(recipe.sampling, VPSDE()) == kind()


def test_precision_is_a_key_of_sampling(run):
    opened = open_run(run, overrides=["sampling.precision=bf16"])
    model = build_drawn(opened.recipe.sampling, opened.model)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        low, full = model.score(x, t), opened.model.score(x, t)
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("done", "gaps"),
    [
        ([], [(0, 4), (4, 8), (8, 10)]),
        ([(0, 10)], []),
        ([(4, 8)], [(0, 4), (8, 10)]),
        ([(0, 3), (5, 7)], [(3, 4), (4, 5), (7, 8), (8, 10)]),
        ([(8, 12), (2, 6), (0, 3)], [(6, 8)]),
    ],
)
def test_what_is_missing_is_found_batch_by_batch(done, gaps):
    found = missing(cut(10, 4), [range(*span) for span in done])
    assert found == [range(*span) for span in gaps]


@pytest.mark.parametrize("name", ["folder", "images.zip", "images.npz"])
def test_every_form_holds_the_same_images_and_is_data(run, tmp_path, name):
    out = tmp_path / name
    outcome = draw_to(run, 10, out, overrides=STEPS, batch_size=4, seed=5)
    assert outcome == (out, 10, False)
    opened = open_run(run, overrides=STEPS)
    drawn = draw(opened, 10, seed=5, batch_size=4, progress=Silent())
    assert np.array_equal(read(out), (drawn.images[:, 0].numpy() * (255 / 16)).round())
    # No more than this lies there, and it opens as data.
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"{name}.json"])
    protocol = json.loads((tmp_path / f"{name}.json").read_text())
    assert protocol["count"] == 10
    assert protocol["nfe"] == 3
    assert protocol["sampling"]["steps"] == 3
    data = open_dataset(out, "train")
    assert data.card.channels == 1


def test_batches_are_drawn_one_at_a_time_and_by_any_process(run):
    opened = open_run(run, overrides=STEPS)
    parts = cut(10, 3)
    together = list(draw_batches(opened, parts, seed=2))
    assert [b.first for b in together] == [0, 3, 6, 9]
    for rank in (0, 1):
        mine = list(draw_batches(opened, parts[rank::2], seed=2))
        for ours, theirs in zip(mine, together[rank::2], strict=True):
            assert torch.equal(ours.images, theirs.images)


class Killed(BaseException):
    pass


def killed_after(monkeypatch, batches):
    """From the given batch on, keeping it fails half-way through the file."""
    add, kept = Destination.add, []

    def fail(self, first, images, nfe):
        if len(kept) == batches:
            (self.unfinished / f".{first:08d}-half.1").write_bytes(b"half")
            raise Killed
        kept.append(first)
        add(self, first, images, nfe)

    monkeypatch.setattr(Destination, "add", fail)


@pytest.mark.parametrize("name", ["folder", "images.zip", "images.npz"])
def test_a_killed_command_goes_on_and_ends_in_the_same_bytes(run, tmp_path, monkeypatch, name):
    straight, resumed = tmp_path / "a" / name, tmp_path / "b" / name
    options = {"overrides": STEPS, "batch_size": 4}
    draw_to(run, 18, straight, **options)
    for kept in (1, 2):
        with monkeypatch.context() as context:
            killed_after(context, kept)
            with pytest.raises(Killed):
                draw_to(run, 18, resumed, **options)
        assert not resumed.exists()
    drawn, add = [], Destination.add

    def watched(self, first, images, nfe):
        drawn.append(first)
        add(self, first, images, nfe)

    monkeypatch.setattr(Destination, "add", watched)
    assert draw_to(run, 18, resumed, **options).done == 18
    assert drawn == [12, 16]  # the first three batches were there
    if name == "folder":
        for path in sorted(straight.iterdir()):
            assert path.read_bytes() == (resumed / path.name).read_bytes()
    else:
        assert straight.read_bytes() == resumed.read_bytes()
    assert not list(resumed.parent.glob(".*"))


def test_it_goes_on_in_other_batches_and_to_other_counts(run, tmp_path, monkeypatch):
    draw_to(run, 9, tmp_path / "all.npz", overrides=STEPS, batch_size=4)
    whole = read(tmp_path / "all.npz").astype(int)
    out = tmp_path / "out.npz"
    with monkeypatch.context() as context:
        killed_after(context, 2)
        with pytest.raises(Killed):
            draw_to(run, 20, out, overrides=STEPS, batch_size=4)
    draw_to(run, 9, out, overrides=STEPS, batch_size=3)
    got = read(out).astype(int)
    assert got.shape == whole.shape
    # but for a level where the network rounds otherwise in a batch of another size
    assert np.abs(got - whole).max() <= 16


def test_where_nothing_was_drawn_nothing_was_begun(tmp_path):
    """A kill came before it was written what was begun, or the first image was not finite."""
    place = Destination(tmp_path / "x.npz")
    place.unfinished.mkdir()
    (place.unfinished / "0x1-2-nfe3.npy").touch()  # no piece of ours
    assert not place.is_finished({"seed": 0}, 2)
    place.begin({"seed": 0})
    assert not place.is_finished({"seed": 1}, 2)
    place.add(0, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 3)
    assert not place.is_finished({"seed": 0}, 2)
    with pytest.raises(UserError, match="other samples were begun there"):
        place.is_finished({"seed": 1}, 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.npz", b""), ("x.npz", b"garbage"), ("x.npz", None), ("x.zip", b""), ("x.zip", b"garbage")],
)
def test_a_damaged_piece_is_named(run, tmp_path, capsys, name, content):
    """Also an empty one: typer takes the end of a file for a Ctrl-D."""
    place = Destination(tmp_path / name)
    sample = ["sample", str(run), "-n", "2", "--batch-size", "1", "--out", str(tmp_path / name)]
    sample += ["--sampler", "dpm_solver", "--steps", "1"]
    assert main(sample) == 0
    protocol = json.loads(place.protocol_file.read_text())
    place.out.unlink()
    place.begin({k: v for k, v in protocol.items() if k not in ("count", "nfe", "versions")})
    place.add(0, torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 1)
    (piece,) = place.pieces()
    if content is None:
        np.save(piece.path, np.zeros((1, 3, 3), np.uint8))
    else:
        piece.path.write_bytes(content)
    capsys.readouterr()
    assert main(sample) == 2
    assert f"{piece.path.name}: damaged: delete it" in capsys.readouterr().err


def test_other_settings_do_not_mix(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as context:
        killed_after(context, 1)
        with pytest.raises(Killed):
            draw_to(run, 8, out, overrides=STEPS, batch_size=4)
    with pytest.raises(UserError, match=r"other samples .*steps was 3, is 4"):
        draw_to(run, 8, out, overrides=["sampling.steps=4"], batch_size=4)
    with pytest.raises(UserError, match="seed was 0, is 1"):
        draw_to(run, 8, out, overrides=STEPS, batch_size=4, seed=1)
    with pytest.raises(UserError, match="weights was ema, is raw"):
        draw_to(run, 8, out, overrides=STEPS, batch_size=4, weights="raw")
    assert draw_to(run, 8, out, overrides=STEPS, batch_size=4).done == 8
    # Done: the same command finds it done, another one is refused, and nothing is touched.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert draw_to(run, 8, out, overrides=STEPS).done == 8
    with pytest.raises(UserError, match=r"exists already \(count was 8, is 9\)"):
        draw_to(run, 9, out, overrides=STEPS)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x.png"], "a file that ends in .zip or .npz"),
        (["--trajectory", "x.jpg"], "ends in .gif or .png"),
        (["--trajectory", "x.gif", "-n", "65"], "1 to 64 images"),
        (["--precision", "bf17"], "precision='bf17'"),
        (["--sampler", "ode", "--steps", "5"], "unknown key 'sampling.steps'"),
        (["--set", "sampling={sampler: heun, churn_range: [3, 2]}"], "0 <= low < high"),
        (["--sampler", "heun", "--set", "sampling.grid=karras"], "grid='karras'"),
    ],
)
def test_mistakes_are_told_in_one_line(run, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run), *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_trajectory_ends_in_the_images_that_are_drawn(run, tmp_path):
    options = ["sampling.sampler=heun", "sampling.steps=5"]
    strip, movie = tmp_path / "way.png", tmp_path / "way.gif"
    draw_trajectory(run, strip, 3, overrides=options, seed=4)
    draw_trajectory(run, movie, 3, overrides=options, seed=4)
    drawn = draw(open_run(run, overrides=options), 3, seed=4, progress=Silent())
    sheet = np.asarray(Image.open(strip))
    size = 64 + 2
    assert sheet.shape == (3 * size + 2, 5 * size + 2)
    levels = (drawn.images[:, 0].numpy() * (255 / 16)).round()
    for i in range(3):
        tile = sheet[2 + i * size : (i + 1) * size, 2 + 4 * size : 5 * size]
        assert np.array_equal(tile[::8, ::8], levels[i])
    with Image.open(movie) as gif:
        # Frames that are alike are one that lasts longer.
        assert 3 <= gif.n_frames <= 5
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("L"))
    assert np.array_equal(last[2:66:8, 2:66:8], levels[0])
