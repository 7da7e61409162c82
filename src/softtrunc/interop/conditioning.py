"""Which noise label was a network trained with? The one under which it denoises better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.score import Conditioning, ScoreFunction
from softtrunc.sde import expand_to, random_normal, widen


class ConditioningChoice(NamedTuple):
    """The label that fits best, and what each candidate's denoising error was.

    - `errors`: mean squared error of the predicted noise per dimension; 1 is knowing nothing.
    """

    conditioning: Conditioning
    errors: dict[Conditioning, float]


@torch.no_grad()
def choose_conditioning(
    models: Mapping[Conditioning, ScoreFunction],
    x: Float[Tensor, "b *event"],
    *,
    generator: torch.Generator | None = None,
) -> ConditioningChoice:
    """The model that predicts noise best on a batch, over noise levels even in log-SNR.

    All models see the same noise at the same times.

    Args:
        models: one model per candidate label; usually one network under the labels of
            `sde.conditionings`.
        x: clean examples in the models' data range; 16 or more, so that all noise levels occur.
        generator: source of the noise.

    Raises:
        ValueError: there are no models or no examples.
    """
    if not models or not len(x):
        raise ValueError("choosing a conditioning needs at least one model and one example")
    sde = next(iter(models.values())).sde
    ends = sde.log_snr(torch.tensor([1e-5, sde.t_max], dtype=torch.float64))
    share = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    t = widen(sde.time_of_log_snr(torch.lerp(ends[0], ends[1], share)), x.device)
    noise = random_normal(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    noisy = sde.perturb(x, t, noise)
    sigma = expand_to(sde.marginal(t).sigma, x)
    errors: dict[Conditioning, float] = {
        name: float((sigma * model.score(noisy, t) + noise).square().mean())
        for name, model in models.items()
    }
    # A network off its label may return NaN, which compares with nothing.
    best = min(errors, key=lambda name: errors[name] if errors[name] >= 0 else torch.inf)
    return ConditioningChoice(best, errors)


def random_images(
    shape: tuple[int, int, int, int],
    value_range: tuple[float, float],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b c h w"]:
    """Gaussian random fields with the 1/f^2 power spectrum of natural images.

    They stand in for images where there are none: good enough to tell whether a network
    recognises noise, not to measure how well it knows its data.

    Args:
        shape: number of images, channels, height, width.
        value_range: the range to fill, as mean +- two standard deviations; clipped to it.
        generator: source of randomness.
    """
    _, _, height, width = shape
    white = random_normal(shape, generator=generator).cpu()
    rows = torch.fft.fftfreq(height)[:, None]
    columns = torch.fft.rfftfreq(width)[None, :]
    frequency = (rows.square() + columns.square()).sqrt()
    # The mean (frequency 0) gets the weight of the longest wave.
    frequency = frequency.clamp(min=1.0 / max(height, width))
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    low, high = value_range
    scaled = 0.5 * (low + high) + 0.25 * (high - low) * smooth / smooth.std()
    return scaled.clamp(low, high)
