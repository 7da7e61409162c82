"""What all tests share. Signatures of the package are checked at run time, shapes included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

# Before anything of the package is imported, and for as long as the tests run.
jaxtyping.install_import_hook("softtrunc", "typecheck.check")

# The tests themselves run in parallel.
torch.set_num_threads(1)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the type checker: a user's mistake meets the package's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference files that SOFTTRUNC_SHARED names."""
    name = os.environ.get("SOFTTRUNC_SHARED")
    if name is None:
        pytest.skip("SOFTTRUNC_SHARED is not set: no reference files to compare with")
    path = Path(name)
    if not path.is_dir():
        pytest.fail(f"SOFTTRUNC_SHARED={name} is not a folder")
    return path
