"""Bits per dimension by command: killed, spread over processes, refused."""

import csv
import json
import shutil

import pytest
from command_line import start
from test_cli_interruption import launch, wait_for

from softtrunc.cli import main
from softtrunc.jobs.train import train
from softtrunc.recipes import load_recipe

SMALL = ["--bpd", "--limit", "7"] + [
    word
    for change in ("rtol=0.1", "atol=0.1", "solver_check=0", "nelbo_draws=2", "batch_size=2")
    for word in ("--set", f"evaluation.{change}")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = load_recipe(
        "digits-vp-nll-st",
        ["training.steps=4", "training.batch_size=8", "network.options={base_channels: 8}"],
    )
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(recipe, folder)
    return folder


def outcome(folder):
    content = json.loads((folder / "evaluation.json").read_text())
    return {f["key"]: {k: v for k, v in f.items() if k != "seconds"} for f in content["figures"]}


@pytest.mark.slow
def test_two_processes_a_kill_and_one_process_agree(run, tmp_path, capsys, unchecked):
    one, two, killed = (shutil.copytree(run, tmp_path / n) for n in ("one", "two", "killed"))
    assert main(["evaluate", str(one), *SMALL, "--per-image", str(tmp_path / "one.csv")]) == 0
    assert "bits/dim with residual" in capsys.readouterr().out
    printed = launch(
        2,
        tmp_path,
        "-m",
        "softtrunc",
        *("evaluate", str(two), *SMALL, "--per-image", str(tmp_path / "two.csv")),
    )
    assert printed.count("bits/dim with residual") == 1  # the table is printed once
    assert outcome(one) == outcome(two)
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
    with (tmp_path / "two.csv").open(newline="") as file:
        rows = [(r["figure"], r["image"]) for r in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) == 3 * 7
    process = start("evaluate", str(killed), *SMALL, cwd=tmp_path)
    folder = killed / "evaluation.partial"
    wait_for(folder, process)
    while not list(folder.glob("nll_residual-*/*.npz")):
        assert process.poll() is None, process.communicate()[1]
    process.kill()
    process.communicate()
    assert main(["evaluate", str(killed), *SMALL]) == 0
    assert "interrupted evaluation" in capsys.readouterr().err
    assert outcome(killed) == outcome(one)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dequantization", "none of it"], "did you mean 'none'?"),
        (["--per-image", "images.txt"], ".csv or .parquet"),
        (["--bpd", "--set", "evaluation.divergence=guess"], "evaluation.divergence"),
    ],
)
def test_mistakes_are_told_in_one_line(run, capsys, unchecked, arguments, words):
    assert main(["evaluate", str(run), *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
