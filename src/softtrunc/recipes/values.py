"""The numbers that a recipe may hold, and what all of its sections refuse.

Each bound follows from what its comment says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

# float32 ends at 3.4e38, and what the arithmetic squares at the root of that.
Positive = Annotated[float, Field(gt=0.0, le=1e19)]
NotNegative = Annotated[float, Field(ge=0.0, le=1e19)]
Rate = Annotated[float, Field(gt=0.0, le=1e30)]  # Adam divides it by what may be small
# Of [0, 1]; networks are told the time as a float32, whose smallest normal number this is.
Time = Annotated[float, Field(ge=1.2e-38, lt=1.0)]
# Up to here a float64, which times and averages are computed in, counts without gaps.
Count = Annotated[int, Field(ge=1, le=2**53, strict=True)]
Natural = Annotated[int, Field(ge=0, le=2**53, strict=True)]
# What a schedule or a batch holds in memory for each: some hundred bytes at the least.
Held = Annotated[int, Field(ge=1, le=10**6, strict=True)]
# An image of 80 million pixels is refused; one of this side is one, if a single pixel wide.
Side = Annotated[int, Field(ge=1, le=80_000_000, strict=True)]
Channels = Annotated[int, Field(ge=1, le=10**6, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # of PyTorch's generators


class Section(BaseModel):
    """A part of a recipe: frozen, without unknown keys, without NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="after")
    def _numbers(self) -> Section:
        for key, value in self:
            many = value if isinstance(value, tuple) else (value,)
            if any(isinstance(one, float) and math.isnan(one) for one in many):
                raise ValueError(f"{key} is not a number")
        return self

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: object) -> object:
        """Python takes true for 1."""
        for key, value in values.items() if isinstance(values, Mapping) else ():
            many = value if isinstance(value, list | tuple) else (value,)
            known = cls.model_fields.get(key)
            flag = known is not None and known.annotation in (bool, bool | None)
            if not flag and any(isinstance(one, bool) for one in many):
                raise ValueError(f"{key} is true or false, where a number or a word is to stand")
        return values
