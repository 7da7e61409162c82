"""The dry run tells costs without data; the list tells what there is."""

from __future__ import annotations

import pytest
import torch

from softtrunc.cli import main
from softtrunc.jobs import rate
from softtrunc.jobs.cost import estimate
from softtrunc.jobs.plan import describe
from softtrunc.jobs.train import train
from softtrunc.recipes import UserError, load_recipe
from softtrunc.recipes.build import build_data
from softtrunc.training import TrainingConfig

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


SMALL = ["network.options={base_channels: 8}"]


def test_the_rate_of_this_machine_is_that_of_training(monkeypatch):
    taken = []

    def fit(state, *given, real=rate.fit, **options):
        for record in real(state, *given, **options):
            taken.append((len(record.t), state))
            yield record

    monkeypatch.setattr(rate, "fit", fit)
    change = ["training.batch_size=8", "training.micro_batch_size=4", "training.posthoc_ema=true"]
    recipe = load_recipe("digits-vp-nll", [*SMALL, *change, "training.channels_last=true"])
    measured = rate.training_rate(recipe, build_data(recipe, "train"), seconds=5.0)
    assert measured.images > 1  # no machine that runs this is slower
    assert measured.device.startswith("this CPU, 1 thread")
    assert [size for size, _ in taken[:6]] == [2, 2, 4, 4, 8, 8]
    assert measured.batch_size in (2, 4, 8)
    (state,) = {id(state): state for _, state in taken}.values()
    assert state.step == state.ema.updates == len(taken)
    assert state.posthoc is not None
    assert len(state.optimizer.state) > 0
    weights = (p for p in state.model.parameters() if p.ndim == 4 and min(p.shape) > 1)
    assert next(weights).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("digits-vp-nll", ["data.labels=true"]),
        ("digits-vp-nll", ["objective.weighting=mixed", "training.batch_size=2"]),
        ("latents-small", ["data={image_size: 8, channels: 4, value_range: [-2, 2]}"]),  # not there
    ],
)
def test_what_is_measured_is_what_would_be_trained(name, settings):
    told = rows(describe(load_recipe(name, [*SMALL, *settings]), seconds=0.01))
    assert "images/s in steps of" in told["here"]


def test_what_would_take_too_long_is_not_measured(monkeypatch):
    recipe = load_recipe("folder-256")
    here = rows(describe(recipe, seconds=0.01))["here"]
    assert here == "not measured: too large; one image takes 1.6 TFLOP"
    assert "leave the launcher out" in rows(describe(recipe, seconds=1.0, processes=4))["here"]

    def fit(*given, real=rate.fit, **options):
        if given[3].batch_size > 4:
            raise torch.OutOfMemoryError
        return real(*given, **options)

    monkeypatch.setattr(rate, "fit", fit)
    recipe = load_recipe("digits-vp-nll", SMALL)
    assert "steps of 128" not in rows(describe(recipe, seconds=2.0))["here"]
    monkeypatch.setattr(rate, "fit", lambda *_, **__: fit(*[None] * 3, TrainingConfig()))
    assert "not measured: too large" in rows(describe(recipe, seconds=0.01))["here"]


def test_half_precision_copies_are_counted():
    half = rows(describe(load_recipe("cifar10-ddpmpp-vp-nll-st", ["training.precision=bf16"])))
    assert "118 MiB for half-precision copies of the weights" in half["memory"]


def test_a_grid_takes_a_copy_of_the_weights_and_a_forward_pass_in_its_own_precision():
    name, size = "cifar10-ddpmpp-vp-nll-st", {"channels": 3, "image_size": (32, 32)}

    def cost(*settings, **more):
        return estimate(load_recipe(name, settings), **size, **more)

    plain, weights = cost(), 4 * 61_804_419
    assert plain.average_bytes == weights
    assert plain.in_grid == plain.state_bytes + weights + plain.grid_bytes
    assert (plain.micro, plain.drawn) == (128, 64)
    # What a sampler holds of 64 images is little beside what the network does.
    half, eighth = (cost(f"training.micro_batch_size={n}") for n in (32, 8))
    assert half.drawn == 32
    assert plain.grid_bytes == pytest.approx(2 * half.grid_bytes, rel=0.01)
    assert half.grid_bytes == pytest.approx(4 * eighth.grid_bytes, rel=0.01)
    # Training in bf16 draws in float32.
    assert cost("training.precision=bf16").grid_bytes == plain.grid_bytes
    drawn_in_half = cost("sampling={sampler: dpm_solver, steps: 10, precision: bf16}").grid_bytes
    assert drawn_in_half - weights // 2 == pytest.approx(plain.grid_bytes / 2, rel=0.01)
    assert cost("training.sample_every=null").in_grid == 0
    assert "grid" not in rows(describe(load_recipe(name, ["training.sample_every=null"])))
    # Each of eight draws eight.
    assert cost(processes=8).drawn == 8
    # The fuller of the two moments is the peak.
    one = ["training.batch_size=1", "training.samples=1"]
    told = rows(describe(load_recipe(name, one)))
    assert "while samples are drawn (a step: " in told["memory"]
    assert "236 MiB for the weights that the average takes the place of" in told["memory"]
    assert "in a step: 1.15 GiB for weights" in rows(describe(load_recipe(name)))["memory"]


