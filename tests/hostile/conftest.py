"""The proof that every hostile test hands its attempts to, and the counts at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from harness import Proof
from world import build_world


@pytest.fixture(scope="session")
def _loaded() -> None:
    """What commands import is not to count as the memory of an input."""
    import softtrunc.jobs.import_checkpoint
    import softtrunc.jobs.measure_files
    import softtrunc.jobs.prepare
    import softtrunc.jobs.train  # noqa: F401


@pytest.fixture(scope="session")
def world(tmp_path_factory, _loaded) -> Path:
    """A folder with something of every kind; not to be changed."""
    jaxtyping.config.update("jaxtyping_disable", True)
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        build_world(folder)
    jaxtyping.config.update("jaxtyping_disable", False)
    return folder


@pytest.fixture
def inhabited(world, tmp_path, monkeypatch, unchecked, record_property) -> Iterator[Proof]:
    """A proof in a copy of the world."""
    shutil.copytree(world, tmp_path / "world")
    yield from _proof(Proof(tmp_path / "world", world), monkeypatch, record_property)


@pytest.fixture
def hostile(tmp_path, monkeypatch, unchecked, _loaded, record_property) -> Iterator[Proof]:
    """A proof in an empty folder, which is the working directory; judged when the test is over."""
    yield from _proof(Proof(tmp_path), monkeypatch, record_property)


def _proof(proof: Proof, monkeypatch, record_property) -> Iterator[Proof]:
    monkeypatch.chdir(proof.folder)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
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
