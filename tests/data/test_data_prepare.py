"""Preparing: the same bytes by any number of workers, after kills, and only what was asked for."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from forked import Forked
from PIL import Image
from true_formats import encode, noise, pack, write_cifar10

from softtrunc.data import CountError, open_dataset, prepare
from softtrunc.data.preparing import fill as filling

preparing = sys.modules["softtrunc.data.preparing.prepare"]

COUNT = 60


@pytest.fixture
def folder(tmp_path) -> Path:
    """Sixty images in two splits; some are broken, one is grey, one is transparent."""
    root = tmp_path / "photos"
    for i in range(COUNT):
        path = root / ("test" if i % 6 == 5 else "train") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(noise(9, 7, 3, seed=i))
        if i == 3:
            image.putalpha(0)
        (image.convert("L") if i == 1 else image).save(path)
        if i % 10 == 4:
            path.write_bytes(b"broken")
    return root


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Many tasks out of few images, each written down at once."""
    monkeypatch.setattr(filling, "_CHUNK_IMAGES", 4)
    monkeypatch.setattr(filling, "_WORTH_A_PROCESS", 0)
    monkeypatch.setattr(preparing, "_SECONDS_BETWEEN_COMMITS", 0.0)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.parametrize("size", [None, 5])
def test_bytes_do_not_depend_on_the_number_of_workers(folder, tmp_path, small_chunks, size):
    prepare(folder, tmp_path / "one", image_size=size)
    prepare(folder, tmp_path / "three", image_size=size, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert sorted(contents(tmp_path / "one")) == [
        "test.json",
        "test.npy",
        "train.json",
        "train.npy",
    ]
    assert not list(tmp_path.glob(".*"))


KILLED = """
import os, signal, sys
from softtrunc.data import prepare
import softtrunc.data.preparing.fill as filling
filling._CHUNK_IMAGES, filling._WORTH_A_PROCESS = 4, 0
sys.modules["softtrunc.data.preparing.prepare"]._SECONDS_BETWEEN_COMMITS = 0.0

def bar(label):
    def advance(done, total):
        if label == sys.argv[3] and done >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
    return advance

if __name__ == "__main__":
    prepare(sys.argv[1], __import__("pathlib").Path(sys.argv[2]), bar=bar, workers=int(sys.argv[4]))
"""


@pytest.mark.parametrize(
    ("label", "workers"),
    [("prepare train", 1), ("prepare train", 2), ("prepare test", 1), ("check test", 1)],
)
def test_a_killed_preparation_goes_on_to_the_same_bytes(
    folder, tmp_path, monkeypatch, small_chunks, label, workers
):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [str(script), str(folder), str(tmp_path / "out"), label, str(workers)]
    process = Forked(command, cwd=tmp_path, env=os.environ)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    decoded: list[str] = []
    real = filling.try_decode

    def counted(item, *arguments):
        decoded.append(item.name)
        return real(item, *arguments)

    monkeypatch.setattr(filling, "try_decode", counted)
    prepare(folder, tmp_path / "out")
    here = len(decoded)
    prepare(folder, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # Something was left to do, and something was not done again.
    saved = {"prepare train": 8, "prepare test": 50 + 8, "check test": COUNT}[label]
    assert here <= COUNT - saved
    assert len(decoded) - here == COUNT


def test_a_line_that_a_kill_cut_is_forgotten(folder, tmp_path, small_chunks, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    def stop(label):
        return fail if label == "check train" else lambda *_: None

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, tmp_path / "out", bar=stop)
    journal = tmp_path / ".out.partial" / "train.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, tmp_path / "out", bar=stop)
    # What was written after the cut is remembered: of this split nothing is left to decode.
    prepare(folder, tmp_path / "whole")
    monkeypatch.setattr(filling, "fill", lambda *_: pytest.fail("decoded again"))
    prepare(folder, tmp_path / "out", splits=("train",))
    for name in ("train.npy", "train.json"):
        assert contents(tmp_path / "out")[name] == contents(tmp_path / "whole")[name]


def test_what_is_left_of_other_data_is_not_gone_on_with(folder, tmp_path, small_chunks):
    def stop(label):
        def fail(*_):
            raise KeyboardInterrupt

        return fail if label == "check train" else lambda *_: None

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, tmp_path / "out", image_size=4, bar=stop)
    prepare(folder, tmp_path / "out", image_size=5)
    prepare(folder, tmp_path / "whole", image_size=5)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_at_a_time_are_refused(folder, tmp_path):
    refusals = []

    def bar(label):
        def advance(done, total):
            if not refusals:
                with pytest.raises(BlockingIOError) as refusal:
                    prepare(folder, tmp_path / "out")
                refusals.append(str(refusal.value))

        return advance

    prepare(folder, tmp_path / "out", bar=bar)
    assert refusals == [f"{tmp_path / 'out'}: another process is preparing it"]
    assert open_dataset(tmp_path / "out", "train").card.count == 44


def test_the_card_says_what_was_done_to_which(folder, tmp_path):
    prepare(folder, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert content["converted"] == {"transparency laid on white": 1}
    assert content["kind"] == "folder"
    assert content["preset"] is None
    assert content["skipped"][0] == ["train/004.png", "not an image in a format that is read"]
    data, direct = open_dataset(tmp_path / "out", "train"), open_dataset(folder, "train")
    assert data.converted == direct.converted == content["converted"]
    assert (data.images[3] == 255).all()


def test_grey_images_keep_one_channel(tmp_path):
    for i in range(30):
        path = tmp_path / "grey" / ("train" if i < 20 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(4, 4, seed=i)).save(path)
    prepare(tmp_path / "grey", tmp_path / "out")
    found = open_dataset(tmp_path / "out", "train")
    assert found.images.shape == (20, 1, 4, 4)
    direct = open_dataset(tmp_path / "grey", "train")
    assert np.array_equal(found.images, direct.images)
    assert found.card == direct.card


def test_sizes_that_differ_are_refused_with_both_names(tmp_path):
    for i, side in enumerate((4, 5)):
        (tmp_path / "p" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(side, 4, seed=i)).save(tmp_path / "p" / "train" / f"{i}.png")
    for name in ("out", "other"):
        with pytest.raises(ValueError, match=r"several sizes: .*0\.png is 4x4, .*1\.png is 4x5"):
            prepare(tmp_path / "p", tmp_path / name, splits=("train",))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_a_full_disk_is_told_before_the_work(folder, tmp_path, monkeypatch):
    usage = preparing.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"50 images of 3 x 9 x 7 take 0.0 MiB, only 0.0 are free"):
        prepare(folder, tmp_path / "out")


def test_other_counts_than_the_protocols_are_refused(tmp_path):
    write_cifar10(tmp_path / "cifar", noise(24, 3, 32, 32), [0] * 24)
    message = (
        f"{tmp_path / 'cifar'}: 20 train images, CIFAR-10 has 50,000: add --allow-count to take "
        "them under another name"
    )
    with pytest.raises(CountError) as refusal:
        prepare(tmp_path / "cifar", tmp_path / "out", preset="cifar10")
    assert str(refusal.value) == message
    assert [p.name for p in tmp_path.iterdir()] == ["cifar"]
    cards = prepare(tmp_path / "cifar", tmp_path / "out", preset="cifar10", allow_count=True)
    assert {card.name for card in cards.values()} == {"cifar10-partial"}
    with pytest.raises(ValueError, match="prepared as cifar10-partial, not by preset cifar10"):
        open_dataset(tmp_path / "out", "train", preset="cifar10")


@pytest.fixture
def tiny_protocol(monkeypatch):
    """A protocol of 50 and 10 images of 9x7."""
    from softtrunc.data.images.fit import Fit
    from softtrunc.data.presets import PRESETS, Preset

    fit = Fit((9, 7), filter=None, strict=True)
    monkeypatch.setitem(PRESETS, "tiny", Preset("tiny", "Tiny", 50, 10, fit))
    whole = Preset("whole", "Whole", 60, None, fit)
    monkeypatch.setitem(PRESETS, "whole", whole)


def test_broken_files_make_the_count_another_and_nothing_is_lost(
    folder, tmp_path, tiny_protocol, monkeypatch
):
    with pytest.raises(CountError) as refusal:
        prepare(folder, tmp_path / "out", preset="tiny")
    assert str(refusal.value) == (
        f"{folder}: 44 train images, Tiny has 50 (unreadable: train/004.png: not an image in a "
        "format that is read): add --allow-count to take them under another name"
    )
    # What was decoded is kept: with the answer that was asked for nothing is decoded again.
    monkeypatch.setattr(filling, "fill", lambda *_: pytest.fail("decoded again"))
    cards = prepare(folder, tmp_path / "out", preset="tiny", allow_count=True, splits=("train",))
    assert cards["train"].name == "tiny-partial"
    assert cards["train"].count == 44


def test_a_protocol_without_a_test_split_trains_on_everything(folder, tmp_path, tiny_protocol):
    cards = prepare(folder, tmp_path / "out", preset="whole", allow_count=True)
    assert {split: card.count for split, card in cards.items()} == {"train": 54}
    with pytest.raises(FileNotFoundError, match="Whole has no test split"):
        open_dataset(folder, "test", preset="whole")


def test_the_right_counts_have_the_right_name_in_memory_and_on_disk(tmp_path, tiny_protocol):
    for i in range(60):
        path = tmp_path / "p" / ("train" if i < 50 else "test") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(9, 7, 3, seed=i)))
    cards = prepare(tmp_path / "p", tmp_path / "out", preset="tiny")
    for split in ("train", "test"):
        direct = open_dataset(tmp_path / "p", split, preset="tiny")
        assert (
            direct.card == cards[split] == open_dataset(tmp_path / "out", split, preset="tiny").card
        )
    assert cards["test"].name == "tiny"
    # The same pixels out of files with loss are not the data set.
    lossy = tmp_path / "p" / "train" / "00.png"
    lossy.write_bytes(encode(noise(9, 7, 3), "JPEG"))
    assert open_dataset(tmp_path / "p", "train", preset="tiny").card.name == "tiny-jpeg"


