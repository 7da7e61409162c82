"""`evaluation.json` of a run while figures are added, and what becomes of the figures before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from softtrunc.feedback.errors import user_errors
from softtrunc.records import (
    Evaluation,
    Figure,
    TrainingCost,
    flatten,
    median_rate,
    read_evaluation,
    write_evaluation,
)
from softtrunc.runs.folder import now, package_versions
from softtrunc.runs.open_run import OpenRun


class EvaluationFile:
    """`evaluation.json` of this checkpoint and these weights, which figures are added to.

    Raises:
        UserError: if what is there is damaged.
    """

    def __init__(self, opened: OpenRun, weights: str) -> None:
        self._opened = opened
        # Figures of another checkpoint or of other weights, to be kept elsewhere.
        self._displaced: tuple[Path, Evaluation] | None = None
        run, which = opened.run, (opened.step, weights)
        self._file = (
            run.evaluation_file if opened.is_newest else run.earlier_evaluation_file(*which)
        )
        old = _read(self._file)
        same = old is not None and (old.step, old.weights) == which
        if old is not None and not same and old.step is not None:
            self._displaced = run.earlier_evaluation_file(old.step, old.weights), old
            old = _read(run.earlier_evaluation_file(*which))
            same = old is not None
        self.evaluation = Evaluation(
            run=opened.run.path.name,
            step=opened.step,
            weights=weights,
            created=now(),
            versions=package_versions(),
            figures=old.figures if old is not None and same else (),
            training=TrainingCost(
                seconds=opened.seconds,
                images_per_second=median_rate(opened.run.metrics()),
                parameters=sum(p.numel() for p in opened.model.parameters()),
                steps=opened.step,
                batch_size=opened.recipe.training.batch_size,
            ),
        )

    def add(self, figure: Figure) -> None:
        """Add a figure, in the place of an earlier one that answers the same question."""
        kept = [f for f in self.evaluation.figures if not _same(f, figure)]
        self.evaluation = dataclasses.replace(self.evaluation, figures=(*kept, figure))
        if not self._opened.company.main:
            return
        if self._displaced is not None:
            write_evaluation(*self._displaced)
            self._displaced = None
        write_evaluation(self._file, self.evaluation)


def _read(file: Path) -> Evaluation | None:
    """What was measured before; a damaged file may hold figures that took hours."""
    with user_errors():
        return read_evaluation(file)


def _same(a: Figure, b: Figure) -> bool:
    """Whether one takes the other's place: all alike but what came out, and of how many images."""
    if a.data is not None and b.data is not None and a.data.fingerprint != b.data.fingerprint:
        return False
    asked = [
        {k: v for k, v in f.protocol.items() if k != "n" and not k.startswith("std_over_")}
        for f in (a, b)
    ]
    return (a.key, a.name, flatten(asked[0])) == (b.key, b.name, flatten(asked[1]))
