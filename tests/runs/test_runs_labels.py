"""Runs with labels: what their recipes say, which class is drawn, and what is refused."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from softtrunc.cli import main
from softtrunc.data import load_digits_split
from softtrunc.density import nelbo
from softtrunc.feedback.progress import Silent
from softtrunc.recipes import UserError, load_recipe
from softtrunc.recipes.build import build_drawn, class_numbers, with_classes
from softtrunc.records import read_evaluation
from softtrunc.report import write_report
from softtrunc.runs.draw import draw
from softtrunc.runs.open_run import open_run, with_below

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps whose network follows its labels."""
    folder = tmp_path_factory.mktemp("runs") / "labelled"
    options = ["data.labels=true", "network.options={base_channels: 8}", "training.batch_size=16"]
    options += ["training.steps=2", "training.samples=4", "training.sample_every=2"]
    options += ["training.learning_rate=0.1", "training.warmup_steps=0", "training.ema_rate=0"]
    command = ["train", "digits-vp-nll-st", "--out", str(folder)]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    return folder


def test_the_recipe_of_the_run_says_how_many_classes_there_are(run):
    opened = open_run(run)
    assert opened.recipe.network.options["num_classes"] == 10
    assert opened.card.classes == tuple("0123456789")
    assert opened.model.network.told.classes.weight.shape[0] == 11


def test_it_goes_on_with_the_recipe_it_was_started_with(run, capsys):
    options = ["data.labels=true", "network.options={base_channels: 8}", "training.batch_size=16"]
    options += ["training.learning_rate=0.1", "training.warmup_steps=0", "training.ema_rate=0"]
    command = [
        "train",
        "digits-vp-nll-st",
        "--out",
        str(run),
        "--resume",
        "--dry-run",
        "--tflops",
        "1",
    ]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    assert "num_classes" not in capsys.readouterr().err


def test_classes_take_their_turns_or_one_is_named(run):
    opened = open_run(run)
    assert opened.classes_of(range(8, 13)).tolist() == [8, 9, 0, 1, 2]
    for label, number in (("7", 7), ("none", 10)):
        one = open_run(run, overrides=[f"sampling.label='{label}'"])
        assert one.classes_of(range(3)).tolist() == [number] * 3
    assert opened.classes_of(range(2), unless_told="none").tolist() == [10, 10]


@pytest.mark.parametrize("sampler", ["dpm_solver, steps: 4", "ode, rtol: 0.05, atol: 0.05"])
def test_an_image_is_of_its_class_whatever_the_batch(run, sampler):
    options = [f"sampling={{sampler: {sampler}}}", "sampling.guidance=1.0"]
    opened = open_run(run, overrides=options)
    whole = draw(opened, 5, seed=3, batch_size=5, progress=Silent()).images
    parts = draw(opened, 5, seed=3, batch_size=2, progress=Silent()).images
    # In batches of other sizes a network may round otherwise, by a grey level.
    assert (whole.int() - parts.int()).abs().max() <= 1
    other = draw(
        open_run(run, overrides=[*options, "sampling.label=none"]), 5, seed=3, progress=Silent()
    )
    assert not torch.equal(whole, other.images)


def test_guidance_and_precision_reach_what_is_drawn_from(run):
    opened = open_run(run, overrides=["sampling.guidance=2.0"])
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor(0.4), torch.tensor([1, 5, 9])
    with torch.no_grad():
        own, null = (opened.model.score(x, t, y=v) for v in (y, torch.full((3,), 10)))
        guided = build_drawn(opened.recipe.sampling, opened.model, y).score(x, t)
        torch.testing.assert_close(guided, 3 * own - 2 * null, rtol=1e-4, atol=1e-4)
        half = open_run(run, overrides=["sampling.precision=bf16"])
        low = build_drawn(half.recipe.sampling, half.model, y).score(x, t)
        torch.testing.assert_close(low, own, rtol=0.2, atol=0.5)
    assert not torch.equal(low, own)
    index = torch.tensor([2, 0])
    part = build_drawn(opened.recipe.sampling, opened.model, y).rows(index)
    torch.testing.assert_close(part.score(x[index], t), guided[index], rtol=1e-4, atol=1e-4)