def test_what_a_preset_says_is_not_said_twice(folder, tmp_path, tiny_protocol):
    with pytest.raises(ValueError, match="preset tiny makes images of 3 x 9 x 7: leave out"):
        prepare(folder, tmp_path / "out", preset="tiny", image_size=8)
    with pytest.raises(ValueError, match="preset 'tinny' is unknown: did you mean 'tiny'"):
        prepare(folder, tmp_path / "out", preset="tinny")
    prepare(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="is prepared already: give the original data"):
        prepare(tmp_path / "out", tmp_path / "again")


def test_large_data_are_not_decoded_into_memory(folder):
    with pytest.raises(ValueError, match=r"50 images of 3 x 9 x 7 take .* softtrunc data prepare"):
        open_dataset(folder, "train", largest=50 * 3 * 9 * 7 - 1)
    assert len(open_dataset(folder, "train", largest=50 * 3 * 9 * 7)) == 44


def test_an_archive_gives_the_bytes_of_its_folder(folder, tmp_path, small_chunks):
    prepare(folder, tmp_path / "a")
    for path in (tmp_path / "photos.tar.gz", tmp_path / "photos.zip"):
        out = tmp_path / path.name.replace(".", "-")
        prepare(pack(folder, path), out, workers=2)
        for name in ("train.npy", "test.npy"):
            assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