def test_several_processes_hold_gradients_once_more_for_micro_batches():
    name, size = "cifar10-ddpmpp-vp-nll-st", {"channels": 3, "image_size": (32, 32)}
    weights = 4 * 61_804_419
    for settings, processes, more in (
        (["training.micro_batch_size=16"], 4, weights),
        (["training.micro_batch_size=16"], 1, 0),
        ([], 4, 0),
        (["training.micro_batch_size=16", "training.shard=true"], 4, 0),
    ):
        recipe = load_recipe(name, settings)
        cost = estimate(recipe, **size, processes=processes)
        assert cost.bucket_bytes == more
        spread = processes if recipe.training.shard else 1
        assert cost.state_bytes == 5 * weights // spread
        assert cost.average_bytes == weights // spread
        memory = rows(describe(recipe, processes=processes))["memory"]
        assert ("236 MiB for gradients that processes exchange" in memory) == bool(more)
        assert ("one of several processes: 236 MiB more" in memory) == (processes == 1)
        assert ("spread over 4 devices" in memory) == (spread == 4)
    told = rows(describe(load_recipe(name, ["training.micro_batch_size=16"]), processes=4))
    assert "32 in each of 4 processes (2 micro-batches of 16" in told["steps"]


@pytest.mark.parametrize("limit", [None, 0])
def test_data_that_stay_on_the_device_are_counted(monkeypatch, limit):
    if limit is not None:
        monkeypatch.setattr("softtrunc.jobs.cost.RESIDENT_BYTES", limit)
    for recipe, held in (("digits-vp-nll", "89.8 KiB"), ("cifar10-ddpmpp-vp-nll-st", "146 MiB")):
        memory = rows(describe(load_recipe(recipe)))["memory"]
        assert (f"{held} for the data" in memory) == (limit is None)
    assert "for the data" not in rows(describe(load_recipe("folder-32")))["memory"]


@pytest.mark.parametrize("averages", [False, True])
def test_the_disk_that_a_run_takes(tmp_path, averages):
    settings = [*SMALL, "training.batch_size=2", "training.samples=4", "training.log_every=10"]
    settings += ["training.steps=40", "training.checkpoint_every=5", "training.keep_checkpoints=2"]
    settings += ["training.sample_every=20", "sampling.steps=2"]
    settings += [f"training.posthoc_ema={str(averages).lower()}"]
    recipe = load_recipe("digits-vp-nll", settings)
    cost = estimate(recipe, channels=1, image_size=(8, 8))
    disk = cost.disk
    train(recipe, tmp_path / "run")
    found = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    # Every file once, however many names it has.
    taken = sum({path.stat().st_ino: path.stat().st_size for path in found}.values())
    # One checkpoint more was there meanwhile.
    assert disk.total - disk.checkpoint == pytest.approx(taken, rel=0.1)
    assert (disk.kept, disk.most) == (2, 3)
    kept = tmp_path / "run" / "checkpoints"
    assert len(list(kept.iterdir())) == disk.kept
    assert len([path for path in found if path.suffix == ".png"]) == disk.grids == 3
    assert disk.metrics == pytest.approx((tmp_path / "run/metrics.jsonl").stat().st_size, rel=0.2)
    assert disk.snapshots == (8 if averages else 0)
    told = rows(describe(recipe))["disk"]
    assert "for 2 checkpoints of" in told
    assert "3 grids of 256 B" in told
    assert ("8 snapshots of averages" in told) == averages


def test_time_without_tf32_is_that_of_float32():
    fast, whole = (
        rows(describe(load_recipe("cifar10-ddpmpp-vp-nll-st", [f"training.tf32={word}"])))["time"]
        for word in ("true", "false")
    )
    assert "TF32 peaks of 156 and 495 TFLOP/s" in fast
    assert "float32 peaks of 19.5 and 67 TFLOP/s" in whole
    days = [float(text.split()[0]) for text in (fast, whole)]
    assert days[1] == pytest.approx(8 * days[0], rel=0.01)


def test_one_of_several_processes_tells_of_the_share_of_each(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    command = ["train", "cifar10-ddpmpp-vp-nll-st", "--dry-run"]
    assert main(command) == 0
    told = rows(capsys.readouterr().out.rstrip())
    assert "32 in each of 4 processes" in told["steps"]
    assert "for activations of 32 images" in told["memory"]
    monkeypatch.setenv("RANK", "1")
    assert main(command) == 0
    assert capsys.readouterr().out == ""
