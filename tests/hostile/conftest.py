"""The proof that every hostile test hands its attempts to, and the counts at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Proof


@pytest.fixture(scope="session")
def _loaded() -> None:
    """What commands import is not to count as the memory of an input."""
    import softtrunc.jobs.import_checkpoint
    import softtrunc.jobs.measure_files
    import softtrunc.jobs.prepare
    import softtrunc.jobs.train  # noqa: F401


@pytest.fixture
def hostile(tmp_path, monkeypatch, unchecked, _loaded, record_property) -> Iterator[Proof]:
    """A proof in an empty folder, which is the working directory; judged when the test is over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    proof = Proof(tmp_path)
    yield proof
    record_property("hostile", proof.verdict().partition("\n")[0])
    assert proof.tried, "nothing was tried"
    assert not proof.short, proof.verdict()


def pytest_terminal_summary(terminalreporter) -> None:
    """Counts of every class."""
    found = {
        report.nodeid.partition("::")[2]: value
        for reports in terminalreporter.stats.values()
        for report in reports
        for key, value in getattr(report, "user_properties", ())
        if key == "hostile"
    }
    if found:
        terminalreporter.section("hostile inputs")
        for name, counts in sorted(found.items()):
            terminalreporter.write_line(f"{name}: {counts}")
