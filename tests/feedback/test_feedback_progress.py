"""Bars of work that says how much it is only once it has begun."""

from __future__ import annotations

from contextlib import contextmanager

from softtrunc.feedback.progress import Silent, counting
from softtrunc.feedback.text import hours


class Drawn:
    """Progress that keeps what it was told."""

    def __init__(self):
        self.told = []

    @contextmanager
    def task(self, label, total, done=0):
        self.told.append(("begin", label, total, done))
        yield self
        self.told.append(("end",))

    def advance(self, n=1, note=""):
        self.told.append(n)

    def say(self, line):
        raise AssertionError(line)


def test_the_bar_appears_with_the_first_call_and_ends_with_the_block():
    drawn = Drawn()
    with counting(drawn, "read") as count:
        assert drawn.told == []
        count(2, 10)
        count(5, 10)
        assert drawn.told == [("begin", "read", 10, 0), 2, 3]
    assert drawn.told[-1] == ("end",)


def test_work_that_never_says_anything_has_no_bar():
    drawn = Drawn()
    with counting(drawn, "read"):
        pass
    assert drawn.told == []


def test_a_bar_may_count_in_larger_units():
    drawn = Drawn()
    with counting(drawn, "fetch, MiB", unit=1 << 20) as count:
        count(1 << 19, 3 << 20)
        count(5 << 19, 3 << 20)
        count(3 << 20, 3 << 20)
    assert drawn.told == [("begin", "fetch, MiB", 3, 0), 0, 2, 1, ("end",)]


def test_nobody_need_look():
    with counting(Silent(), "read") as count:
        count(1, 2)


def test_durations_are_read_at_once():
    assert [hours(s) for s in (0.4, 59.6, 3599, 3600, 90_061)] == [
        "0:00:00",
        "0:01:00",
        "0:59:59",
        "1:00:00",
        "25:01:01",
    ]
