"""Feature extractors, what distances over them are called, and the states that are added up."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from together import finish_together, start_together
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from softtrunc.data import load_digits_split, open_dataset
from softtrunc.metrics import (
    DigitsFeatures,
    Fashion16Features,
    FeatureExtractor,
    FeatureStatistics,
    TorchScriptFeatures,
    features,
    figure_name,
    frechet_distance,
    kernel_inception_distance,
)
from softtrunc.metrics.features import clean_resize
from softtrunc.metrics.synced import FeatureGatherer, Gathered


@pytest.fixture(scope="module")
def train():
    return load_digits_split("train")


@pytest.fixture(scope="module")
def test():
    return load_digits_split("test")


@pytest.fixture(scope="module")
def digits(train) -> DigitsFeatures:
    return DigitsFeatures(train.images, train.labels)


def test_digits_are_told_apart(digits, test):
    found = digits.classify(torch.from_numpy(test.images)).numpy()
    assert (found == test.labels).mean() >= 0.96


def test_digits_features_are_the_same_every_time(digits, train):
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    again = DigitsFeatures(train.images, train.labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.hash == digits.hash
    other = DigitsFeatures(train.images, train.labels, epochs=1)
    assert other.hash != digits.hash


def test_digits_features_are_the_hidden_layer(digits, test):
    images = torch.from_numpy(test.images)
    x = digits(images)
    assert x.shape == (360, digits.dim) == (360, 64)
    assert (x >= 0).all()
    assert not x.requires_grad
    p = digits.probabilities(images)
    assert torch.allclose(p.sum(1), torch.ones(360))
    assert isinstance(digits, FeatureExtractor)


def test_digits_distance_tells_good_from_bad(digits, train, test):
    def of(images: torch.Tensor) -> FeatureStatistics:
        statistics = FeatureStatistics(64)
        statistics.update(digits(images))
        return statistics

    real = of(torch.from_numpy(train.images))
    held_out = of(torch.from_numpy(test.images)).distance(real)
    noise = torch.randint(17, (360, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(torch.from_numpy(test.images).float(), 3, 1, 1)
    assert held_out < of(blurred.round().to(torch.uint8)).distance(real) / 3
    assert held_out < of(noise.to(torch.uint8)).distance(real) / 30


def test_images_that_are_no_digits_are_refused(train):
    with pytest.raises(ValueError, match=r"need \(N, 1, 8, 8\)"):
        DigitsFeatures(train.images[:, :, :4], train.labels)
    with pytest.raises(ValueError, match=r"labels \(5,\)"):
        DigitsFeatures(train.images, train.labels[:5])


@pytest.fixture(scope="module")
def fashion() -> Fashion16Features:
    return Fashion16Features()


def test_fashion_features_are_the_hidden_layer(fashion):
    images = picture(30, 1, 16, 16)
    x = fashion(images)
    assert x.shape == (30, fashion.dim) == (30, 64)
    assert (x >= 0).all()
    assert not x.requires_grad
    assert torch.allclose(fashion.probabilities(images).sum(1), torch.ones(30))
    assert isinstance(fashion, FeatureExtractor)
    assert (fashion.name, fashion.resize, fashion.full_range) == ("fashion16-cnn", "none", True)
    assert figure_name("FID", fashion, 50_000) == "FD(fashion16-cnn)"
    # The first channel counts.
    assert torch.equal(fashion(images.repeat(1, 3, 1, 1)), x)


def test_fashion_weights_never_change(fashion):
    # The hash is part of every published figure.
    assert fashion.hash == "823fafeac8bcabd78c837ed0029fade45c75241e63a93857faaed30335c6b9ca"
    assert Fashion16Features().hash == fashion.hash


def test_images_of_another_size_are_refused_by_fashion_features(fashion):
    for shape in ((28, 28), (16, 8)):
        with pytest.raises(ValueError, match=f"images of {shape[0]}x{shape[1]}: .* --size 16"):
            fashion(picture(2, 1, *shape))
        with pytest.raises(ValueError, match="16x16"):
            fashion.probabilities(picture(2, 1, *shape))


def test_fashion_features_are_those_of_the_network_as_trained(fashion):
    """FASHION16_CNN names what `examples/fashion16_features.py` wrote when it trained them."""
    if "FASHION16_CNN" not in os.environ:
        pytest.skip("FASHION16_CNN is not set: no network to compare with")
    network = torch.jit.load(os.environ["FASHION16_CNN"]).eval()
    images = picture(50, 1, 16, 16)
    assert torch.allclose(fashion(images), network(images, True), rtol=1e-6, atol=1e-6)
    assert torch.allclose(fashion.probabilities(images), network(images).softmax(1), atol=1e-6)


FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no {FASHION} (Debian: dataset-fashion-mnist)")
def test_clothes_are_told_apart(fashion):
    data = open_dataset(FASHION, "test", image_size=16)
    found = torch.cat([fashion.classify(x) for x in torch.from_numpy(data.images).split(1000)])
    assert (found.numpy() == data.labels).mean() == pytest.approx(0.888, abs=0.002)


class StandIn(nn.Module):
    """The signature of the standard Inception file, and arithmetic that can be done by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.0, 1.0, 2048))

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        x = img.to(torch.float32)
        if x.shape[1] != 3:
            raise ValueError("three channels")
        x = x.mean(dim=[2, 3])
        if return_features:
            return x.sum(dim=1, keepdim=True) * self.weight[None]
        logits = x / 255.0
        if not no_output_bias:
            logits = logits + torch.tensor([5.0, 0.0, 0.0])
        return logits.softmax(dim=1)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "inception-2015-12-05.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


