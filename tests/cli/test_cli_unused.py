"""Options that would change nothing are refused, not ignored."""

from __future__ import annotations

import pytest

from softtrunc.cli import main

SAMPLES = "evaluate --samples images --data more"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (f"{SAMPLES} --checkpoint 3", "--checkpoint"),
        (f"{SAMPLES} --limit 3", "--limit"),
        (f"{SAMPLES} --eps 1e-3 --probes 2", "--eps, --probes"),
        (f"{SAMPLES} --passes 2", "--passes"),
        (f"{SAMPLES} --weights raw", "--weights"),
        (f"{SAMPLES} --weights ema", "--weights"),
        (f"{SAMPLES} --set sampling.steps=2", "--set"),
        (f"{SAMPLES} --dequantization none", "--dequantization"),
        (f"{SAMPLES} --per-image bits.csv", "--per-image"),
        ("evaluate run --fid --limit 3", "--limit"),
        ("evaluate run --kid --prdc --probes 2", "--probes"),
        ("evaluate run --bpd -n 40", "--n"),
        ("evaluate run --bpd --stats s.npz --mode clean", "--mode, --stats"),
        ("evaluate run --eps 1e-3 --features f.pt", "--features"),
        ("sample run --trajectory way.gif --out drawn", "--out"),
        ("sample run --trajectory way.gif --batch-size 256", "--batch-size"),
        ("edit encode run a.png --count 3", "--count"),
        ("edit inpaint run a.png -n 3 --data images", "--count, --data"),
        ("edit colorize run a.png --data images", "--data"),
        ("train digits-vp-nll-st --tflops 3", "--tflops"),
        ("anatomy run --samples 40", "--samples"),
        ("export run --private", "--private"),
        ("data prepare images --preset celeba64 --size 8 --out p", "--size"),
        ("data prepare images --preset celeba64 --channels 1 --out p", "--channels"),
        ("data prepare images --allow-count --out p", "--allow-count"),
    ],
)
def test_an_option_without_use_is_refused(tmp_path, monkeypatch, capsys, command, named):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"softtrunc: {named}: ")
    assert not list(tmp_path.iterdir())


def test_what_is_not_given_is_not_refused(tmp_path, monkeypatch, capsys):
    """Defaults stand for nothing that was asked."""
    monkeypatch.chdir(tmp_path)
    for command in (SAMPLES, "evaluate run --fid -n 40", "sample run --trajectory way.gif"):
        assert main(command.split()) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "out" not in line.split()
