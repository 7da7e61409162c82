"""Bits per dimension of a run: every image once, nothing lost, nothing that means nothing."""

import csv
import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from softtrunc import VESDE, VPSDE
from softtrunc.data import ImageDataset, to_model_range
from softtrunc.density import Dequantizer, lossless_eps
from softtrunc.evaluation.bits import BitsMeasurement
from softtrunc.evaluation.figure import DENSITY_FIGURES, DensityFigure
from softtrunc.evaluation.image_results import COLUMNS, ImageResults
from softtrunc.evaluation.protocol import DensityProtocol
from softtrunc.feedback.processes import Company
from softtrunc.jobs.measure import check_images, measure
from softtrunc.jobs.measured import measured_figures
from softtrunc.jobs.train import train
from softtrunc.jobs.truncated import choose_time
from softtrunc.recipes import UserError, load_recipe
from softtrunc.recipes.build import build_data
from softtrunc.recipes.schema import DensityFigure as SchemaFigure
from softtrunc.runs.open_run import open_run
from softtrunc.sde import expand_to

pytestmark = pytest.mark.usefixtures("unchecked")

LOOSE = ["evaluation.rtol=0.1", "evaluation.atol=0.1", "evaluation.solver_check=0"]
SMALL = [*LOOSE, "evaluation.nelbo_draws=2", "evaluation.batch_size=4", "evaluation.passes=2"]
PROTOCOL = DensityProtocol(rtol=0.1, atol=0.1, passes=2, limit=5, batch_size=2, solver_check=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = load_recipe(
        "digits-vp-nll-st",
        ["training.steps=4", "training.batch_size=8", "network.options={base_channels: 8}"],
    )
    folder = tmp_path_factory.mktemp("measured") / "run"
    train(recipe, folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture(scope="module")
def opened(run):
    return open_run(run)


@pytest.fixture(scope="module")
def digits(opened):
    return build_data(opened.recipe, "test")


def figures(folder):
    content = json.loads((folder / "evaluation.json").read_text())
    return {figure["key"]: figure for figure in content["figures"]}


def measured(key, model, data, protocol):
    measurement = BitsMeasurement(key, model, data, protocol)
    results = ImageResults(protocol.passes, protocol.images(data))
    measurement.fill(results)
    return measurement.figure(results)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_schema_knows_the_figures_that_are_measured():
    assert SchemaFigure == DensityFigure
    assert set(DENSITY_FIGURES) == set(SchemaFigure.__args__)


def test_every_image_is_counted_once_per_pass_and_every_term_is_written(copy, tmp_path):
    path = tmp_path / "images.csv"
    measure(copy, samples=(), limit=6, overrides=SMALL, per_image=path)
    rows = table(path)
    assert list(rows[0]) == ["figure", "pass", "image", *COLUMNS]
    keys = [(r["figure"], int(r["pass"]), int(r["image"])) for r in rows]
    assert keys == [
        (f, p, i) for f in ("nll_residual", "nll", "nelbo") for p in range(2) for i in range(6)
    ]
    for key, figure in figures(copy).items():
        mine = [r for r in rows if r["figure"] == key]
        bits = np.array([float(r["bits_per_dim"]) for r in mine]).reshape(2, 6)
        assert figure["value"] == pytest.approx(bits.mean(), abs=1e-12)
        error = bits.mean(0).std(ddof=1) / 6**0.5
        assert figure["standard_error"] == pytest.approx(error, rel=1e-9)
        assert figure["nfe"]["max"] == max(float(r["nfe"]) for r in mine)
        assert not np.array_equal(bits[0], bits[1])  # fresh noise
        protocol = figure["protocol"]
        assert (protocol["split"], protocol["n"], protocol["passes"]) == ("test", 6, 2)
        assert (protocol["levels"], protocol["value_range"]) == (17, [-1.0, 1.0])
        for entry in ("dequantization", "residual", "eps", "seed", "estimator"):
            assert entry in protocol
        for r in mine:
            assert float(r["importance"]) == 0.0
            terms = sum(float(r[c]) for c in ("prior", "flow", "residual", "dequantization"))
            assert terms == pytest.approx(float(r["nats"]), abs=1e-9)
            offset = np.log2(17 / 2.0)
            expected = float(r["nats"]) / (64 * np.log(2.0)) + offset
            assert float(r["bits_per_dim"]) == pytest.approx(expected, abs=1e-9)
    assert all(float(r["residual"]) == 0.0 for r in rows if r["figure"] == "nll")
    assert not (copy / "evaluation.partial").exists()


class StoppedError(Exception):
    pass


class Killing:
    """Progress that breaks off after so many advances, and remembers where bars began."""

    def __init__(self, after=None):
        self.left = after
        self.tasks = []
        self.lines = []

    @contextmanager
    def task(self, label, total, done=0):
        self.tasks.append((label.split()[0], total, done))
        yield self

    def advance(self, n=1, note=""):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise StoppedError

    def say(self, line):
        self.lines.append(line)


def test_an_interrupted_evaluation_goes_on_and_ends_in_the_same_numbers(run, copy, tmp_path):
    straight = shutil.copytree(run, tmp_path / "straight")
    tables = tmp_path / "a.csv", tmp_path / "b.csv"
    measure(straight, samples=(), limit=10, overrides=SMALL, per_image=tables[0])
    with pytest.raises(StoppedError):
        # Six parts a figure: it breaks off in the second one.
        measure(copy, samples=(), limit=10, overrides=SMALL, progress=Killing(after=8))
    (part, *_) = sorted((copy / "evaluation.partial").glob("nll_residual-*/*.npz"))
    part.write_bytes(part.read_bytes()[:100])  # damaged on the way
    again = Killing()
    measure(copy, samples=(), limit=10, overrides=SMALL, per_image=tables[1], progress=again)
    done = {label: d for label, _, d in again.tasks}
    assert done["nll_residual"] == 16
    assert 8 <= done["nll"] <= 12
    assert done["nelbo"] == 0
    assert any("interrupted" in line for line in again.lines)
    assert tables[0].read_text() == tables[1].read_text()
    assert not (copy / "evaluation.partial").exists()


@pytest.mark.parametrize("change", ["evaluation.seed=1", "evaluation.probes=2"])
def test_another_protocol_uses_nothing_of_an_interrupted_one(copy, change):
    with pytest.raises(StoppedError):
        measure(copy, samples=(), limit=8, overrides=SMALL, progress=Killing(after=2))
    again = Killing(after=0)
    with pytest.raises(StoppedError):
        measure(copy, samples=(), limit=8, overrides=[*SMALL, change], progress=again)
    assert [t for t in again.tasks if t[0].startswith("nll")] == [("nll_residual", 16, 0)]
    assert not again.lines


def test_other_batches_and_more_passes_use_what_is_there(copy):
    with pytest.raises(StoppedError):
        measure(copy, samples=(), limit=8, overrides=SMALL, progress=Killing(after=2))
    again = Killing(after=0)
    changes = [*SMALL, "evaluation.batch_size=3", "evaluation.passes=3"]
    with pytest.raises(StoppedError):
        measure(copy, samples=(), limit=7, overrides=changes, progress=again)
    # Images 0 to 6 of the first pass are at hand, and 0 to 3 of the second.
    assert [t for t in again.tasks if t[0].startswith("nll")] == [("nll_residual", 21, 11)]


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_a_number_that_does_not_divide(opened, digits, processes):
    """Five images in batches of two: together exactly what one process measures."""
    whole, shared = ImageResults(2, 5), ImageResults(2, 5)
    measurement = BitsMeasurement("nll_residual", opened.model, digits, PROTOCOL)
    for chunk in measurement.chunks():
        assert whole.add(chunk) == len(chunk.images)
    for place in range(processes):
        share = slice(place, None, processes)
        for chunk in measurement.chunks(deal=lambda items, share=share: iter(items[share])):
            assert shared.add(chunk) == len(chunk.images)  # none twice
    assert whole.complete
    assert shared.complete
    for name in COLUMNS:
        assert np.array_equal(whole.columns[name], shared.columns[name])


def test_batches_change_no_number(opened, digits):
    wide = replace(PROTOCOL, batch_size=5, passes=1)
    results = ImageResults(1, 5), ImageResults(1, 5)
    for found, protocol in zip(results, (wide, replace(wide, batch_size=3)), strict=True):
        BitsMeasurement("nll_residual", opened.model, digits, protocol).fill(found)
    gap = results[0].columns["bits_per_dim"] - results[1].columns["bits_per_dim"]
    assert np.abs(gap).max() < 1e-4


def test_a_figure_with_images_missing_is_refused(opened, digits):
    with pytest.raises(ValueError, match="10 images were not measured"):
        BitsMeasurement("nll", opened.model, digits, PROTOCOL).figure(ImageResults(2, 5))


def test_the_error_of_the_solver_is_measured(opened, digits):
    """A loose tolerance shows as a larger error than a tight one, and the NELBO has none."""
    errors = []
    for tol in (0.3, 1e-3):
        protocol = replace(PROTOCOL, rtol=tol, atol=tol, passes=1, limit=4, solver_check=3)
        figure = measured("nll", opened.model, digits, protocol)
        assert figure.solver_error["images"] == 3
        assert figure.solver_error["rtol"] == pytest.approx(tol / 30)
        errors.append(figure.solver_error["rms"])
    assert errors[1] < 0.3 * errors[0]
    results = ImageResults(1, 4)
    nelbo = BitsMeasurement("nelbo", opened.model, digits, protocol)
    assert nelbo.solver_error(results) is None


def test_a_loose_figure_is_corrected_by_the_error_of_few_images(opened, digits):
    """Corrected on all images it is the tight figure; on half of them it is nearer than before."""
    loose = replace(PROTOCOL, rtol=0.3, atol=0.3, passes=1, limit=4)
    found = {
        count: measured(
            "nll", opened.model, digits, replace(loose, solver_check=count, solver_correction=on)
        )
        for count, on in ((0, False), (2, True), (4, True))
    }
    tight = measured("nll", opened.model, digits, replace(loose, rtol=0.01, atol=0.01))
    assert found[4].value == pytest.approx(tight.value, abs=1e-9)
    assert found[4].protocol["solver_correction"] == 4
    off = abs(found[0].value - tight.value)
    assert off > 1e-4
    assert abs(found[2].value - tight.value) < 0.5 * off
    error = found[2].solver_error
    scatter = error["rms"] ** 2 - error["mean"] ** 2
    expected = math.sqrt(found[0].standard_error ** 2 + scatter)
    assert found[2].standard_error == pytest.approx(expected)
    with pytest.raises(ValueError, match="2 images at least"):
        measured(
            "nll", opened.model, digits, replace(loose, solver_check=1, solver_correction=True)
        )
    with pytest.raises(UserError, match="write solver_check: 64"):
        load_recipe("digits-vp-nll", ["evaluation={solver_correction: true, solver_check: 1}"])


def test_lossless_figures_are_probabilities_of_levels(copy, tmp_path):
    path = tmp_path / "images.csv"
    changes = [*SMALL, "evaluation.figures=[nll_lossless, nelbo_lossless]"]
    measure(copy, samples=(), limit=4, overrides=changes, per_image=path)
    assert set(figures(copy)) == {"nll_lossless", "nelbo_lossless"}
    protocol = figures(copy)["nll_lossless"]["protocol"]
    assert protocol["dequantization"].startswith("none")
    assert protocol["value_range"] == [-1.0, 1.0]
    assert protocol["eps"] == pytest.approx(lossless_eps(VPSDE(), 17))
    for r in table(path):
        expected = float(r["nats"]) / (64 * np.log(2.0))
        assert float(r["bits_per_dim"]) == pytest.approx(expected, abs=1e-9)


def test_lossless_settings_of_the_recipe_reach_the_figure(copy):
    figure = "evaluation.figures=[nelbo_lossless]"
    measure(copy, samples=(), limit=2, overrides=[*SMALL, figure, "evaluation.lossless_eps=0.02"])
    protocol = figures(copy)["nelbo_lossless"]["protocol"]
    assert protocol["eps"] == 0.02
    assert protocol["dequantization"].endswith("in cells")
    recipe = copy / "recipe.yaml"
    text = recipe.read_text()
    assert "dequantize: true" in text
    recipe.write_text(text.replace("dequantize: true", "dequantize: false"))
    loose = "evaluation.figures=[nelbo, nelbo_lossless]"
    measure(copy, samples=(), limit=2, overrides=[*SMALL, loose])
    protocol = figures(copy)["nelbo"]["protocol"]
    assert protocol["value_range"] == [-1.0, 1.0]  # the cells of the public code
    assert protocol["dequantization"].startswith("uniform; the model was trained without")
    protocol = figures(copy)["nelbo_lossless"]["protocol"]
    assert protocol["value_range"] == [-1.0625, 1.0625]
    assert protocol["eps"] == pytest.approx(lossless_eps(VPSDE(), 17, (-1.0625, 1.0625)))
    assert protocol["dequantization"].endswith("end to end")


class Levels(nn.Module):
    """The exact score of independent grey levels, level k with probability `p[k]`."""

    value_range = (-1.0, 1.0)

    def __init__(self, p, positions, spread=0.0):
        super().__init__()
        self.sde = VPSDE()
        self.log_p = nn.Parameter(p.log())
        self.positions = positions
        self.spread = spread

    def score(self, x, t):
        alpha, sigma = (
            expand_to(v.to(x).expand(len(x)), x)[..., None] for v in self.sde.marginal(t)
        )
        gap, sigma = alpha * self.positions.to(x) - x[..., None], sigma.hypot(alpha * self.spread)
        posterior = (self.log_p.to(x) - 0.5 * (gap / sigma).square()).softmax(-1)
        return (posterior * gap / sigma.square()).sum(-1)

    def mass(self, edges, eps):
        """Probability of each cell, of x_eps / alpha."""
        alpha, sigma = self.sde.marginal(torch.tensor(eps, dtype=torch.float64))
        spread = (sigma / alpha).hypot(torch.full_like(sigma, self.spread))
        law = torch.distributions.Normal(self.positions.double(), spread)
        below = law.cdf(edges.double()[:, None]) @ self.log_p.detach().exp().double()
        return below.diff()


@pytest.mark.parametrize("key", ["nll_lossless", "nelbo_lossless"])
def test_lossless_figures_of_plain_data_are_its_entropy(key):
    """Of a model that knows the levels as training without dequantisation shows them: log p.

    On the grid of cells the same model is asked for levels that it holds to be impossible.
    """
    p = torch.linspace(1.0, 3.0, 5) / 10.0
    pixels = np.random.default_rng(0).choice(5, (16, 1, 8, 8), p=p.numpy()).astype(np.uint8)
    data = ImageDataset.create(pixels, name="own", split="test", source="here", levels=5)
    model = Levels(p, to_model_range(torch.arange(5)[:, None, None, None], levels=5).flatten())
    truth = -p.log2()[pixels.astype(np.int64)].mean()
    protocol = DensityProtocol(lossless_eps=0.01, nelbo_draws=256, solver_check=0)
    plain = replace(protocol, dequantized=False)
    figure = measured(key, model, data, plain)
    assert figure.protocol["value_range"] == [-1.25, 1.25]
    # 1,024 pixels; the standard error is that of the noise alone, below 0.01.
    assert figure.value == pytest.approx(float(truth), abs=0.03)
    assert measured(key, model, data, protocol).value > truth + 1.0


SKEWED = torch.tensor([0.5, 0.02, 0.3, 0.01, 0.17])


def skewed(count):
    """Images of five levels with these probabilities, and bits/dim of each under them."""
    p = SKEWED.double() / SKEWED.double().sum()
    pixels = np.random.default_rng(0).choice(5, (count, 1, 2, 2), p=p.numpy()).astype(np.uint8)
    data = ImageDataset.create(pixels, name="own", split="test", source="here", levels=5)
    return data, -p.log2()[pixels.astype(np.int64)].mean((1, 2, 3))


@pytest.mark.parametrize("key", ["nll_truncated", "nelbo_truncated"])
def test_truncated_figures_at_the_time_that_is_chosen_are_the_entropy(key, monkeypatch):
    """Of the exact model, at the default eps: within 2 % and not below."""
    monkeypatch.setattr("softtrunc.evaluation.protocol.SIGMAS", (1 / 8, 1.0, 4.0))
    data, truth = skewed(128)
    model = Levels(SKEWED, to_model_range(torch.arange(5)[:, None, None, None], levels=5).flatten())
    protocol = DensityProtocol(nelbo_draws=48, solver_check=0, dequantized=False)
    measurement = BitsMeasurement(key, model, data, protocol)
    with pytest.raises(ValueError, match="choose truncated_eps"):
        measurement.eps  # noqa: B018

    def fill(one, words):
        results = ImageResults(one.protocol.passes, one.protocol.images(one.data))
        one.fill(results)
        return results

    chosen = choose_time(measurement, data, fill, Company())
    found = fill(chosen, "")
    figure = chosen.figure(found)
    assert figure.protocol["eps_chosen"]["images"] == 32
    assert figure.protocol["eps_in_sigmas"] == pytest.approx(4.0)
    bits = figure.protocol["eps_chosen"]["bits_per_dim"]
    assert bits[-1] == min(bits) < max(bits) - 0.2
    gap = found.mean().mean - float(truth.mean())
    error = float(np.std(found.columns["bits_per_dim"][0] - truth.numpy())) / 128**0.5
    assert -4 * error - 2e-3 < gap < 0.02 * truth.mean()


@pytest.mark.parametrize("key", ["nll_residual", "nll_learned", "nll_truncated", "nll_lossless"])
def test_more_draws_are_tighter_and_never_below_the_truth(key):
    """Of levels spread like Gaussians inside their cells; one of a thousand seeds would fail."""
    data, _ = skewed(96)
    edges = torch.linspace(-1.0, 1.0, 6)
    model = Levels(SKEWED, 0.5 * (edges[1:] + edges[:-1]), spread=0.06)
    plain = DensityProtocol(solver_check=0, batch_size=2000, truncated_eps=1e-2, lossless_eps=1e-2)
    bits = {}
    for draws in (4, 16):
        protocol = replace(plain, importance=draws)
        measurement = BitsMeasurement(key, model, data, protocol, Dequantizer((1, 2, 2), levels=5))
        results = ImageResults(1, 96)
        measurement.fill(results)
        columns = {name: found[0] for name, found in results.columns.items()}
        bits[draws] = columns["bits_per_dim"]
    bits[1] = bits[16] - columns["importance"] / (4 * np.log(2.0))
    if measurement.eps > 1e-3:  # of the levels: their outer cells reach out to infinity
        edges[0], edges[-1] = -99.0, 99.0
    levels = data.batch(torch.arange(96)).long()
    truth = -model.mass(edges, measurement.eps).log2()[levels].mean((1, 2, 3)).numpy()
    for looser, tighter, least in (
        (bits[1], bits[4], 3.0),
        (bits[4], bits[16], 3.0),
        (bits[16], truth, -3.0),
    ):
        gain = looser - tighter
        assert gain.mean() > least * gain.std() / 96**0.5
    assert (bits[16] - truth).mean() < 0.4 * (bits[1] - truth).mean()
    terms = ("prior", "flow", "residual", "dequantization", "importance")
    np.testing.assert_allclose(sum(columns[name] for name in terms), columns["nats"], atol=1e-9)
    assert columns["nfe"].min() > 16 * 20


def test_weighed_draws_are_told_and_do_not_depend_on_the_batch(copy, tmp_path, monkeypatch):
    monkeypatch.setattr("softtrunc.jobs.truncated._IMAGES", 2)
    monkeypatch.setattr("softtrunc.evaluation.protocol.SIGMAS", (0.5, 2.0))
    changes = [*SMALL, "evaluation.figures=[nll_truncated,nelbo_truncated]"]
    tables = {}
    for size in (2, 5):
        more = ["evaluation.importance=3", f"evaluation.batch_size={size}"]
        path = tmp_path / f"{size}.csv"
        measure(
            copy,
            samples=(),
            limit=2,
            overrides=[*changes, *more],
            per_image=path,
        )
        tables[size] = [float(row["bits_per_dim"]) for row in table(path)]
    np.testing.assert_allclose(tables[2], tables[5], atol=2e-3)
    found = figures(copy)
    nll, nelbo = found["nll_truncated"], found["nelbo_truncated"]
    assert nll["name"] == "bits/dim, truncated normal, K = 3"
    assert nll["protocol"]["importance"] == 3
    assert "importance" not in nelbo["protocol"]
    for figure in (nll, nelbo):
        chosen = figure["protocol"]["eps_chosen"]
        assert chosen["split"] == "train"
        assert len(chosen["bits_per_dim"]) == len(chosen["sigmas"])
        best = chosen["sigmas"][int(np.argmin(chosen["bits_per_dim"]))]
        assert figure["protocol"]["eps_in_sigmas"] == pytest.approx(best)
    # A study would find them again, were they of all images.
    content = json.loads((copy / "evaluation.json").read_text())
    for figure in content["figures"]:
        figure["protocol"]["n"] = figure["data"]["n"]
    (copy / "evaluation.json").write_text(json.dumps(content))
    opened = open_run(copy, overrides=[*changes, "evaluation.importance=3"])
    recipe = opened.recipe.model_copy(
        update={"training": opened.recipe.training.model_copy(update={"steps": opened.step})}
    )
    assert {f.key for f in measured_figures(opened.run, recipe)} == {*found}
    two = recipe.evaluation.model_copy(update={"importance": 2})
    other = recipe.model_copy(update={"evaluation": two})
    assert [f.key for f in measured_figures(opened.run, other)] == ["nelbo_truncated"]


def test_a_learned_dequantizer_is_trained_once_and_told_apart(copy):
    changes = [
        *SMALL,
        "evaluation.figures=[nll_learned]",
        "evaluation.dequantizer={steps: 6, width: 4, layers: 1, batch_size: 8}",
    ]
    first, second, third = Killing(), Killing(), Killing()
    measure(copy, samples=(), limit=4, overrides=LOOSE)
    measure(copy, samples=(), limit=4, overrides=changes, progress=first)
    assert ("dequantizer", 6, 0) in first.tasks
    trained = (copy / "dequantizer.safetensors").read_bytes()
    protocol = figures(copy)["nll_learned"]["protocol"]
    assert protocol["dequantizer"]["training_steps"] == 6
    assert protocol["dequantization"] == "learned (variational flow)"
    # The uniform figures stay beside it, under their own names.
    assert figures(copy)["nll_residual"]["protocol"]["dequantization"] == "uniform"
    measure(copy, samples=(), limit=4, overrides=changes, progress=second)
    assert not [t for t in second.tasks if t[0] == "dequantizer"]
    assert (copy / "dequantizer.safetensors").read_bytes() == trained
    measure(
        copy,
        samples=(),
        limit=4,
        overrides=[*changes, "evaluation.dequantizer.steps=3"],
        progress=third,
    )
    assert ("dequantizer", 3, 0) in third.tasks
    assert not list(copy.glob(".*.partial"))


def test_a_table_in_parquet(copy, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "images.parquet"
    measure(copy, samples=(), limit=3, overrides=SMALL, per_image=path)
    found = parquet.read_table(path)
    assert found.column_names == ["figure", "pass", "image", *COLUMNS]
    assert found.num_rows == 3 * 2 * 3
    protocols = json.loads(found.schema.metadata[b"softtrunc"])
    assert protocols["nll"]["residual"] == "none"
    assert str(found.schema.field("nfe").type) == "int64"
    assert not list(tmp_path.glob(".*"))


def test_a_table_that_could_not_be_written_is_refused_first(copy, tmp_path, monkeypatch):
    for name, words in (("images.xlsx", "ends in .csv or .parquet"), ("d.csv", "is a folder")):
        (tmp_path / "d.csv").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=words):
            measure(copy, samples=(), per_image=tmp_path / name, overrides=SMALL)
    monkeypatch.setattr("softtrunc.evaluation.image_results.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"softtrunc\[parquet\]"):
        measure(copy, samples=(), per_image=tmp_path / "i.parquet", overrides=SMALL)
    assert not (copy / "evaluation.json").exists()


def images(values, levels):
    pixels = np.asarray(values, dtype=np.uint8).reshape(-1, 1, 8, 8)
    return ImageDataset.create(pixels, name="own", split="test", source="here", levels=levels)


def test_bits_that_mean_nothing_are_refused(opened):
    noise = np.random.default_rng(0)
    good = images(noise.integers(0, 17, 8 * 64), 17)
    check_images(opened, good)
    eight_bit = images(noise.integers(0, 256, 8 * 64), 256)
    with pytest.raises(UserError, match="256 levels, but the model was trained on 17"):
        check_images(opened, eight_bit)
    with pytest.raises(UserError, match="normalised before they were stored"):
        check_images(opened, images(noise.integers(0, 2, 8 * 64), 17))
    with pytest.raises(UserError, match="fewer levels than the 17 stated"):
        check_images(opened, images(4 * noise.integers(0, 5, 8 * 64), 17))


def test_a_diffusion_with_too_little_noise_for_lossless_figures_is_refused(opened, digits):
    lossless = opened.recipe.evaluation.model_copy(update={"figures": ("nelbo_lossless",)})
    quiet = SimpleNamespace(
        card=opened.card,
        recipe=opened.recipe.model_copy(update={"evaluation": lossless}),
        model=SimpleNamespace(sde=VESDE(sigma_min=1e-4, sigma_max=0.02), value_range=(0.0, 1.0)),
    )
    with pytest.raises(UserError, match="recipe digits-vp-nll-st: lossless_eps: 17 levels"):
        check_images(quiet, digits)


def test_unknown_names_are_refused(opened, digits):
    with pytest.raises(ValueError, match="'nll_best' is unknown"):
        measured("nll_best", opened.model, digits, PROTOCOL)
    with pytest.raises(ValueError, match="needs a trained dequantizer"):
        measured("nll_learned", opened.model, digits, PROTOCOL)
    with pytest.raises(UserError, match="figures"):
        load_recipe("digits-vp-nll", ["evaluation.figures=[nll_best]"])
    assert torch.is_grad_enabled()
