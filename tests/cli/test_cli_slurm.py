"""The batch script for Slurm with accelerate's own launcher, under a stand-in for the scheduler.

What it starts is a stand-in too, which needs no PyTorch: that a training stops and goes on at a
signal is shown elsewhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import environment

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"

# What the script calls. As the real one does, srun hands SIGTERM on to its task.
COMMANDS = {
    "srun": """
        trap 'kill -TERM "$task"' TERM
        "$@" & task=$!
        wait "$task"; wait "$task"; code=$?
        echo $code >> codes
        exit $code
    """,
    "scontrol": """
        case "$1" in
          show) echo 127.0.0.1;;
          requeue) echo "$2" > requeued; ls saved-* >> requeued;;
        esac
    """,
    "accelerate": f'exec "{sys.executable}" -m accelerate.commands.accelerate_cli "$@"',
}

TRAINING = """
import os, pathlib, signal, sys, time

rank = os.environ["RANK"]

def stop(*_):
    time.sleep(1.0)  # a checkpoint takes a while
    pathlib.Path(f"saved-{rank}").write_text(" ".join(sys.argv[1:]))
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(f"began-{rank}").touch()
while True:
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_job_whose_time_is_over_saves_and_is_put_back_into_the_queue(tmp_path):
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "softtrunc").mkdir()
    (tmp_path / "softtrunc" / "__init__.py").touch()
    (tmp_path / "softtrunc" / "__main__.py").write_text(TRAINING)
    job = {"JOB_ID": "7", "JOB_NODELIST": "one", "NNODES": "1", "NODEID": "0"}
    job |= {"GPUS_ON_NODE": "2", "STEP_NUM_TASKS": "1"}
    variables = {
        **environment(),
        **{f"SLURM_{key}": value for key, value in job.items()},
        "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
    }
    command = ["bash", str(SCRIPT), "a recipe", "--out", "run"]
    script = subprocess.Popen(
        command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True
    )
    while len(list(tmp_path.glob("began-*"))) < 2:
        assert script.poll() is None, script.communicate()[1]
        time.sleep(0.05)
    script.send_signal(signal.SIGUSR1)
    _, err = script.communicate(timeout=200)
    assert script.returncode == 0, err
    # After all of them have saved; the words are the same when the job comes again.
    assert (tmp_path / "requeued").read_text().split() == ["7", "saved-0", "saved-1"]
    for rank in range(2):
        assert (tmp_path / f"saved-{rank}").read_text() == "train a recipe --out run --resume"
    assert (tmp_path / "codes").read_text() == "1\n"  # the launcher's, whatever its processes say
