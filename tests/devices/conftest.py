from collections import Counter

import pytest
from pretend import pretending


@pytest.fixture(params=["cuda", "mps"])
def machine(request):
    """The pretend device; every kernel that a test used on it must exist."""
    with pretending(request.param) as found:
        yield found
        assert found.missing_kernels() == {}


@pytest.fixture
def waits(machine):
    """The host's waits while a function runs, by line, and what it returned."""

    def count(function):
        before = Counter(machine.waits)
        found = function()
        return found, machine.waits - before

    return count
