"""The training loop gives the network each image's own class, or now and then none."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_small import small_data, small_objective

from softtrunc import VPSDE, ScoreModel
from softtrunc.data import ImageDataset
from softtrunc.training import TrainingConfig, TrainState, fit

CONFIG = TrainingConfig(
    batch_size=8, flip=False, dequantize=False, labels=True, label_dropout=0.25, warmup_steps=0
)


class Listening(nn.Module):
    """Remembers what it is given: for each example its brightness and its class."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.heard: list[tuple[float, int]] = []

    def forward(self, x: Tensor, _label: Tensor, y: Tensor) -> Tensor:
        self.heard += zip(x.detach().mean((1, 2, 3)).tolist(), y.tolist(), strict=True)
        return self.scale[y][:, None, None, None] * x


def shades() -> ImageDataset:
    """Images whose one shade is their class."""
    labels = np.arange(40) % 3
    images = np.broadcast_to((8 * labels)[:, None, None, None], (40, 1, 6, 6)).astype(np.uint8)
    return ImageDataset.create(
        images, name="shades", split="train", source="test", levels=17, labels=labels
    )


def trained(config: TrainingConfig, steps: int) -> list[tuple[float, int]]:
    model = ScoreModel(Listening(), VPSDE())
    objective = small_objective()
    state = TrainState.create(model, config)
    for _ in fit(state, objective, shades(), config, steps=steps):
        pass
    return model.network.heard


def test_every_image_comes_with_its_class_or_with_none(monkeypatch):
    """Without noise an image's brightness is its class."""
    monkeypatch.setattr(VPSDE, "perturb", lambda _self, x, _t, _z: x)
    heard = trained(CONFIG, 60)
    told = [(shade, y) for shade, y in heard if y != 3]
    for shade, y in told:
        assert shade == pytest.approx(y - 1.0)
    # 480 draws of one in four: off by more than 0.08 once in 10,000 runs.
    assert abs(1 - len(told) / len(heard) - 0.25) < 0.08
    assert {y for _, y in told} == {0, 1, 2}


def test_parts_of_a_batch_hear_what_the_whole_hears():
    whole = trained(CONFIG, 3)
    parts = trained(dataclasses.replace(CONFIG, micro_batch_size=2), 3)
    assert [y for _, y in whole] == [y for _, y in parts]


def test_labels_that_are_not_there_are_missed():
    model = ScoreModel(Listening(), VPSDE())
    records = fit(
        TrainState.create(model, CONFIG), small_objective(), small_data(), CONFIG, steps=1
    )
    with pytest.raises(ValueError, match="labels: the data have none"):
        next(records)
