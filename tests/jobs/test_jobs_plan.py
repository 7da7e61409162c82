"""The dry run tells costs without data; the list tells what there is."""

from __future__ import annotations

import pytest

from softtrunc.cli import main
from softtrunc.jobs.plan import describe, estimate
from softtrunc.jobs.rate import training_rate
from softtrunc.networks import preset
from softtrunc.recipes import UserError, load_recipe

pytestmark = pytest.mark.usefixtures("unchecked")


def rows(text: str) -> dict[str, str]:
    """The lines below the recipe, by their first word."""
    lines = text.rpartition("\n\n")[2].splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_costs_follow_from_operations_and_rate():
    recipe = load_recipe("cifar10-ddpmpp-vp-nll-st")
    cost = estimate(recipe, channels=3, image_size=(32, 32))
    assert cost.parameters == 61_804_419
    # Five float32 numbers a parameter: itself, its gradient, two moments, its average.
    assert cost.state_bytes == 20 * 61_804_419
    assert cost.step == 3 * 128 * cost.forward
    assert cost.total == 1_300_000 * cost.step
    assert cost.days(cost.total / 86_400) == pytest.approx(1.0)
    half = load_recipe("cifar10-ddpmpp-vp-nll-st", ["training.precision=bf16"])
    bytes_in_half = estimate(half, channels=3, image_size=(32, 32)).activation_bytes
    assert 2 * bytes_in_half == pytest.approx(cost.activation_bytes, abs=2)
    cut = load_recipe("cifar10-ddpmpp-vp-nll-st", ["training.micro_batch_size=16"])
    in_parts = estimate(cut, channels=3, image_size=(32, 32))
    assert in_parts.activation_bytes < cost.activation_bytes / 7
    assert in_parts.total == cost.total


def test_the_plan_of_a_recipe_without_its_data():
    told = rows(describe(load_recipe("cifar10-ddpmpp-vp-nll-st")))
    assert told["data"].startswith("CIFAR-10, 50,000 images of 3 x 32 x 32")
    assert told["parameters"] == "61,804,419"
    assert told["steps"] == "1,300,000 of batch 128, 3,328 epochs"
    assert "GPU-days on one A100" in told["time"]
    assert "assuming 35% of their TF32 peaks of 156 and 495 TFLOP/s" in told["time"]
    assert "GiB for activations of 128 images" in told["memory"]
    recipe = load_recipe("cifar10-ddpmpp-vp-nll-st", ["data.source=/nowhere/at/all"])
    assert "not there: " in rows(describe(recipe))["data"]
    with pytest.raises(UserError, match="no such data"):
        describe(load_recipe("digits-vp-nll", ["data.source=/nowhere/at/all"]))


def test_the_rate_may_be_given():
    recipe = load_recipe("cifar10-ddpmpp-vp-nll-st")
    total = estimate(recipe, channels=3, image_size=(32, 32)).total
    days = total / 60e12 / 86_400
    told = rows(describe(recipe, tflops=60.0))["time"]
    assert told == f"{days:.3g} GPU-days on one device at the 60 TFLOP/s given"
    half = load_recipe("cifar10-ddpmpp-vp-nll-st", ["training.precision=bf16"])
    assert "bf16 peaks of 312 and 989" in rows(describe(half))["time"]


def test_training_without_data_says_what_to_give(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "celeba64-ddpmpp-vp-nll-st"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "it is for CelebA" in line
    assert "add --data PATH" in line
    assert list(tmp_path.iterdir()) == []


def test_the_list_shows_every_recipe_in_a_line(capsys):
    assert main(["recipes", "list"]) == 0
    lines = {
        line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[0] != " "
    }
    heading = "recipe data network parameters SDE weight prior paper"
    assert lines["recipe"].split() == heading.split()
    # A heading; the paper, EDM, conditional twins, small ones, studies.
    assert len(lines) == 1 + 30 + 2 + 4 + 12 + 17
    for words in ("cifar10", "373.9 M", "VP", "g² + σ², 100", "k = 0.9", "FID 2.47, bpd 3.03"):
        assert words in lines["cifar10-ddpmpp512-vp-fid-st"]
    assert "hard, eps 5e-05" in lines["imagenet32-ddpmpp-vp-nll"]
    assert "RVE 0.001 … 378" in lines["bedroom256-udm-rve-st"]
    assert "ncsnpp-deep, unbounded" in lines["cifar10-uncsnpp-rve-st"]


def test_the_rate_of_this_machine_is_measured_unless_that_takes_too_long():
    small = preset("tiny", image_size=8, channels=1, base_channels=8)
    rate = training_rate(small, 4, precision="no", seconds=0.1)
    assert rate.flops > 1e5  # no machine that runs this is slower
    assert rate.device.startswith("this ")
    assert (
        training_rate(preset("ncsnpp-256", image_size=256, channels=3), 1, precision="no") is None
    )


def test_half_precision_copies_are_counted():
    half = rows(describe(load_recipe("cifar10-ddpmpp-vp-nll-st", ["training.precision=bf16"])))
    assert "118 MiB for half-precision copies of the weights" in half["memory"]
