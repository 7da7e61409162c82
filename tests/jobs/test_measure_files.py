"""Images that others made, in whatever they come in, against a data set."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from stand_in import save_stand_in

from softtrunc.cli import main
from softtrunc.metrics import TorchScriptFeatures, frechet_distance

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The same 24 images as a folder, a zip and an npz, others to compare with, and a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTTRUNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    random = np.random.default_rng(0)
    made = random.integers(0, 200, (24, 8, 8, 3), dtype=np.uint8)
    real = random.integers(50, 256, (40, 8, 8, 3), dtype=np.uint8)
    for name, images in (("made", made), ("real", real)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03d}.png")
    with zipfile.ZipFile("made.zip", "w") as archive:
        for path in sorted((tmp_path / "made").iterdir()):
            archive.write(path, path.name)
    np.savez("made.npz", arr_0=made)
    np.save("grey.npy", made[..., 0])
    save_stand_in(tmp_path / "projections.pt")
    return made, real


def evaluate(*arguments: str) -> int:
    return main(["evaluate", *arguments, "--data", "real", "--features", "projections.pt"])


def test_folders_archives_and_arrays_give_the_distance_of_all_their_images(
    places, tmp_path, capsys
):
    extractor = TorchScriptFeatures(tmp_path / "projections.pt")
    features = [extractor(torch.from_numpy(x).movedim(3, 1)).double() for x in places]
    moments = [m for x in features for m in (x.mean(0), x.T.cov())]
    for name in ("made", "made.zip", "made.npz"):
        assert evaluate("--samples", name, "--fid") == 0
        content = json.loads((tmp_path / f"{name}-evaluation.json").read_text())
        (figure,) = content["figures"]
        # All 24 against all 40: nothing is held out where data come without splits.
        assert (content["n"], figure["protocol"]["n_reference"]) == (24, 40)
        assert figure["value"] == pytest.approx(frechet_distance(*moments), rel=1e-9)
        assert figure["name"] == "FD(projections)"
    printed = capsys.readouterr().out
    assert "made.npz: 24 images" in printed


def test_any_figures_over_the_first_so_many_in_a_file_of_ones_own(places, tmp_path):
    figures = ["--fid", "--is", "--kid", "--prdc"]
    command = ["--samples", "made", "-n", "20", *figures, "--mode", "clean", "--out", "x/y.json"]
    assert evaluate(*command) == 0
    content = json.loads((tmp_path / "x" / "y.json").read_text())
    keys = [figure["key"] for figure in content["figures"]]
    assert keys == [
        "inception_score",
        "frechet_distance",
        "kernel_distance",
        "precision",
        "recall",
    ]
    assert {f["protocol"]["resize"] for f in content["figures"]} == {"clean to 299x299 resize"}
    assert content["figures"][1]["protocol"]["samples"] == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samples", "nowhere"], "--samples: nowhere: no such data"),
        (["--samples", "made", "--mode", "cleen"], "--mode cleen: write legacy or clean"),
        (["--samples", "grey.npy"], "--samples are 1 x 8 x 8, --data are 3 x 8 x 8"),
        (["--samples", "made", "--bpd"], "images alone have no model"),
        (["run", "--samples", "made"], "images alone have no model"),
        (["--samples", "made", "-n", "5", "--is"], "5 samples: is need 10 at least"),
        (["--samples", "made", "--split", "test"], "--data"),
        ([], "name a run folder, or --samples PATH"),
    ],
)
def test_mistakes_are_told_in_one_line(places, capsys, arguments, words, tmp_path):
    before = sorted(p.name for p in tmp_path.iterdir())
    assert evaluate(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_data_to_compare_with_are_asked_for(places, capsys):
    assert main(["evaluate", "--samples", "made"]) == 2
    assert "add --data PATH" in capsys.readouterr().err


def test_without_the_standard_network_it_is_said_what_to_do(places, capsys, monkeypatch):
    from softtrunc.metrics import fetch

    monkeypatch.setattr(fetch, "INCEPTION_URL", "http://127.0.0.1:1/x.pt")
    assert main(["evaluate", "--samples", "made", "--data", "real", "--fid"]) == 2
    assert "give --features PATH" in capsys.readouterr().err
