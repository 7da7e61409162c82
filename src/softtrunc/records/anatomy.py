"""`anatomy.json`: the bound and the samples of one run or two, told apart by diffusion time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter

from softtrunc.feedback.files import write_text
from softtrunc.feedback.json import read_json

Ends = tuple[FiniteFloat, FiniteFloat]
"""Low and high."""


@dataclass(frozen=True)
class AnatomyBin:
    """A bin of log-SNR; means over images, or those of a difference between two runs.

    - `log_snr`, `t`: its ends. The low time belongs to the high log-SNR.
    - `bits_per_dim`, `standard_error`: what the bin adds to the bound.
    - `error`, `error_standard_error`: `||sigma score + z||^2` per dimension.
    - `bits_below`: what all times up to the bin's high end add; `share_below`: over what all add.
    - `share_of_draws`: of training's times; `weight`, `clipped_weight`: of the squared error in the
      expected loss, without and with clipping (`LawOfTimes`). None where it is not known.
    """

    log_snr: Ends
    t: Ends
    bits_per_dim: FiniteFloat
    standard_error: FiniteFloat
    error: FiniteFloat
    error_standard_error: FiniteFloat
    bits_below: FiniteFloat
    share_below: FiniteFloat | None = None
    share_of_draws: FiniteFloat | None = None
    weight: FiniteFloat | None = None
    clipped_weight: FiniteFloat | None = None


@dataclass(frozen=True)
class AnatomyRun:
    """One run: its bound as bins and the terms beside them, which add up to the total.

    `distance` is that of its own samples to the training images, None where it was not measured.
    """

    name: str
    step: int
    weights: str
    bins: tuple[AnatomyBin, ...]
    prior: FiniteFloat
    residual: FiniteFloat
    offset: FiniteFloat
    total_bits_per_dim: FiniteFloat
    standard_error: FiniteFloat
    distance: FiniteFloat | None = None

    @property
    def law_is_known(self) -> bool:
        """Whether it is known what training made of the times."""
        return self.bins[0].weight is not None

    @property
    def law_is_recorded(self) -> bool:
        """Whether recorded steps say so, not the recipe alone, which an import guesses."""
        return self.bins[0].clipped_weight is not None


@dataclass(frozen=True)
class AnatomyChange:
    """The run `of` minus the run `minus`, paired over images, times and noise."""

    of: str
    minus: str
    bins: tuple[AnatomyBin, ...]
    total_bits_per_dim: FiniteFloat
    standard_error: FiniteFloat


@dataclass(frozen=True)
class ChimeraPoint:
    """The distance of samples that follow `above` at times > t and `below` at the others."""

    above: str
    below: str
    t: FiniteFloat
    log_snr: FiniteFloat
    distance: FiniteFloat | None


@dataclass(frozen=True)
class RegenerationPoint:
    """Images noised up to t and sampled again: mean squared error per dimension, correlation."""

    t: FiniteFloat
    log_snr: FiniteFloat
    squared_error: FiniteFloat
    correlation: FiniteFloat


@dataclass(frozen=True)
class Anatomy:
    """The content of `anatomy.json`: one run with `regeneration`, or two with the rest.

    `unit` is that of all bits: of data that are floats on no grid, "bits/dim of density".
    `distance_name` is what the runs' and chimeras' distances are called, e.g. "FD(fashion16-cnn)";
    None where none was measured, and in files of older versions. `protocol` says over which
    extractor they are, and to which images.
    """

    created: str
    runs: tuple[AnatomyRun, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    difference: AnatomyChange | None = None
    chimera: tuple[ChimeraPoint, ...] = ()
    regeneration: tuple[RegenerationPoint, ...] = ()
    unit: str = "bits/dim"
    distance_name: str | None = None

    @property
    def distance(self) -> str:
        """What to call the distances in a plot or table."""
        return self.distance_name or "distance"


_ANATOMY = TypeAdapter(Anatomy)


def write_anatomy(path: Path, anatomy: Anatomy) -> None:
    """Write `anatomy.json`.

    Raises:
        ValueError: if a number is not finite.
    """
    write_text(path, json.dumps(asdict(anatomy), indent=1, allow_nan=False) + "\n")


def read_anatomy(path: Path) -> Anatomy | None:
    """Read `anatomy.json`.

    Returns:
        None if there is no such file.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        found = _ANATOMY.validate_python(read_json(path))
    except ValueError as error:
        raise ValueError(f"{path}: damaged; run `softtrunc anatomy` again") from error
    if len(found.runs) not in (1, 2) or any(not run.bins for run in found.runs):
        raise ValueError(f"{path}: damaged; run `softtrunc anatomy` again")
    return found
