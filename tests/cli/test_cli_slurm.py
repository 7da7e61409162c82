"""The batch script for Slurm, under a stand-in for its scheduler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import TINY, environment

from softtrunc.cli import main

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"

# What the script calls. As the real one does, srun hands SIGTERM on to its task.
COMMANDS = {
    "srun": """
        trap 'kill -TERM "$task"' TERM
        "$@" & task=$!
        wait "$task"; wait "$task"
        echo $? >> codes
    """,
    "scontrol": 'case "$1" in show) echo 127.0.0.1;; requeue) echo "$2" > requeued;; esac',
    "accelerate": f"""
        printf '%s\\n' "$@" > arguments
        exec "{sys.executable}" -m accelerate.commands.accelerate_cli "$@"
    """,
}


@pytest.mark.slow
def test_a_job_whose_time_is_over_goes_on_when_it_is_started_again(tmp_path, monkeypatch):
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"JOB_ID": "7", "JOB_NODELIST": "one", "NNODES": "1", "NODEID": "0"}
    job |= {"GPUS_ON_NODE": "2", "STEP_NUM_TASKS": "1"}
    variables = {
        **environment(),
        **{f"SLURM_{key}": value for key, value in job.items()},
        "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
    }
    command = ["bash", str(SCRIPT), "digits-vp-nll-st", "--out", "run", *TINY]
    command += ["--set", "training.log_every=1", "--set", "training.steps=1000000"]
    script = subprocess.Popen(
        command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert script.poll() is None, script.communicate()[1]
        time.sleep(0.05)
    script.send_signal(signal.SIGUSR1)
    _, err = script.communicate(timeout=200)
    assert script.returncode == 0
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert (tmp_path / "codes").read_text() == "1\n"  # the launcher's, whatever its processes say
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    done = json.loads((checkpoint / "state.json").read_text())["step"]
    assert err.count(f"stopped at step {done} with a checkpoint; go on with --resume") == 1
    # What it starts is the same when the job comes again: here by one process, without a launcher.
    words = (tmp_path / "arguments").read_text().splitlines()
    words = words[words.index("softtrunc") + 1 :]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--set", f"training.steps={done + 1}"]) == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, done + 2))
