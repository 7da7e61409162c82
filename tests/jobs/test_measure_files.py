"""Images that others made, in whatever they come in, against a data set."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_in import save_stand_in

from softtrunc.cli import main
from softtrunc.feedback.locks import only_one
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


@pytest.mark.parametrize("out", [[], ["--out", "x/y.json"]])
def test_a_file_of_figures_has_one_writer(places, tmp_path, capsys, out):
    place = Path(out[-1] if out else "made-evaluation.json")
    with only_one(place, "busy there"):
        assert evaluate("--samples", "made", "--fid", *out) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{place}: another process is measuring into it" in line
        assert not place.exists()
    assert evaluate("--samples", "made", "--fid", *out) == 0
    assert place.exists()


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


def moments(tmp_path, real):
    features = TorchScriptFeatures(tmp_path / "projections.pt")
    y = features(torch.from_numpy(real).movedim(3, 1)).double()
    return y.mean(0).numpy(), y.T.cov().numpy()


def outcome(tmp_path, *arguments):
    command = ["evaluate", "--samples", "made", "--features", "projections.pt", "--out", "o.json"]
    assert main([*command, *arguments]) == 0
    return {f["key"]: f for f in json.loads((tmp_path / "o.json").read_text())["figures"]}


@pytest.mark.parametrize("way", ["--data", "--stats", "beside images"])
def test_statistics_that_others_computed_are_references(places, tmp_path, way):
    made, real = places
    mu, sigma = moments(tmp_path, real)
    truth = outcome(tmp_path, "--data", "real", "--fid")["frechet_distance"]["value"]
    # As in ADM's reference batches: other images beside the statistics of the whole data set.
    beside = {"arr_0": made} if way == "beside images" else {}
    np.savez("ref.npz", mu=mu, sigma=sigma, **beside)
    flag = way if way.startswith("--") else "--data"
    figures = outcome(tmp_path, flag, "ref.npz", "--fid")
    assert figures.keys() == {"frechet_distance_to_file"}
    figure = figures["frechet_distance_to_file"]
    assert figure["value"] == pytest.approx(truth, rel=1e-9)
    assert figure["name"] == "FD(projections) to ref.npz"
    assert figure["protocol"]["reference_provenance"].startswith("unknown")
    if beside:  # the images serve what statistics cannot tell
        figures = outcome(tmp_path, "--data", "ref.npz", "--fid", "--prdc")
        assert figures["frechet_distance_to_file"]["value"] == pytest.approx(truth, rel=1e-9)
        assert figures["precision"]["value"] == 1.0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: {"mu": np.zeros(5), "sigma": np.eye(5)}, "5 features, the extractor gives"),
        (lambda d: {"sigma": np.eye(d + 1)}, "are no mean and covariance"),
        (lambda d: {"mu": np.float64(3.0)}, "are no mean and covariance"),
        (lambda d: {"mu": np.full(d, np.nan)}, "not finite"),
        (lambda d: {"sigma": -np.eye(d)}, "of negative variance"),
        (lambda d: {"sigma": np.tri(d)}, "not symmetric"),
        (lambda d: {"sigma": np.eye(d, dtype=np.int64)}, "not real numbers"),
    ],
)
def test_statistics_that_are_none_are_refused(places, tmp_path, capsys, change, part):
    mu, sigma = moments(tmp_path, places[1])
    np.savez("ref.npz", **{"mu": mu, "sigma": sigma, **change(len(mu))})
    command = ["evaluate", "--samples", "made", "--features", "projections.pt", "--fid"]
    assert main([*command, "--stats", "ref.npz"]) == 2
    assert part in capsys.readouterr().err
    assert main([*command, "--stats", "absent.npz"]) == 2
    assert main([*command[:-1], "--kid", "--stats", "ref.npz"]) == 2


def test_a_figure_says_how_few_the_references_are(places, tmp_path):
    figures = outcome(tmp_path, "--data", "real", "--kid", "--prdc")
    # 24 samples: 24 of the 40 images stand for the data set.
    assert figures["kernel_distance"]["name"] == "KD(projections) to 24 references"
    assert figures["recall"]["name"] == "recall(projections) to 24 references"


@pytest.mark.parametrize(("count", "flag"), [(3, "--prdc"), (2, "--prdc"), (1, "--fid")])
def test_too_few_references_are_told_before_anything_is_computed(
    places, tmp_path, capsys, count, flag
):
    np.save("few.npy", places[1][:count])
    command = ["evaluate", "--samples", "made", "--features", "projections.pt", "--data", "few.npy"]
    assert main([*command, flag]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"softtrunc: {count} train images are too few to compare with: ")
    assert "\n" not in line


def test_channels_that_differ_are_not_called_a_size(places, capsys):
    assert evaluate("--samples", "grey.npy") == 2
    assert "make both grey or both colour first" in capsys.readouterr().err


def test_samples_in_folders_called_like_splits_all_count(places, tmp_path):
    for number, name in enumerate(("test", "val", "train", "cat")):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        for i in range(3):
            source = tmp_path / "made" / f"{3 * number + i:03d}.png"
            (tmp_path / "mixed" / name / f"{i}.png").write_bytes(source.read_bytes())
    assert evaluate("--samples", "mixed", "--fid", "--out", "o.json") == 0
    assert json.loads((tmp_path / "o.json").read_text())["n"] == 12
