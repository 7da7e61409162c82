"""Figures of samples: equal to direct computation, alike over processes, statistics never mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from stand_in import StandIn, save_stand_in
from together import finish_together, start_together

from softtrunc.data import ImageDataset, load_digits_split
from softtrunc.evaluation.distances import Judge, Samples, check_sample_figures
from softtrunc.evaluation.features import share_of
from softtrunc.feedback.processes import company
from softtrunc.feedback.progress import Silent
from softtrunc.metrics import (
    FeatureStatistics,
    TorchScriptFeatures,
    frechet_distance,
    inception_score,
    kernel_inception_distance,
    precision_recall,
)
from softtrunc.recipes import UserError

ALL = frozenset({"fid", "is", "kid", "prdc"})


def pictures(count: int, seed: int, split: str = "train", channels: int = 3) -> ImageDataset:
    shape = (count, channels, 8, 8)
    pixels = np.random.default_rng(seed).integers(0, 200 + 10 * seed, shape, dtype=np.uint8)
    return ImageDataset.create(pixels, name=f"data{seed}", split=split, source="here")


def samples_of(data: ImageDataset) -> Samples:
    def read(numbers: range):
        for part in torch.arange(numbers.start, numbers.stop).split(7):
            yield data.batch(part)

    card = data.card
    return Samples("samples", len(data), card.levels, card.channels, read, {"seed": 3}, lambda: 20)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("SOFTTRUNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


@pytest.fixture
def extractor(tmp_path) -> TorchScriptFeatures:
    return TorchScriptFeatures(save_stand_in(tmp_path / "projections.pt"))


class Lines(Silent):
    """Progress that keeps what is said, and which bars there were."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.bars: list[str] = []

    def task(self, label, total, done=0):
        self.bars.append(label)
        return super().task(label, total, done)

    def say(self, line):
        self.said.append(line)


def judge(extractor, progress=None) -> Judge:
    return Judge(
        extractor,
        Accelerator(cpu=True),
        company(),
        batch_size=11,
        seed=3,
        progress=progress or Silent(),
    )


def test_every_figure_equals_its_direct_computation(extractor):
    ours, train, test = pictures(40, 1), pictures(60, 2), pictures(30, 3, "test")
    found = {
        figure.key: figure
        for figure in judge(extractor).measure(
            samples_of(ours), {"train": train, "test": test}, ALL
        )
    }
    x, y, z = (extractor(torch.from_numpy(d.images)) for d in (ours, train, test))

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        moments = [m for f in (a, b) for m in (f.double().mean(0), f.double().T.cov())]
        return frechet_distance(*moments)

    assert found["frechet_distance"].value == pytest.approx(distance(x, y), rel=1e-9)
    assert found["frechet_distance_test"].value == pytest.approx(distance(x, z), rel=1e-9)
    score = inception_score(extractor.probabilities(torch.from_numpy(ours.images)), 10)
    assert found["inception_score"].value == pytest.approx(score.mean, rel=1e-9)
    protocol = found["inception_score"].protocol
    assert protocol["std_over_splits"] == pytest.approx(score.std, rel=1e-6)
    # As many reference features as samples, drawn at random.
    mask = torch.randperm(60, generator=torch.Generator().manual_seed(3))[:40].sort().values
    kernel = kernel_inception_distance(
        y[mask], x, subset_size=40, generator=torch.Generator().manual_seed(3)
    )
    assert found["kernel_distance"].value == pytest.approx(kernel.mean, rel=1e-6)
    manifold = precision_recall(y[mask], x)
    assert found["precision"].value == manifold.precision
    assert found["recall"].value == manifold.recall
    names = [figure.name for figure in found.values()]
    assert "FD(projections) to held-out" in names
    assert "KD(projections) to 40 references" in names
    protocol = found["frechet_distance"].protocol
    assert protocol["reference_fingerprint"] == train.card.fingerprint
    assert protocol["n_reference"] == 60
    assert protocol["resize"] == "legacy resize"
    assert found["frechet_distance"].nfe == {"mean": 20.0, "max": 20.0}


def test_a_real_network_judges_real_images(shared):
    """Digits against digits are near, against noise far; none of it may be called FID."""
    extractor = TorchScriptFeatures(shared / "data" / "efficientnet_lite0.pt")
    half, other = (load_digits_split(split) for split in ("train", "test"))
    few = [
        ImageDataset.create(d.images[:24], name="digits", split=split, source="here", levels=17)
        for d, split in ((half, "train"), (other, "test"))
    ]
    noise = ImageDataset.create(
        np.random.default_rng(0).integers(0, 17, (24, 1, 8, 8), dtype=np.uint8),
        name="noise",
        split="test",
        source="here",
        levels=17,
    )
    near, far = (
        {f.key: f for f in judge(extractor).measure(samples_of(few[0]), {"test": d}, ALL)}
        for d in (few[1], noise)
    )
    assert near["frechet_distance_test"].name == "FD(efficientnet_lite0) to held-out"
    for key in ("frechet_distance_test", "kernel_distance_test"):
        assert far[key].value > 3 * near[key].value
    assert 1.0 <= near["inception_score"].value <= 1000.0
    assert near["recall"].value > far["recall"].value