def picture(n: int, c: int, h: int, w: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, c, h, w), generator=g).to(torch.uint8)


def test_torchscript_features_and_probabilities(stand_in):
    extractor = TorchScriptFeatures(stand_in)
    assert isinstance(extractor, FeatureExtractor)
    assert extractor.dim == 2048
    assert extractor.hash == hashlib.sha256(stand_in.read_bytes()).hexdigest()
    images = picture(4, 3, 9, 7)
    mean = images.float().mean((2, 3))
    expected = mean.sum(1, keepdim=True) * torch.linspace(0.0, 1.0, 2048)
    assert torch.allclose(extractor(images), expected)
    # The inception score leaves out the last bias, as its authors do.
    assert torch.allclose(extractor.probabilities(images), (mean / 255.0).softmax(1))


def test_grey_images_are_replicated_and_it_is_said(stand_in):
    extractor = TorchScriptFeatures(stand_in)
    grey = picture(4, 1, 9, 7)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    assert extractor.describe(1) == "legacy resize, grey replicated to 3 channels"
    assert extractor.describe(3) == "legacy resize"
    with pytest.raises(ValueError, match="images of 2 channels"):
        extractor(picture(4, 2, 9, 7))


def test_a_distance_is_called_fid_only_where_it_is_one(stand_in, digits, monkeypatch):
    assert figure_name("FID", digits, 50_000) == "FD(digits-mlp)"
    impostor = TorchScriptFeatures(stand_in)
    name = f"FD(inception-2015-12-05, altered {impostor.hash[:8]})"
    assert figure_name("FID", impostor, 50_000) == name
    impostor.name = "inception-2015-12-05"
    assert figure_name("FID", impostor, 50_000).startswith("FD(")
    monkeypatch.setattr(features, "INCEPTION_SHA256", impostor.hash)
    true = TorchScriptFeatures(stand_in)
    assert true.name == "inception-2015-12-05"
    names = {n: figure_name("FID", true, n) for n in (60_000, 50_000, 49_999, 10_000, 2_048)}
    assert list(names.values()) == ["FID", "FID", "FID@49999", "FID@10k", "FID@2048"]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (400, 300), (299, 299)])
