"""Edits through a run: what comes out is what was asked, and mistakes are one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from softtrunc.cli import main
from softtrunc.feedback.progress import Silent
from softtrunc.jobs.edit import Editor, _arc, _deterministic
from softtrunc.jobs.edit_inputs import build_mask, read_images, to_model
from softtrunc.recipes import UserError
from softtrunc.runs.draw import draw, to_data
from softtrunc.runs.open_run import open_run
from softtrunc.samplers import Ancestral, DPMSolver, Heun, ProbabilityFlow

pytestmark = pytest.mark.usefixtures("unchecked")

LOOSE = ["sampling={sampler: ode, rtol: 1e-4, atol: 1e-4}"]


def train(folder, *options):
    options = (*options, "network.options={base_channels: 8}", "training.batch_size=16")
    options = (*options, "training.steps=2", "training.samples=4")
    command = ["train", "digits-vp-nll-st", "--out", str(folder)]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    return folder


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    """A run of two steps on the digits."""
    return train(tmp_path_factory.mktemp("runs") / "gray")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Colour images of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(40):
        image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image.save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def colour(tmp_path_factory, pictures):
    """A run of two steps on these."""
    folder = tmp_path_factory.mktemp("runs") / "colour"
    return train(folder, f"data.source={pictures}")


def tiles(path, rows, columns):
    """The images of a sheet of 8x8 images, each enlarged eightfold."""
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[:2] == (rows * 66 + 2, columns * 66 + 2)
    return np.stack(
        [
            [
                sheet[2 + 66 * r : 66 * r + 66 : 8, 2 + 66 * c : 66 * c + 66 : 8]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )


def stretched(images):
    return (images.float() * (255 / 16)).round().to(torch.uint8)


def test_encoding_tells_the_error_of_the_way_there_and_back(gray, tmp_path, capsys):
    editor = Editor.open(gray, overrides=LOOSE)
    out = tmp_path / "latents.npz"
    trips, nfe = editor.encode([], 3, out)
    assert [trip.name for trip in trips] == ["held-out 0", "held-out 1", "held-out 2"]
    assert nfe > 20
    saved = np.load(out)
    assert saved["images"].shape == (3, 8, 8, 1)
    assert saved["latents"].shape == (3, 1, 8, 8)
    # The figures are those of the arrays.
    images = read_images(editor.opened, [], 3).images
    x = to_model(editor.opened, images)
    assert torch.equal(to_data(editor.opened, x), images)
    assert np.array_equal(saved["images"][..., 0], stretched(images)[:, 0].numpy())
    norms = np.linalg.norm(saved["latents"].reshape(3, -1), axis=1) / 8
    assert [trip.radius for trip in trips] == pytest.approx(norms.tolist(), rel=1e-5)
    assert all(trip.rms <= trip.worst < 4 and trip.exact for trip in trips)
    loose, _ = Editor.open(
        gray, overrides=["sampling={sampler: ode, rtol: 0.2, atol: 0.2}"]
    ).encode([], 3, out)
    assert all(a.rms > 3 * b.rms for a, b in zip(loose, trips, strict=True))
    png = tmp_path / "ends.png"
    editor.encode([], 3, png)
    above, below = tiles(png, 2, 3)
    assert np.array_equal(above, below)
    options = ["--set", LOOSE[0], "-n", "2", "--out", str(out)]
    assert main(["edit", "encode", str(gray), *options]) == 0
    printed = capsys.readouterr().out
    assert "held-out 1" in printed
    assert "yes" in printed


def test_files_are_read_as_the_data_are(gray, tmp_path):
    opened = open_run(gray)
    levels = torch.arange(64).reshape(8, 8) % 17
    Image.fromarray(stretched(levels).numpy()).save(tmp_path / "a.png")
    images = read_images(opened, [tmp_path / "a.png"], 0).images
    assert torch.equal(images[0, 0], levels.to(torch.uint8))
    Image.new("RGB", (9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match=r"wide\.png: is 9x8 pixels, the run's images are 8x8"):
        read_images(opened, [tmp_path / "wide.png"], 0)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        read_images(opened, [tmp_path / "text.png"], 0)
    with pytest.raises(UserError, match=r"nowhere\.png: no such image"):
        read_images(opened, [tmp_path / "nowhere.png"], 0)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("left", (slice(None), slice(0, 4))),
        ("right", (slice(None), slice(4, 8))),
        ("top", (slice(0, 4), slice(None))),
        ("bottom", (slice(4, 8), slice(None))),
        ("center", (slice(2, 6), slice(2, 6))),
    ],
)
def test_masks_by_name(gray, name, hidden):
    known = build_mask(open_run(gray), name)
    want = torch.ones(8, 8, dtype=torch.bool)
    want[hidden] = False
    assert torch.equal(known, want)


def test_masks_by_file(gray, tmp_path):
    opened, file = open_run(gray), tmp_path / "mask.png"
    white = np.zeros((8, 8), dtype=np.uint8)
    white[1:3, 5:] = 255
    Image.fromarray(white).save(file)
    assert np.array_equal(build_mask(opened, str(file)).numpy(), white == 0)
    Image.new("L", (8, 9), 255).save(file)
    with pytest.raises(UserError, match="is 8x9 pixels, the images are 8x8"):
        build_mask(opened, str(file))
    Image.new("L", (8, 8), 0).save(file)
    with pytest.raises(UserError, match="nothing is white"):
        build_mask(opened, str(file))
    with pytest.raises(UserError, match="no such file; did you mean 'center'"):
        build_mask(opened, "centre")


def test_inpainting_shows_image_known_part_and_variants(gray, tmp_path):
    out = tmp_path / "in.png"
    editor = Editor.open(gray, overrides=["sampling.steps=4"])
    drawn = editor.inpaint([], 2, "right", out, variants=3)
    assert drawn.x.shape == (6, 1, 8, 8)
    got = tiles(out, 2, 5)
    images = stretched(read_images(editor.opened, [], 2).images)[:, 0].numpy()
    assert np.array_equal(got[:, 0], images)
    for column in range(1, 5):
        assert np.array_equal(got[:, column, :, :4], images[:, :, :4])
    assert (got[:, 1, :, 4:] == 128).all()
    assert not np.array_equal(got[:, 2], got[:, 3])
    # Seeds: the first variant of the second image is that of its own seed.
    alone = editor.inpaint([], 2, "right", out, variants=3).x
    assert torch.equal(drawn.x, alone)


def test_colours_keep_the_gray_value(colour, tmp_path):
    out = tmp_path / "colours.png"
    editor = Editor.open(colour, overrides=["sampling={sampler: pc, steps: 5}"])
    drawn = editor.colorize([], 2, out, variants=2)
    images = read_images(editor.opened, [], 2).images
    means = to_model(editor.opened, images).mean(1).repeat_interleave(2, 0)
    torch.testing.assert_close(drawn.x.mean(1), means, rtol=1e-4, atol=1e-4)
    got = tiles(out, 2, 4)
    assert np.array_equal(got[:, 0], images.permute(0, 2, 3, 1).numpy())
    assert (got[:, 1].std(-1) == 0).all()


def test_the_way_between_images_ends_in_them(gray, pictures, tmp_path):
    files = []
    editor = Editor.open(gray, overrides=["sampling={sampler: ode, rtol: 1e-4, atol: 1e-4}"])
    held_out = stretched(read_images(editor.opened, [], 3).images)
    for i, image in enumerate(held_out):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image[0].numpy()).save(files[-1])
    out = tmp_path / "way.png"
    editor.interpolate(files, [], 3, out)
    row = tiles(out, 1, 5)[0]
    for i in range(3):
        # The flow's end is denoised once more: a level at most.
        assert np.abs(row[2 * i].astype(int) - held_out[i, 0].numpy()).max() <= 17
    assert not np.array_equal(row[1], row[0])


@pytest.mark.parametrize("sampler", ["dpm_solver", "heun"])
def test_the_way_between_seeds_ends_in_their_samples(gray, tmp_path, sampler):
    options = [f"sampling.sampler={sampler}", "sampling.steps=4"]
    out = tmp_path / "way.png"
    drawn = Editor.open(gray, overrides=options).interpolate([], [3, 4], 5, out)
    ends = draw(open_run(gray, overrides=options), 2, seed=3, progress=Silent()).images
    row = tiles(out, 1, 5)[0]
    assert np.array_equal(row[[0, -1]], stretched(ends)[:, 0].numpy())
    assert drawn.x.shape[0] == 5
    movie = tmp_path / "way.gif"
    Editor.open(gray, overrides=options).interpolate([], [3, 4], 5, movie)
    with Image.open(movie) as gif:
        assert gif.n_frames >= 2


def test_latents_stay_on_the_sphere_and_meet_once():
    ends = torch.randn(3, 400, generator=torch.Generator().manual_seed(0)).double()
    ends = ends / ends.norm(dim=1, keepdim=True)
    way = _arc(ends, 5)
    assert way.shape == (9, 400)
    torch.testing.assert_close(way[[0, 4, 8]], ends)
    torch.testing.assert_close(way.norm(dim=1), torch.ones(9).double())


def test_only_deterministic_samplers_join_seeds():
    assert [
        _deterministic(s)
        for s in (
            DPMSolver(),
            DPMSolver(stochastic=True),
            Heun(),
            Heun(churn=1.0),
            ProbabilityFlow(),
            Ancestral(),
        )
    ] == [True, False, True, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "RUN", "--out", "x.jpg"], "ends in .npz or .png"),
        (["encode", "RUN", "nowhere.png"], "nowhere.png: no such image"),
        (["interpolate", "RUN"], "two or more images"),
        (["interpolate", "RUN", "--seed", "1"], "two or more images"),
        (["interpolate", "RUN", "--seed", "1", "--seed", "2", "--out", "x"], ".gif or .png"),
        (["inpaint", "RUN", "--mask", "lef"], "did you mean 'left'?"),
        (["inpaint", "RUN", "--sampler", "ode"], "write --sampler pc"),
        (["inpaint", "RUN", "--out", "x.gif"], "ends in .png"),
        (["colorize", "RUN"], "images are grey"),
        (["inpaint", "nowhere"], "no run here"),
    ],
)
def test_mistakes_are_told_in_one_line(gray, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["edit", *(str(gray) if a == "RUN" else a for a in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused_in_one_line(gray, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    assert main(["edit", "encode", str(gray), "--out", str(tmp_path / "a.png")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "edits run in one process: leave out `accelerate launch`" in line
    assert not (tmp_path / "a.png").exists()
