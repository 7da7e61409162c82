"""The time at which truncated-normal dequantisation begins: the best of several for this model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from softtrunc.data import ImageDataset
from softtrunc.evaluation.bits import BitsMeasurement
from softtrunc.evaluation.image_results import ImageResults
from softtrunc.feedback.processes import Company

_IMAGES = 32


def choose_time(
    measurement: BitsMeasurement,
    data: ImageDataset,
    fill: Callable[[BitsMeasurement, str], ImageResults],
    company: Company,
) -> BitsMeasurement:
    """The measurement with the time that is best on training images, and how it was found.

    Any time gives a bound. The images of the figure have no say in which it is, so the best of
    several is a bound too.

    Args:
        measurement: its protocol leaves the time open.
        data: the images the model was trained on; the first 32 are measured, one draw each.
        fill: measures them, told of the words for a bar, see `measure`.
        company: the processes that measure.
    """
    card, model, key = measurement.data.card, measurement.model, measurement.key
    protocol = measurement.protocol
    times = protocol.times_to_try(key, model.sde, card.levels, model.value_range)
    few = dataclasses.replace(protocol, importance=1, passes=1, limit=_IMAGES)
    tried = [
        fill(
            dataclasses.replace(
                measurement, data=data, protocol=dataclasses.replace(few, truncated_eps=t)
            ),
            f"at {t:.1e}",
        )
        for t in times.values()
    ]
    bits = company.from_main(lambda: [results.mean().mean for results in tried])
    best = min(zip(bits, times.values(), strict=True))[1]
    choice = {
        "split": data.card.split,
        "images": few.images(data),
        "sigmas": list(times),
        "bits_per_dim": bits,
    }
    chosen = dataclasses.replace(protocol, truncated_eps=best)
    return dataclasses.replace(measurement, protocol=chosen, choice=choice)
