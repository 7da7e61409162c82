"""A study from end to end, with few steps; after a kill the same command does the rest."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time

import forked  # noqa: F401 - the server whose processes a study's runs are
import pytest
from command_line import TINY

from softtrunc.cli import main
from softtrunc.jobs import side_by_side

pytestmark = pytest.mark.usefixtures("unchecked")

QUICK = [
    *TINY,
    "--set",
    "evaluation={samples: 40, rtol: 0.1, atol: 0.1, solver_check: 0, nelbo_draws: 2}",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


def stop_when(file):
    """Send this process SIGTERM as soon as there is such a file."""

    def watch():
        deadline = time.monotonic() + 200
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.slow
def test_a_study_goes_on_after_a_kill_and_reports(tmp_path, capsys):
    command = ["study", "digits-vp-nll-st", "--vary", "truncation.k=inf,1", "--seeds", "2"]
    command += ["--steps", "6", "--out", "study", *QUICK]
    command += ["--set", "evaluation.figures=[nelbo]"]
    first = tmp_path / "study" / "runs" / "k=inf_seed=0" / "evaluation.json"
    # Some runs are measured then, some are being trained, some have not begun.
    stop_when(first)
    assert main(command) == 143
    assert first.exists()
    assert main(command) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "study"
    table = json.loads((folder / "study.json").read_text())
    assert [setting["label"] for setting in table["settings"]] == ["k=inf", "k=1"]
    assert table["settings"][1]["baseline"] == "k=inf"
    figures = {figure["key"]: figure for figure in table["settings"][1]["figures"]}
    assert figures.keys() >= {"nelbo", "frechet_distance"}
    assert figures["nelbo"]["difference"]["seeds"] == 2
    values = figures["nelbo"]["by_seed"]
    for seed in ("0", "1"):
        run = folder / "runs" / f"k=1_seed={seed}"
        measured = json.loads((run / "evaluation.json").read_text())["figures"]
        assert values[seed] == next(f["value"] for f in measured if f["key"] == "nelbo")
    with (folder / "study.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["figure"] == "nelbo"]
    assert [(row["truncation.k"], row["seed"]) for row in rows] == [
        ("inf", "0"),
        ("inf", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert (folder / "trade-off.png").read_bytes().startswith(b"\x89PNG")
    assert 'id="study"' in (folder / "report.html").read_text()
    assert "k=inf" in out
    # What is finished is not done again.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/evaluation.json")}
    assert main(command) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/evaluation.json")}


def test_a_dry_run_names_the_runs_and_writes_nothing(tmp_path, capsys):
    command = ["study", "digits-vp-nll", "digits-vp-fid", "--vary", "truncation.k=0.9,inf"]
    assert main([*command, "--seeds", "1", "--dry-run"]) == 0
    assert capsys.readouterr().out.split() == [
        "digits-vp-nll_k=0.9_seed=0",
        "digits-vp-nll_k=inf_seed=0",
        "digits-vp-fid_k=0.9_seed=0",
        "digits-vp-fid_k=inf_seed=0",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_asked_afterwards_is_measured_on_the_same_runs(tmp_path, monkeypatch):
    # One run gets every core, and two threads wait long for each other on a busy machine.
    monkeypatch.setattr(side_by_side, "core_count", lambda: 1)
    command = ["study", "digits-vp-nll-st", "--vary", "evaluation.eps=1e-5,1e-2", "--seeds", "1"]
    command += ["--steps", "4", "--out", "study", *QUICK, "--set", "evaluation.figures=[nelbo]"]
    assert main(command) == 0
    (run,) = (tmp_path / "study" / "runs").iterdir()
    assert run.name == "digits-vp-nll-st_seed=0"
    table = json.loads((tmp_path / "study" / "study.json").read_text())
    values = {
        setting["label"]: {f["key"]: f["by_seed"]["0"] for f in setting["figures"]}
        for setting in table["settings"]
    }
    assert list(values) == ["eps=1e-5", "eps=0.01"]
    # The distance does not know of eps; the bits/dim are each setting's own.
    assert values["eps=1e-5"]["frechet_distance"] == values["eps=0.01"]["frechet_distance"]
    measured = json.loads((run / "evaluation.json").read_text())["figures"]
    bits = {f["protocol"]["eps"]: f["value"] for f in measured if f["key"] == "nelbo"}
    assert bits == {1e-5: values["eps=1e-5"]["nelbo"], 1e-2: values["eps=0.01"]["nelbo"]}
    # Another value is measured on the run that is there.
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    command[3] = "evaluation.eps=1e-5,1e-2,1e-3"
    assert main(command) == 0
    table = json.loads((tmp_path / "study" / "study.json").read_text())
    assert len(table["settings"]) == 3
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(tmp_path, capsys):
    """A learning rate beyond reason in one setting: the other is measured and reported."""
    command = ["study", "digits-vp-nll", "--vary", "training.learning_rate=1e-3,1e30"]
    command += ["--seeds", "1", "--steps", "8", "--out", "study", *QUICK]
    assert main([*command, "--set", "training.grad_clip=null"]) == 1
    assert "not finite" in capsys.readouterr().err
    table = json.loads((tmp_path / "study" / "study.json").read_text())
    assert list(table["failures"]) == ["learning_rate=1e30_seed=0"]
    assert [len(setting["runs"]) for setting in table["settings"]] == [1, 0]
