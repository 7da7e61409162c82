"""Processes agree on when to stop, and say when a launcher would not wait for it; no clock runs."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from softtrunc.jobs.questions import Deadline, Questions
from softtrunc.training import Stopwatch


class Pair(Accelerator):
    """This process and one that answers with `other`: its vote and its seconds a step."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, *other):
        self.other, self.questions = torch.tensor(other), 0

    def gather(self, mine):
        self.questions += 1
        return torch.cat([mine, self.other])


class Clock(Stopwatch):
    seconds = 0.0

    def __init__(self):
        pass


@pytest.mark.parametrize(
    ("ours", "theirs", "between"),
    [(0.01, 0.01, 50), (0.01, 0.39, 5), (0.9, 0.01, 2), (30.0, 0.01, 1)],
)
def test_processes_ask_about_signals_by_the_clock_of_the_slowest(ours, theirs, between):
    pair, clock, asked = Pair(0.0, theirs), Clock(), []
    questions = Questions(pair, clock, 0)
    for step in range(1, 120):
        clock.seconds += ours
        assert not questions.any_stop(step, wanted=False)
        if pair.questions > len(asked):
            asked.append(step)
    assert asked == list(range(1, 120, between))
    pair.other[0] = 1.0
    assert [questions.any_stop(step, wanted=False) for step in range(120, 170)].count(True) >= 1


@pytest.mark.parametrize(
    ("step", "writing", "limit", "told"),
    [
        (9.0, 19.0, None, None),
        (1.0, 21.0, None, "a step takes 1.0 s, a checkpoint 21.0 s, and a launcher kills 30 s"),
        (31.0, 0.0, None, "a step takes 31.0 s, a checkpoint 0.0 s"),
        (12.0, 19.0, None, "a step takes 12.0 s, a checkpoint 19.0 s"),
        (12.0, 19.0, "93", None),
        (2.0, 0.5, "2", "kills 2 s after a signal: before you start, set TORCH_ELASTIC_SHUTDOWN"),
    ],
)
def test_a_stop_that_a_launcher_would_not_wait_for_is_told_of_once(
    monkeypatch, step, writing, limit, told
):
    if limit is not None:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", limit)
    clock, said = Clock(), []
    questions = Questions(Pair(0.0, step), clock, 0)
    deadline = Deadline(True, said.append)
    for number in range(1, 9):  # the other process's steps are slow
        clock.seconds += 0.01
        questions.any_stop(number, wanted=False)
        deadline.look(questions.seconds_a_step)
        deadline.look(questions.seconds_a_step, writing)
    assert len(said) == (told is not None)
    assert all(told in line for line in said)
    Deadline(False, said.append).look(step, 100.0)
    assert len(said) == (told is not None)