def test_samples_bits_and_an_edit_by_command(run, tmp_path):
    out = tmp_path / "of-three"
    sample = ["sample", str(run), "-n", "2", "--steps", "2", "--class", "3", "--guidance", "1.5"]
    assert main([*sample, "--out", str(out)]) == 0
    assert len(list(out.glob("*.png"))) == 2
    measure = ["evaluate", str(run), "--bpd", "--limit", "4", "--set", "evaluation.nelbo_draws=2"]
    assert main([*measure, "--set", "evaluation.figures=[nelbo]"]) == 0


def test_an_edit_is_of_the_class_that_is_named(run, tmp_path, capsys):
    rough = ("sampling.sampler=ode", "sampling.rtol=0.2", "sampling.atol=0.2")
    rough = [word for option in rough for word in ("--set", option)]
    edit = ["edit", "encode", str(run), "-n", "1", *rough, "--out"]
    seen = {}
    for name, words in (("any", ()), ("none", ("--class", "none")), ("3", ("--class", "3"))):
        assert main([*edit, str(tmp_path / f"{name}.npz"), *words]) == 0
        seen[name] = np.load(tmp_path / f"{name}.npz")["latents"]
    assert np.array_equal(seen["any"], seen["none"])
    assert not np.array_equal(seen["any"], seen["3"])
    way = ["edit", "interpolate", str(run), "--seed", "1", "--seed", "2", "--frames", "2"]
    way += ["--steps", "2", "--class", "3", "--guidance", "1", "--out", str(tmp_path / "way.png")]
    assert main(way) == 0
    assert main([*edit, str(tmp_path / "all.npz"), "--class", "all"]) == 2
    assert "--class all: an edit is of one class" in capsys.readouterr().err