def test_grey_images_say_that_they_were_replicated(extractor):
    ours, theirs = pictures(20, 1, channels=1), pictures(20, 2, channels=1)
    (figure,) = judge(extractor).measure(samples_of(ours), {"train": theirs}, frozenset({"fid"}))
    assert figure.protocol["resize"] == "legacy resize, grey replicated to 3 channels"


def test_statistics_are_kept_and_never_mixed(extractor, cache, tmp_path):
    ours, train = samples_of(pictures(20, 1)), pictures(30, 2)
    fid = frozenset({"fid"})

    def value(extractor, data, bars: int, figures=fid) -> float:
        progress = Lines()
        measured = judge(extractor, progress).measure(ours, {data.card.split: data}, figures)
        result = next(f.value for f in measured if f.key.startswith("frechet"))
        assert len(progress.bars) == bars
        return result

    first = value(extractor, train, 2)
    (file,) = cache.iterdir()
    assert value(extractor, train, 1) == first  # found: no bar for the reference
    # Other data, another way of resizing and another network each have a file of their own.
    clean = TorchScriptFeatures(tmp_path / "projections.pt", resize="clean", size=16)
    torch.manual_seed(0)
    other = tmp_path / "other.pt"
    changed = StandIn()
    changed.weight.data *= 2.0
    torch.jit.script(changed).save(str(other))
    values = [
        value(extractor, pictures(30, 5), 2),
        value(clean, train, 2),
        value(TorchScriptFeatures(other), train, 2),
    ]
    assert len({first, *values}) == 4
    assert len(list(cache.iterdir())) == 4
    # With features wanted as well, those alone are computed again.
    assert value(extractor, train, 2, frozenset({"fid", "kid"})) == first
    # Somebody put a wrong file there: it is noticed, said and replaced.
    wrong = next(f for f in cache.iterdir() if f.name[:16] != file.name[:16])
    file.write_bytes(wrong.read_bytes())
    progress = Lines()
    (figure,) = judge(extractor, progress).measure(ours, {"train": train}, fid)
    assert figure.value == first
    assert "computed again" in progress.said[0]
    # Of fewer images than there are, by a slip of whoever wrote it.
    short = FeatureStatistics.load(file)
    short.count = 29
    short.save(file)
    progress = Lines()
    (figure,) = judge(extractor, progress).measure(ours, {"train": train}, fid)
    assert figure.value == first
    assert "of 29 images, not 30" in progress.said[0]
    file.write_bytes(file.read_bytes()[:-40])
    assert value(extractor, train, 2) == first
    assert FeatureStatistics.load(file).count == 30


def test_too_few_images_are_refused_before_anything_is_read(extractor):
    with pytest.raises(UserError, match="need 10 at least"):
        next(judge(extractor).measure(samples_of(pictures(9, 1)), {}, frozenset({"is"})))
    few = {"train": pictures(1, 2)}
    with pytest.raises(UserError, match="too few to compare with"):
        next(judge(extractor).measure(samples_of(pictures(9, 1)), few, frozenset({"fid"})))
    with pytest.raises(UserError, match="did you mean 'fid'"):
        check_sample_figures(["fidd"])


# Two processes judge the same samples; the main one prints what it found.
RANK = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ["SOFTTRUNC_CACHE"] = sys.argv[3]
from accelerate import Accelerator
from test_distances import ALL, judge, pictures, samples_of, share_of
from softtrunc.metrics import TorchScriptFeatures
from softtrunc.evaluation.distances import Judge
from softtrunc.feedback.processes import company
from softtrunc.feedback.progress import Silent

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(os.environ["WORLD_SIZE"])
extractor = TorchScriptFeatures(__import__("pathlib").Path(sys.argv[2]))
found = []
for again in range(2):  # the second time with kept statistics
    judge = Judge(extractor, accelerator, company(), batch_size=11, seed=3, progress=Silent())
    found += judge.measure(samples_of(pictures(41, 1)), {"train": pictures(61, 2)}, ALL)
assert accelerator.is_main_process or not found
print(*(f"{f.key}={f.value!r}" for f in found), sep="\\n", flush=True)
accelerator.wait_for_everyone()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    network = save_stand_in(tmp_path / "projections.pt")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [str(script), str(Path(__file__).parent), str(network)]

    def values(text: str) -> list[tuple[str, float]]:
        pairs = (line.partition("=") for line in text.split())
        return [(key, float(value)) for key, _, value in pairs]

    answers = []
    for world in (1, 2):
        ended = finish_together(start_together([*command, f"cache-{world}"], tmp_path, world))
        assert [code for code, _, _ in ended] == [0] * world, ended
        answers.append(values(ended[0][1]))
    one, two = answers
    assert len(one) == 10
    assert [key for key, _ in one] == [key for key, _ in two]
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-9)
    assert [v for _, v in one[:5]] == pytest.approx([v for _, v in one[5:]], rel=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_shares_are_consecutive_and_whole():
    class Processes:
        num_processes = 3

    shares = []
    for index in range(3):
        Processes.process_index = index
        shares.append(share_of(10, Processes))
    assert [i for share in shares for i in share] == list(range(10))
