"""Tables of the Hugging Face Hub, as saved on disk: no network."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from true_formats import encode, noise

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")

from softtrunc.data import open_dataset, prepare  # noqa: E402
from softtrunc.data.detect import open_source  # noqa: E402
from softtrunc.data.formats.hub import hub_source  # noqa: E402

IMAGES = noise(30, 8, 8, 3)


def table(chosen: range, **more):
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    columns = {
        "img": [{"bytes": encode(IMAGES[i]), "path": None} for i in chosen],
        "label": [i % 3 for i in chosen],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def nchw(chosen) -> np.ndarray:
    return IMAGES[list(chosen)].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("held", ["test", "validation"])
def test_a_saved_dictionary_has_its_splits(tmp_path, held):
    saved = datasets.DatasetDict({"train": table(range(20)), held: table(range(20, 30))})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert open_source(tmp_path / "saved").kind == "hub"
    train, test = (open_dataset(tmp_path / "saved", split) for split in ("train", "test"))
    assert np.array_equal(train.images, nchw(range(20)))
    assert np.array_equal(test.images, nchw(range(20, 30)))
    assert test.labels.tolist() == [i % 3 for i in range(20, 30)]
    prepare(tmp_path / "saved", tmp_path / "out")
    assert open_dataset(tmp_path / "out", "train").card.fingerprint == train.card.fingerprint


def test_a_saved_table_alone_is_divided(tmp_path):
    table(range(30)).save_to_disk(str(tmp_path / "saved"))
    parts = [open_dataset(tmp_path / "saved", split).images for split in ("train", "test")]
    found = np.concatenate(parts)
    assert len(found) == 30
    assert {i.tobytes() for i in found} == {i.tobytes() for i in nchw(range(30))}


def test_files_outside_of_the_data_set_are_not_read(tmp_path):
    secret = tmp_path / "secret.png"
    Image.fromarray(IMAGES[0]).save(secret)
    rows = [{"bytes": None, "path": str(secret)}, {"bytes": encode(IMAGES[1]), "path": "x.png"}]
    features = datasets.Features({"image": datasets.Image()})
    mine = datasets.Dataset.from_dict({"image": rows}, features=features)
    datasets.DatasetDict({"train": mine, "test": mine}).save_to_disk(str(tmp_path / "saved"))
    # Saving puts the file's content into the table; whoever means ill leaves the path there.
    (file,) = (tmp_path / "saved" / "train").glob("*.arrow")
    with (
        pyarrow.OSFile(str(file), "wb") as sink,
        pyarrow.ipc.new_stream(sink, mine.data.schema) as stream,
    ):
        stream.write_table(mine.data.table)
    data = open_dataset(tmp_path / "saved", "train")
    assert np.array_equal(data.images, nchw([1]))
    assert data.skipped == (
        ("00000000", f"names the file {secret} outside of the data set: refused"),
    )


def test_what_holds_no_images_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"no column of images among text: Value"):
        open_dataset(tmp_path / "saved", "train")


def test_an_address_is_taken_apart(monkeypatch):
    asked = []

    def load(name, configuration, *, revision):
        asked.append((name, configuration, revision))
        return datasets.DatasetDict({"train": table(range(3)), "test": table(range(3, 5))})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_dataset("hf://some/thing", "train")) == 3
    assert hub_source("hf://some/thing@v1:small").name == "thing"
    assert asked == [("some/thing", None, None), ("some/thing", "small", "v1")]
    with pytest.raises(ValueError, match="write hf://OWNER/NAME"):
        hub_source("hf://")

    def fail(*arguments, **options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FileNotFoundError, match=r"hf://a/b: cannot be fetched .* no network"):
        open_dataset("hf://a/b", "train")
