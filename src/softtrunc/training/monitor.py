"""From step records to one line of numbers, and to a halt when a number is not finite."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator

from softtrunc.records import MetricsLine, TimeBins
from softtrunc.training.loop import StepRecord

_EDGES = tuple(-5.0 + 0.5 * i for i in range(11))


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient of a step was not a finite number."""


class Stopwatch:
    """Seconds spent training: pauses while the run samples or saves, goes on after a resume."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._done = seconds
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._done + running

    def pause(self) -> None:
        """Stop counting."""
        self._done, self._since = self.seconds, None

    def resume(self) -> None:
        """Count again."""
        self._done, self._since = self.seconds, time.perf_counter()


class Monitor:
    """Collects step records without waiting for the device; waits once per row.

    Args:
        accelerator: to sum over processes.
        dimensions: of one example; errors are divided by it if `summed`.
        summed: the objective's errors are sums over dimensions, not means.
        clock: counts the training time.
    """

    def __init__(
        self, accelerator: Accelerator, *, dimensions: int, summed: bool, clock: Stopwatch
    ) -> None:
        self._accelerator = accelerator
        self._scale = 1.0 / dimensions if summed else 1.0
        self._records: list[StepRecord] = []
        self._clock = clock
        self._last_row = clock.seconds

    def add(self, record: StepRecord) -> None:
        """Take note of a step."""
        self._records.append(record)

    def row(self) -> MetricsLine | None:
        """The means since the last row, over all processes; None if there was no step.

        All processes must call it together.

        Raises:
            NonFiniteLossError: if a step's loss or gradient was not finite, naming the first one.
        """
        records, self._records = self._records, []
        if not records:
            return None
        loss = torch.stack([r.loss.mean() for r in records])
        norm = torch.stack([r.grad_norm for r in records])
        loss = self._accelerator.reduce(loss, reduction="mean")
        bins = self._bins(records)
        losses, norms = loss.tolist(), norm.tolist()
        self._check(records, losses, norms)
        examples = len(records) * records[0].t.numel() * self._accelerator.num_processes
        # Read only now: the numbers above waited for the device to finish the steps.
        seconds = self._clock.seconds
        rate = examples / max(seconds - self._last_row, 1e-9)
        self._last_row = seconds
        return MetricsLine(
            step=records[-1].step,
            loss=sum(losses) / len(losses),
            taus=tuple(r.tau for r in records),
            grad_norms=tuple(norms),
            learning_rate=records[-1].learning_rate,
            images_per_second=rate,
            seconds=seconds,
            by_log10_t=bins,
        )

    def _check(self, records: list[StepRecord], losses: list[float], norms: list[float]) -> None:
        finite = torch.isfinite(torch.tensor([losses, norms])).all(0).tolist()
        if all(finite):
            return
        bad = records[finite.index(False)]
        raise NonFiniteLossError(
            f"step {bad.step}: the loss is not finite (tau = {bad.tau:.3g}, t from "
            f"{float(bad.t.min()):.3g} to {float(bad.t.max()):.3g}): lower the learning rate "
            "(training.learning_rate) or, with bf16, train in float32 (training.precision=no)"
        )

    def _bins(self, records: list[StepRecord]) -> TimeBins:
        t = torch.cat([r.t for r in records])
        inner = torch.tensor(_EDGES[1:-1], device=t.device, dtype=t.dtype)
        index = torch.bucketize(t.log10(), inner, right=True)
        values = torch.stack(
            [
                torch.ones_like(t),
                torch.cat([r.loss for r in records]).to(t),
                torch.cat([r.error for r in records]).to(t) * self._scale,
            ]
        )
        sums = torch.zeros(3, len(_EDGES) - 1, device=t.device, dtype=t.dtype)
        sums.index_add_(1, index, values)
        count, loss, error = self._accelerator.reduce(sums, reduction="sum").tolist()
        loss, error = (
            tuple(v / n if n else None for v, n in zip(sums, count, strict=True))
            for sums in (loss, error)
        )
        return TimeBins(_EDGES, loss, error, tuple(map(int, count)))
