"""A user's mistake under a launcher: one line by one process, exit code 2, no waiting."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest
from command_line import TINY, environment
from torch.distributed import TCPStore

from softtrunc.cli import main


@pytest.fixture
def launched(monkeypatch):
    """What a launcher tells its processes; the store that it keeps for them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return store


def tell(monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", str(rank))
    assert main(["sample", "nothing"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_first_process_to_fail_speaks(launched, monkeypatch, capsys, order):
    assert "no run here" in tell(monkeypatch, capsys, order[0])
    assert tell(monkeypatch, capsys, order[1]) == ""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "no run here" in tell(monkeypatch, capsys, order[1])


@pytest.mark.parametrize("started", ["by hand", "by a launcher that is gone"])
def test_without_a_store_rank_0_speaks(monkeypatch, capsys, launched, started):
    if started == "by hand":
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    else:
        monkeypatch.delenv("MASTER_PORT")
    assert "no run here" in tell(monkeypatch, capsys, 0)
    assert tell(monkeypatch, capsys, 1) == ""


@pytest.mark.slow
def test_two_processes_refuse_in_one_line(tmp_path):
    flags = ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    flags += ["--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]
    command = ["train", "digits-vp-nll-st", *TINY, "--set", "training.batch_size=7"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "softtrunc", *command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("softtrunc: ")]
    assert len(lines) == 1
    assert "batch_size=7 does not divide over 2 processes" in lines[0]
    # The launcher's own traceback names its own files alone.
    assert "src/softtrunc" not in done.stderr
    assert "exitcode: 2" in done.stderr
    # The launcher kills the other process where it stands: a lock that nobody holds may stay.
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in left if not path.name.endswith(".partial")] == []
