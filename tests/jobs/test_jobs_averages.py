"""`--ema LENGTH`: samples and figures of an average that is made after training."""

from __future__ import annotations

import json

import numpy as np
import pytest

from softtrunc import ScoreModel
from softtrunc.cli import main
from softtrunc.runs.open_run import open_run

pytestmark = pytest.mark.usefixtures("unchecked")

SETS = ["network.options={base_channels: 8}", "training.batch_size=8", "training.samples=2"]
SETS += ["training.warmup_steps=0", "training.learning_rate=1e-2", "training.sample_every=null"]
SETS += ["training.checkpoint_every=2", "training.keep_checkpoints=1", "training.steps=6"]


def train(out, *more):
    told = [word for each in (*SETS, *more) for word in ("--set", each)]
    return main(["train", "digits-vp-nll-st", "--out", str(out), *told])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(folder, "training.posthoc_ema=true") == 0
    return folder


def test_snapshots_stay_where_checkpoints_go(run):
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000006"]
    assert sorted(path.name for path in (run / "averages").iterdir()) == [
        f"step-0000000{step}" for step in (2, 4, 6)
    ]


def test_samples_and_figures_say_of_which_average_they_are(run, tmp_path):
    drawn = {}
    for words in (["--ema", "0.05"], ["--ema", "0.2"], []):
        out = tmp_path / f"{len(drawn)}.npz"
        assert main(["sample", str(run), "-n", "2", "--steps", "2", "--out", str(out), *words]) == 0
        told = json.loads((tmp_path / f"{out.name}.json").read_text())
        drawn[told["weights"]] = np.load(out)["images"]
    assert list(drawn) == ["ema-0.05", "ema-0.2", "ema"]
    assert not np.array_equal(drawn["ema-0.05"], drawn["ema-0.2"])
    rough = ["--limit", "2", "--set", "evaluation.figures=[nelbo]"]
    assert main(["evaluate", str(run), "--bpd", *rough]) == 0
    assert main(["evaluate", str(run), "--bpd", *rough, "--ema", "0.05"]) == 0
    assert json.loads((run / "evaluation.json").read_text())["weights"] == "ema-0.05"
    assert (run / "evaluations" / "step-00000006-ema.json").is_file()
    state = open_run(run, weights=0.05).model.state_dict()
    assert any(
        not value.equal(state[name]) for name, value in open_run(run).model.state_dict().items()
    )


def test_an_export_holds_the_average_that_is_named(run, tmp_path):
    assert main(["export", str(run), "--ema", "0.05", "--out", str(tmp_path / "export")]) == 0
    given = ScoreModel.from_pretrained(tmp_path / "export").state_dict()
    made = open_run(run, weights=0.05).model.state_dict()
    assert given.keys() == made.keys()
    assert all(value.equal(made[name]) for name, value in given.items())
    assert "averaged (length 0.05) weights" in (tmp_path / "export" / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ema", "0.4"], "an average of length 0.4"),
        (["--ema", "0.05", "--weights", "raw"], "--weights: --ema says which weights"),
    ],
)
def test_impossible_averages_are_refused(run, capsys, words, told):
    assert main(["sample", str(run), "-n", "1", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_run_without_averages_says_what_to_write(tmp_path, capsys):
    assert train(tmp_path / "run", "training.steps=2") == 0
    assert not (tmp_path / "run" / "averages").exists()
    assert main(["evaluate", str(tmp_path / "run"), "--bpd", "--ema", "0.05"]) == 2
    assert "train with training.posthoc_ema=true" in capsys.readouterr().err