def test_figures_by_class_reach_file_terminal_and_page(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    command = ["evaluate", str(copy), "--bpd", "--intra-fid", "-n", "20", "--limit", "30"]
    options = ["evaluation.figures=[nelbo]", "evaluation.nelbo_draws=2", "sampling.steps=2"]
    options += ["sampling.sampler=dpm_solver", "evaluation.features=digits-mlp"]
    options = [word for option in options for word in ("--set", option)]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr().out
    found = read_evaluation(copy / "evaluation.json")
    figures = {figure.key: figure for figure in found.figures}
    nelbo, intra = figures["nelbo"], figures["intra_frechet_distance"]
    labels = load_digits_split("test").labels[:30]
    shares = {name: float((labels == int(name)).mean()) for name in nelbo.by_class}
    assert sum(shares.values()) == pytest.approx(1.0)
    mean = sum(share * nelbo.by_class[name] for name, share in shares.items())
    assert nelbo.value == pytest.approx(mean)
    assert list(intra.by_class) == list("0123456789")
    assert intra.value == pytest.approx(sum(intra.by_class.values()) / 10)
    assert f"{intra.by_class['7']:.4f}" in printed
    # A grid has a column for each class, and the page says so.
    with Image.open(copy / "samples" / "final.png") as drawn:
        assert drawn.width == 10 * 66 + 2
    page = write_report([copy], tmp_path / "page.html").read_text()
    assert "columns: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in page
    assert "<summary>By class</summary>" in page


def test_of_two_runs_each_is_told_what_it_knows(run, tmp_path_factory):
    """A run with labels takes turns with one without, in either order."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    options = ["network.options={base_channels: 8}", "training.batch_size=16"]
    options += ["training.steps=1", "training.samples=1"]
    command = ["train", "digits-vp-nll-st", "--out", str(folder)]
    assert main([*command, *(word for option in options for word in ("--set", option))]) == 0
    labelled, plain = open_run(run), open_run(folder)
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    early, late = torch.tensor(0.2), torch.tensor(0.8)
    for above, below, given in ((labelled, plain, late), (plain, labelled, early)):
        both = with_below(above, below, 0.5).drawn_from(range(3, 5))
        with torch.no_grad():
            assert torch.equal(both.score(x, given), labelled.model.score(x, given, y=y))
            other = early + late - given
            assert torch.equal(both.score(x, other), plain.model.score(x, other))


def test_the_bits_of_an_image_follow_its_class(run):
    """Another class gives another bound of the same image with the same noise."""

    opened = open_run(run)
    x = 2 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    one, other = (
        nelbo(opened.model.given(y=torch.tensor(y)), x, draws=4, seeds=[0, 1]).nats
        for y in ([1, 2], [1, 7])
    )
    assert one[0] == pytest.approx(float(other[0]), rel=1e-6)
    assert one[1] != pytest.approx(float(other[1]), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--class", "eleven"], "sampling.label=eleven"),
        (["--class", "10"], "sampling.label=10"),
        (["--class", "9" * 5000], "sampling.label=99"),
        (["--set", "sampling.guidance_interval=[3, 1]"], "0 <= low < high"),
        (["--guidance", "nan"], "guidance"),
    ],
)
def test_a_class_that_is_not_there_is_told(run, tmp_path, capsys, arguments, words):
    command = ["sample", str(run), "-n", "2", "--out", str(tmp_path / "out"), *arguments]
    assert main(command) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_labels_knows_no_class(run):
    recipe, card = load_recipe("digits-vp-nll-st", ["sampling.label='3'"]), open_run(run).card
    with pytest.raises(UserError, match=r"sampling.label=3: the run was trained without labels"):
        class_numbers(recipe, card, range(2))


def test_labels_must_be_there_and_as_many_as_told(run):
    card = open_run(run).card
    recipe = load_recipe("digits-vp-nll-st", ["data.labels=true"])
    assert with_classes(recipe, card).network.options["num_classes"] == 10
    told = load_recipe("digits-vp-nll-st", ["data.labels=true", "network.options.num_classes=3"])
    with pytest.raises(UserError, match=r"num_classes=3: digits has 10 classes"):
        with_classes(told, card)

    with pytest.raises(UserError, match="no numbers of classes"):  # labels are there
        with_classes(recipe, dataclasses.replace(card, classes=()))
    bare = dataclasses.replace(card, classes=(), label_fingerprint="")
    with pytest.raises(UserError, match=r"data.labels: true: digits has no labels"):
        with_classes(recipe, bare)


@pytest.mark.parametrize("label", ["all", "none", "3"])
def test_no_class_is_drawn_of_a_run_without_labels(tmp_path, capsys, label):
    folder, out = tmp_path / "run", tmp_path / "out"
    options = ["network.options={base_channels: 8}", "training.batch_size=16"]
    sets = [word for option in options for word in ("--set", option)]
    assert main(["train", "digits-vp-nll-st", "--steps", "1", "--out", str(folder), *sets]) == 0
    capsys.readouterr()
    assert main(["sample", str(folder), "-n", "2", "--class", label, "--out", str(out)]) == 2
    assert "the run was trained without labels" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("options", [["sampling.guidance=1"], ["sampling.label=none"]])
def test_a_run_that_always_saw_labels_knows_no_others(run, options):
    """Its null label was never trained: guidance would go away from noise."""
    recipe = load_recipe(
        "digits-vp-nll-st", ["data.labels=true", "training.label_dropout=0", *options]
    )
    with pytest.raises(UserError, match="label_dropout: 0"):
        class_numbers(recipe, open_run(run).card, range(2))


@pytest.mark.parametrize("classes", [[], ["a", "b"], [str(i) for i in range(30)]])
def test_a_card_with_other_classes_than_the_network_is_told(run, tmp_path, classes):
    edited = shutil.copytree(run, tmp_path / "edited")
    recipe = yaml.safe_load((edited / "recipe.yaml").read_text())
    recipe["provenance"]["data"]["classes"] = classes
    (edited / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=f"names {len(classes)} classes"):
        open_run(edited)
