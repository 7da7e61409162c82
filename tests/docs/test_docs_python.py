"""The Python of README and docs: it compiles, what it imports exists, and what is marked runs."""

from __future__ import annotations

import ast
import importlib

import pytest
import torch
from documents import PAGES, blocks, name
from torch import nn

from softtrunc import (
    VPSDE,
    ImportanceTimes,
    PowerPrior,
    ScoreModel,
    SoftTruncationLoss,
    likelihood_weight,
)

CODE = [each for page in PAGES for each in blocks(page) if each.language == "python"]
RUN = [each for each in CODE if each.marker == "run"]


class Network(nn.Module):
    """What the docs call `your_network`: called as `network(x, label)`, right for normal data."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, label: torch.Tensor, **_: object) -> torch.Tensor:
        sigma = VPSDE().marginal(label / 999).sigma
        return self.scale * x * sigma.reshape(-1, *[1] * (x.dim() - 1))


def stand_ins() -> dict[str, object]:
    """What a reader brings along, by the names that the docs give it."""
    torch.manual_seed(0)
    network, sde = Network(), VPSDE()
    model = ScoreModel(network, sde)
    loss = SoftTruncationLoss(sde, PowerPrior(1.0), ImportanceTimes(sde), likelihood_weight(sde))
    x = torch.randn(8, 2)
    return {
        "your_network": network,
        "model": model,
        "loss": loss,
        "optimizer": torch.optim.Adam(model.parameters()),
        "x": x,
        "batches": [torch.zeros(4, 1, 16, 16)],
        "observed": torch.zeros(4, 2),
        "blur": lambda image: 0.5 * image,
        "strength": 0.1,
        "soft": model,
        "hard": model,
    }


def missing(code: str) -> list[str]:
    """Imports from softtrunc and torch that lead nowhere."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for module in names:
            if module.split(".")[0] not in ("softtrunc", "torch"):
                continue
            loaded = importlib.import_module(module)
            wanted = [each.name for each in node.names] if isinstance(node, ast.ImportFrom) else []
            found += [f"{module}.{each}" for each in wanted if not hasattr(loaded, each)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_compiles_and_its_imports_exist(page):
    for block in (each for each in CODE if each.place.startswith(f"{name(page)}:")):
        compile(block.text, block.place, "exec")
        assert missing(block.text) == [], block.place


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.place)
def test_marked_code_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), stand_ins())


def test_some_code_is_run():
    assert RUN


def test_a_missing_name_is_found():
    assert missing("from softtrunc import Nothing\nimport torch") == ["softtrunc.Nothing"]
