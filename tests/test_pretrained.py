"""A model saved and read again is the same model, to the bit; what does not fit is named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from softtrunc import VESDE, VPSDE, ReciprocalVESDE, ScoreModel, SubVPSDE
from softtrunc.networks import ScoreUNet, preset

pytestmark = pytest.mark.usefixtures("unchecked")

SDES = [
    VPSDE(0.2, 15.0),
    SubVPSDE(0.1, 18.0),
    VESDE(0.02, 30.0),
    ReciprocalVESDE(2e-3, 40.0, 1e-4),
]


def small_model(sde=None, **options) -> ScoreModel:
    sde = sde or VPSDE()
    name = "ncsnpp" if isinstance(sde, VESDE | ReciprocalVESDE) else "ddpmpp"
    config = preset(
        name,
        image_size=(8, 12),
        channels=1,
        base_channels=8,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(4,),
    )
    network = ScoreUNet(config, generator=torch.Generator().manual_seed(7))
    return ScoreModel(network, sde, **options).eval()


def score(model: ScoreModel) -> torch.Tensor:
    x = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.score(x, torch.tensor([0.2, 0.9]))


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_saved_model_is_read_back_to_the_bit(tmp_path, sde):
    model = small_model(sde)
    model.save_pretrained(tmp_path / "m")
    again = ScoreModel.from_pretrained(tmp_path / "m")
    assert again.sde == sde
    assert not again.training
    assert (again.conditioning, again.prediction, again.value_range) == (
        model.conditioning,
        model.prediction,
        model.value_range,
    )
    assert again.network.config == model.network.config
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert torch.equal(score(model), score(again))
    again.save_pretrained(tmp_path / "n")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()


def test_options_other_than_the_defaults_are_kept(tmp_path):
    model = small_model(
        VPSDE(),
        conditioning="unbounded_time",
        prediction="scaled_score",
        value_range=(0.0, 2.0),
    )
    model.save_pretrained(tmp_path)
    assert torch.equal(score(model), score(ScoreModel.from_pretrained(tmp_path)))


def test_saving_leaves_no_leftovers_and_replaces_what_was_there(tmp_path):
    small_model().save_pretrained(tmp_path, card="first")
    small_model(VESDE()).save_pretrained(tmp_path, card="second")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert (tmp_path / "README.md").read_text() == "second"
    assert ScoreModel.from_pretrained(tmp_path).sde == VESDE()


class Body(nn.Module):
    """A network that softtrunc cannot build."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, 1, 1)

    def forward(self, x, label):
        return self.mix(x) + label[:, None, None, None]


def test_a_network_of_somebody_elses_is_handed_in(tmp_path):
    model = ScoreModel(Body(), VPSDE()).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the network is a Body, .*: give it as network="):
        ScoreModel.from_pretrained(tmp_path)
    again = ScoreModel.from_pretrained(tmp_path, network=Body())
    assert torch.equal(score(model), score(again))


def test_an_sde_of_somebody_elses_is_not_saved(tmp_path):
    class Mine(VPSDE):
        pass

    with pytest.raises(ValueError, match="Mine cannot be saved: of others' SDEs"):
        small_model(Mine()).save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def edited(key, value):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        target = config
        *path, last = key.split(".")
        for step in path:
            target = target[step]
        if value is None:
            del target[last]
        else:
            target[last] = value
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def reweighted(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def rename_and_reshape(tensors):
    tensors["surplus"] = tensors.pop("input_conv.bias")
    tensors["input_conv.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), ValueError, "not the configuration"),
        (edited("library", "other"), ValueError, "not the configuration of a softtrunc model"),
        (edited("format", 2), ValueError, "format 2, this version reads 1"),
        (edited("sde", None), ValueError, "missing sde"),
        (edited("sed", {}), ValueError, "unknown sed"),
        (edited("sde.type", "EDM"), ValueError, "sde.type = 'EDM': this version knows VPSDE"),
        (edited("sde.gamma", 1), ValueError, "sde: .*unexpected keyword argument 'gamma'"),
        (edited("network.bloks", 1), ValueError, "unknown key 'bloks'; did you mean 'blocks"),
        (edited("value_range", [0]), ValueError, r"value_range = \[0\]: write \[low, high\]"),
        (edited("conditioning", "age"), ValueError, "conditioning 'age' is unknown"),
        (edited("conditioning", {}), ValueError, "conditioning = {}: write a word"),
        (edited("value_range", [0, 10**400]), ValueError, r"value_range = .*: write \[low, high\]"),
        (edited("network.type", [1]), ValueError, "network must be a mapping with a type"),
        (
            lambda f: (f / "config.json").write_text("[" * 99_999),
            ValueError,
            "not valid JSON: nested too deeply",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"1234567890"),
            ValueError,
            "not a readable safetensors file",
        ),
        (
            reweighted(rename_and_reshape),
            ValueError,
            r"missing input_conv.bias; unknown surplus; input_conv.weight has shape \(1,\) instead",
        ),
        (
            reweighted(lambda t: t.update({"input_conv.bias": t["input_conv.bias"].long()})),
            ValueError,
            "input_conv.bias has type torch.int64 instead of torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, edit, error, message):
    small_model().save_pretrained(tmp_path)
    edit(tmp_path)
    with pytest.raises(error, match=message):
        ScoreModel.from_pretrained(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    small_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["input_conv.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"input_conv\.weight holds 9 values that are not finite"):
        ScoreModel.from_pretrained(tmp_path)


def test_a_configuration_far_too_large_is_refused_before_it_is_built(tmp_path):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["base_channels"] = 80_000
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit the network: .*80000|.*320000"):
        ScoreModel.from_pretrained(tmp_path)


def test_a_run_folder_is_told_to_be_exported(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: x")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"is a run folder.*softtrunc export"):
        ScoreModel.from_pretrained(tmp_path)


def test_a_place_that_is_neither_folder_nor_repository():
    for place in ("./nowhere/here", "nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such folder, and neither"):
            ScoreModel.from_pretrained(place)


def test_a_repository_is_downloaded_by_revision(tmp_path, monkeypatch):
    model = small_model()
    model.save_pretrained(tmp_path)
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options["revision"], options["local_files_only"]))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    again = ScoreModel.from_pretrained("someone/model", revision="v2", local_files_only=True)
    assert torch.equal(score(model), score(again))
    assert asked == [
        ("someone/model", "config.json", "v2", True),
        ("someone/model", "model.safetensors", "v2", True),
    ]


def test_a_repository_that_cannot_be_reached_is_told_in_one_line(monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("no connection\n and nothing in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"^someone/model: config.json .*connection and"):
        ScoreModel.from_pretrained("someone/model")


def test_pushing_uploads_what_saving_writes(tmp_path, monkeypatch):
    calls, files = [], {}

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options["private"], options["exist_ok"]))
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, revision, create_pr, **_):
            calls.append(("upload", repo_id, revision, create_pr))
            files.update({path.name: path.read_bytes() for path in folder_path.iterdir()})
            return SimpleNamespace(commit_url="address of the commit")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = small_model()
    url = model.push_to_hub("someone/model", private=True, token="t", revision="new", card="card")
    assert url == "address of the commit"
    assert calls == [
        ("token", "t"),
        ("create", "someone/model", True, True),
        ("upload", "someone/model", "new", False),
    ]
    model.save_pretrained(tmp_path, card="card")
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
