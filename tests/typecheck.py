"""The run-time type checker that `conftest.py` puts under every function of the package."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

# The numeric tower: an int is welcome where a float is asked for, as Python's own typing says.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
