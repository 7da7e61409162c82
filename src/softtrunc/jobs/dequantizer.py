"""A run's learned dequantiser: trained after the model, kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from softtrunc.data import ImageDataset
from softtrunc.density import Dequantizer, train_dequantizer
from softtrunc.feedback.errors import RunFailedError, UserError
from softtrunc.feedback.files import appears, whole_file
from softtrunc.feedback.progress import Progress
from softtrunc.runs.open_run import OpenRun


def obtain_dequantizer(
    opened: OpenRun, data: ImageDataset, weights: str, progress: Progress
) -> Dequantizer:
    """The dequantiser of the run, trained now unless it was before.

    One that was trained for other weights, images or settings is replaced. Several processes
    wait for the one that trains.

    Args:
        opened: the run.
        data: the images it was trained on.
        weights: digest of the model's.
        progress: where the bar goes.

    Raises:
        UserError: if training it fails.
    """
    evaluation, card = opened.recipe.evaluation, data.card
    spec = evaluation.dequantizer
    settings = {
        "weights": weights,
        "data": card.fingerprint,
        "settings": spec.model_dump(),
        "eps": evaluation.eps,
        "seed": evaluation.seed,
    }
    identity = json.dumps(settings, sort_keys=True)
    path = opened.run.path / "dequantizer.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(evaluation.seed)
        dequantizer = Dequantizer(
            (card.channels, card.height, card.width),
            levels=card.levels,
            layers=spec.layers,
            width=spec.width,
        )
    dequantizer.to(opened.device)

    def obtain() -> bool:
        """Read it, or train and write it: only the main process finds none."""
        if _load(path, identity, dequantizer):
            return True
        if not opened.company.main:
            return False
        _train(opened, data, dequantizer, progress)
        with whole_file(path) as partial:
            tensors = {k: v.contiguous() for k, v in dequantizer.state_dict().items()}
            save_file(tensors, partial, metadata={"identity": identity})
        return True

    if not (opened.company.main_first(obtain) or appears(obtain)):
        raise RunFailedError(f"{path}: not there: all processes must see the same run folder")
    return dequantizer.eval()


def _load(path: Path, identity: str, dequantizer: Dequantizer) -> bool:
    """Fill in the file's weights, if it is the dequantiser that is wanted."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return False
        dequantizer.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _train(
    opened: OpenRun, data: ImageDataset, dequantizer: Dequantizer, progress: Progress
) -> None:
    evaluation = opened.recipe.evaluation
    spec = evaluation.dequantizer
    losses = train_dequantizer(
        dequantizer,
        opened.model,
        _batches(data, min(spec.batch_size, len(data)), evaluation.seed, opened.device),
        steps=spec.steps,
        value_range=opened.model.value_range,
        eps=evaluation.eps,
        learning_rate=spec.learning_rate,
        seed=evaluation.seed,
    )
    smooth: float | None = None
    try:
        with progress.task(f"dequantizer {opened.run.path.name}", spec.steps) as bar:
            for loss in losses:
                smooth = loss if smooth is None else smooth + 0.02 * (loss - smooth)
                bar.advance(1, f"loss {smooth:.3f}")
    except ArithmeticError as error:
        raise UserError(
            f"evaluation.dequantizer: {error}: --set evaluation.dequantizer.learning_rate="
            f"{spec.learning_rate / 3:.1g}"
        ) from error


def _batches(data: ImageDataset, size: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Epoch after epoch in a new order; what does not fill a batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(len(data), generator=generator).split(size):
            if len(part) == size:
                yield data.batch(part).to(device)
