"""What works right after installation: the command, the model that ships, five lines of library."""

from pathlib import Path

import torch

import softtrunc
from softtrunc import HardTruncation, ImportanceTimes, ScoreModel, SoftTruncationLoss
from softtrunc import likelihood_weight as likelihood
from softtrunc.cli import main

print(f"softtrunc {softtrunc.__version__} from {Path(softtrunc.__file__).parent}")
assert main(["sample", "fashion16", "-n", "4", "--steps", "5", "--out", "drawn"]) == 0
assert len(list(Path("drawn").glob("*.png"))) == 4

model = ScoreModel.from_pretrained("fashion16")
loss = SoftTruncationLoss(
    model.sde, HardTruncation(), ImportanceTimes(model.sde), likelihood(model.sde)
)
terms = loss(model, torch.zeros(2, 1, 16, 16))
assert bool(torch.isfinite(terms.loss).all())
print("it works")