def test_clean_resizing_is_pillows_to_the_last_bit(height, width):
    images = picture(2, 3, height, width)
    found = clean_resize(images, 299)
    assert found.dtype == torch.float32
    for image, out in zip(images.numpy(), found.numpy(), strict=True):
        for plane, channel in zip(image, out, strict=True):
            pil = Image.fromarray(plane.astype(np.float32), mode=None)
            assert pil.mode == "F"
            expected = np.asarray(pil.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
            assert np.array_equal(channel, expected)
    if (height, width) == (32, 32):
        assert (found != found.round()).any()


def test_clean_features_are_of_the_resized_images(stand_in):
    legacy, clean = TorchScriptFeatures(stand_in), TorchScriptFeatures(stand_in, resize="clean")
    images = picture(2, 1, 40, 32)
    assert torch.equal(
        clean(images), legacy._network(clean_resize(images, 299).expand(-1, 3, -1, -1), True)
    )
    assert (legacy.resize, clean.resize) == ("legacy", "clean to 299x299")
    assert not torch.equal(clean(images), legacy(images))


class NoFeatures(nn.Module):
    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return img


def test_other_files_are_refused(tmp_path, stand_in):
    with pytest.raises(FileNotFoundError, match="no such file"):
        TorchScriptFeatures(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.jit.script(NoFeatures()).save(str(tmp_path / "plain.pt"))
    (tmp_path / "cut.pt").write_bytes(stand_in.read_bytes()[:500])
    for name in ("text.pt", "plain.pt", "cut.pt"):
        with pytest.raises(ValueError, match=rf"{name}: not a TorchScript network with forward"):
            TorchScriptFeatures(tmp_path / name)
    with pytest.raises(ValueError, match="size=0"):
        TorchScriptFeatures(stand_in, resize="clean", size=0)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_way_of_resizing_is_refused(stand_in):
    with pytest.raises(ValueError, match='write "legacy" or "clean"'):
        TorchScriptFeatures(stand_in, resize="cleen")


def test_efficientnet_gives_features(shared):
    extractor = TorchScriptFeatures(shared / "data" / "efficientnet_lite0.pt")
    images = picture(2, 1, 28, 28)
    assert extractor.dim == 1280
    assert figure_name("FID", extractor, 50_000) == "FD(efficientnet_lite0)"
    # The file replicates grey itself: its answer is the same.
    assert torch.allclose(extractor(images), extractor._network(images, True), atol=1e-5)
    assert torch.allclose(extractor.probabilities(images).sum(1), torch.ones(2), atol=1e-5)


class AsModule(nn.Module):
    """What torchmetrics takes."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.num_features = extractor.dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.extractor(images)


def gathered(extractor: FeatureExtractor, parts, **asked: bool) -> Gathered:
    gatherer = FeatureGatherer(extractor, **asked)
    for part in parts:
        gatherer.update(part)
    return gatherer.compute()


def distance(ours: Gathered, theirs: Gathered) -> float:
    a, b = ours.statistics, theirs.statistics
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def test_metrics_agree_with_torchmetrics_on_shared_features(digits, train, test):
    real, fake = torch.from_numpy(train.images), torch.from_numpy(test.images)
    theirs = FrechetInceptionDistance(feature=AsModule(digits))
    statistics = [FeatureStatistics(64), FeatureStatistics(64)]
    for images, is_real in ((real, True), (fake, False)):
        for part in images.split(200):
            theirs.update(part, real=is_real)
            statistics[is_real].update(digits(part))
    ours = distance(gathered(digits, real.split(200)), gathered(digits, fake.split(200)))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-3)
    assert ours == pytest.approx(statistics[0].distance(statistics[1]), rel=1e-9)
    # On every image at once, subsets do not matter and the two have to agree.
    peer = KernelInceptionDistance(feature=AsModule(digits), subsets=1, subset_size=360)
    peer.update(real[:360], real=True)
    peer.update(fake, real=False)
    kept = [gathered(digits, x.split(100), features=True).features for x in (real[:360], fake)]
    kernel = kernel_inception_distance(*kept, subsets=1, subset_size=360).mean
    assert kernel == pytest.approx(float(peer.compute()[0]), rel=1e-3)
    direct = kernel_inception_distance(digits(real[:360]), digits(fake), subsets=1, subset_size=360)
    assert kernel == pytest.approx(direct.mean, rel=1e-9)


class FarFeatures:
    """Features far from zero against their spread: 1e4 and 0.01, in float64."""

    name, hash, dim, resize, full_range = "far", "far", 6, "none", True

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        unit = images[:, 0, 0, :6].double() / 255.0
        # Mixed, so that features correlate.
        return 1e4 + 0.03 * (unit - 0.5) @ torch.linspace(0.1, 1.0, 36).double().reshape(6, 6)

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 2), 0.5)

    def describe(self, channels: int) -> str:
        return "none"


@pytest.mark.parametrize("cuts", [[600], [1, 599], [300, 300], [64] * 9 + [24], [7, 0, 593]])
def test_no_digits_are_lost_far_from_zero_however_batches_are_cut(cuts):
    images, extractor = picture(600, 1, 1, 6), FarFeatures()
    found = gathered(extractor, images.split(cuts)).statistics
    x = extractor(images).numpy()
    near = x - 1e4  # exact: numbers this close differ by what float64 can hold
    assert 0.005 < near.std() < 0.05
    exact = np.cov(near.T)
    error = np.abs(found.covariance.numpy() - exact).max() / np.abs(exact).max()
    assert error < 1e-9
    assert np.abs(found.mean.numpy() / x.mean(0) - 1.0).max() < 1e-14
    assert found.count == 600


def test_what_torchmetrics_says_far_from_zero(digits, train, test):
    """At an offset of 30 torchmetrics' sums still hold, and both say the same."""

    class Shifted:
        name, hash, dim, resize, full_range = "s", "s", 64, "none", False
        probabilities, describe = digits.probabilities, digits.describe

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return digits(images) + 30.0

    real, fake = torch.from_numpy(train.images), torch.from_numpy(test.images)
    peer = FrechetInceptionDistance(feature=AsModule(Shifted()))
    for images, is_real in ((real, True), (fake, False)):
        for part in images.split(200):
            peer.update(part, real=is_real)
    ours = distance(*(gathered(Shifted(), x.split(200)) for x in (real, fake)))
    plain = distance(*(gathered(digits, x.split(200)) for x in (real, fake)))
    assert ours == pytest.approx(float(peer.compute()), rel=1e-3)
    assert ours == pytest.approx(plain, rel=1e-3)  # float32 features lose digits in the shift


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_too_few_images_are_refused(digits, test):
    one = gathered(digits, [torch.from_numpy(test.images[:1])]).statistics
    with pytest.raises(ValueError, match="covariance of 1 images: need at least 2"):
        _ = one.covariance
    with pytest.raises(ValueError, match="no images"):
        gathered(digits, [])


def test_a_gatherer_forgets_what_it_is_told_to_forget(digits, test):
    images = torch.from_numpy(test.images)
    gatherer = FeatureGatherer(digits, features=True)
    gatherer.update(images[:50])
    gatherer.reset()
    gatherer.update(images[50:])
    found, whole = gatherer.compute(), gathered(digits, [images[50:]], features=True)
    assert found.statistics.count == 310
    assert torch.equal(found.statistics.covariance, whole.statistics.covariance)
    assert torch.equal(found.features, whole.features)


# Each process takes every second image, and writes what it then holds the whole distance to be.
RANK = """
import os, sys
import torch
from softtrunc.data import load_digits_split
from softtrunc.metrics import DigitsFeatures, frechet_distance, kernel_inception_distance
from softtrunc.metrics.synced import FeatureGatherer

rank, world, store = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), sys.argv[1]
if world > 1:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
train, test = load_digits_split("train"), load_digits_split("test")
digits = DigitsFeatures(train.images, train.labels, epochs=2)

class Far:
    dim = 64
    def __call__(self, images):
        return 1e4 + 0.01 * digits(images).double()

def gather(extractor, images):
    gatherer = FeatureGatherer(extractor, features=True)
    mine = torch.from_numpy(images[rank::world].copy())
    for part in mine.split(100 + 50 * rank):
        gatherer.update(part)
    return gatherer.compute()

for extractor in (digits, Far()):
    both = [gather(extractor, images).statistics for images in (train.images, test.images)]
    print(*[s.count for s in both], *[repr(float(x)) for x in both[0].covariance.diagonal()])
    if extractor is digits:
        moments = [m for s in both for m in (s.mean, s.covariance)]
        print(repr(frechet_distance(*moments)))
kept = [gather(digits, images[:360]).features for images in (train.images, test.images)]
print(repr(kernel_inception_distance(*kept, subsets=1, subset_size=360).mean))
"""


def test_two_processes_measure_what_one_does(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [str(script), str(tmp_path / "store")]
    ended = [
        each
        for world in (1, 2)
        for each in finish_together(start_together(command, tmp_path, world))
    ]
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    answers = [out.split() for _, out, _ in ended]
    alone, *together = [[float(word) for word in answer] for answer in answers]
    for both in together:
        assert both == pytest.approx(alone, rel=1e-9)


def test_importing_metrics_costs_no_torchmetrics():
    heavy = "{'torchmetrics', 'sklearn', 'scipy', 'matplotlib'}"
    code = f"import sys, softtrunc.metrics; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
