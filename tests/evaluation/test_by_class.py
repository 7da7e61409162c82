"""Figures by class: equal to direct computation, refused where classes are not known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from stand_in import save_stand_in

from softtrunc.data import ImageDataset
from softtrunc.evaluation.by_class import Labels, in_turns, intra_distances
from softtrunc.evaluation.distances import Judge, Samples
from softtrunc.feedback.processes import company
from softtrunc.feedback.progress import Silent
from softtrunc.metrics import TorchScriptFeatures, frechet_distance
from softtrunc.recipes import UserError
from softtrunc.records import class_columns

NAMES = ("cat", "dog", "owl")


def pictures(count: int, seed: int, *, labelled: bool = True, names=NAMES) -> ImageDataset:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (count, 3, 8, 8), dtype=np.uint8)
    labels = rng.permutation(np.arange(count) % len(names)) if labelled else None
    return ImageDataset.create(
        pixels,
        name=f"data{seed}",
        split="train",
        source="here",
        labels=labels,
        classes=names if labelled else (),
    )


def samples_of(data: ImageDataset) -> Samples:
    def read(numbers: range):
        for part in torch.arange(numbers.start, numbers.stop).split(7):
            yield data.batch(part)

    known = data.labels is not None
    return Samples(
        "samples",
        len(data),
        data.card.levels,
        data.card.channels,
        read,
        {"seed": 3},
        lambda: 20,
        Labels.of(data) if known else None,
    )


@pytest.fixture(scope="module")
def extractor(tmp_path_factory) -> TorchScriptFeatures:
    return TorchScriptFeatures(save_stand_in(tmp_path_factory.mktemp("net") / "projections.pt"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SOFTTRUNC_CACHE", str(tmp_path / "cache"))


class Bars(Silent):
    """Progress that keeps which bars there were."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def task(self, label, total, done=0):
        self.seen.append(label)
        return super().task(label, total, done)


def judged(
    extractor,
    ours: ImageDataset,
    theirs: ImageDataset,
    figures=frozenset({"intra"}),
    progress: Silent | None = None,
):
    judge = Judge(
        extractor,
        Accelerator(cpu=True),
        company(),
        batch_size=11,
        seed=3,
        progress=progress or Silent(),
    )
    return list(judge.measure(samples_of(ours), {"train": theirs}, figures))


def directly(extractor, ours: ImageDataset, theirs: ImageDataset) -> dict[str, float]:
    found = {}
    for number, name in enumerate(NAMES):
        moments = []
        for data in (ours, theirs):
            x = extractor(torch.from_numpy(data.images[data.labels == number])).double()
            moments += [x.mean(0), x.T.cov()]
        found[name] = frechet_distance(*moments)
    return found


def test_the_intra_distance_is_the_mean_of_the_classes_distances(extractor):
    ours, theirs = pictures(40, 1), pictures(60, 2)
    [figure] = judged(extractor, ours, theirs)
    expected = directly(extractor, ours, theirs)
    assert figure.key == "intra_frechet_distance"
    assert figure.by_class == pytest.approx(expected, rel=1e-6)
    assert figure.value == pytest.approx(sum(expected.values()) / 3, rel=1e-6)
    assert figure.protocol["samples_per_class"] == 13
    assert figure.name.startswith("intra-FD(")


def test_classes_are_measured_beside_the_others_without_changing_them(extractor):
    ours, theirs = pictures(40, 1), pictures(60, 2)
    others = frozenset({"fid", "kid"})
    alone = {figure.key: figure.value for figure in judged(extractor, ours, theirs, others)}
    beside = {f.key: f.value for f in judged(extractor, ours, theirs, others | {"intra"})}
    assert alone == {key: beside[key] for key in alone}
    assert beside["intra_frechet_distance"] == pytest.approx(
        sum(directly(extractor, ours, theirs).values()) / 3, rel=1e-6
    )


def test_the_references_are_read_once_for_all_figures(extractor):
    bars = Bars()
    judged(extractor, pictures(40, 1), pictures(60, 2), frozenset({"fid", "kid", "intra"}), bars)
    assert bars.seen == ["samples", "features of data2 train"]


def test_a_class_that_is_drawn_as_another_shows(extractor):
    """With two classes exchanged the distance within them grows; over all it stays."""
    ours = pictures(300, 1)
    bright = ours.images // 4 + 60 * ours.labels[:, None, None, None].astype(np.uint8)
    ours = dataclasses.replace(ours, images=bright)
    swapped = dataclasses.replace(ours, labels=np.array([1, 0, 2])[ours.labels])
    right, wrong = (
        judged(extractor, x, ours, frozenset({"fid", "intra"})) for x in (ours, swapped)
    )
    assert right[0].value == pytest.approx(wrong[0].value, abs=1e-6)
    assert right[1].value == pytest.approx(0.0, abs=1e-6)
    assert wrong[1].by_class["owl"] == pytest.approx(0.0, abs=1e-6)
    assert min(wrong[1].by_class["cat"], wrong[1].by_class["dog"]) > 0.1


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (pictures(9, 1, labelled=False), pictures(9, 2), "class of the samples is not known"),
        (pictures(9, 1), pictures(9, 2, labelled=False), "data2 (train): has no labels"),
        (pictures(9, 1, names=("cat", "dog", "elk")), pictures(9, 2), "are not those of data2"),
        (pictures(5, 1), pictures(9, 2), "class 'owl' has 1 samples"),
        (pictures(9, 1), pictures(5, 2), "class 'owl' has 1 train images"),
    ],
)
def test_what_has_no_distance_within_classes_is_refused(extractor, ours, theirs, words):
    with pytest.raises(UserError) as told:
        judged(extractor, ours, theirs)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_real_images_take_turns_as_samples_do():
    data = pictures(40, 1)
    numbers = in_turns(data, 10)
    assert data.classes_of(numbers).tolist() == [0, 1, 2] * 3 + [0]
    assert len(set(numbers.tolist())) == 10
    few = ImageDataset.create(
        data.images[:3],
        name="few",
        split="train",
        source="here",
        labels=np.array([0, 0, 2]),
        classes=NAMES,
    )
    assert few.classes_of(in_turns(few, 6)).tolist() == [0, 2, 0, 2]
    assert [class_columns(n) for n in (1, 2, 20, 21)] == [None, 2, 20, None]


def test_distances_need_no_judge():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = Labels(torch.arange(60) % 3, NAMES)
    found = intra_distances(x, y, x + y.numbers[:, None], y)
    assert found == pytest.approx({"cat": 0.0, "dog": 4.0, "owl": 16.0}, abs=1e-9)
