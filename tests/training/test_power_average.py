"""Averages of a length chosen after training, against sums and integrals written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from softtrunc.training.power_average import (
    LENGTHS,
    LONGEST,
    PowerAverages,
    Profile,
    coefficients,
    exponent_of,
    inner_products,
)


def density(profile, tau):
    """A profile written out: the density of the moment that an average looks at."""
    exponent, end = profile
    inside = (tau > 0.0) & (tau <= end)
    return np.where(inside, (exponent + 1) / end * (np.abs(tau) / end) ** exponent, 0.0)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.10, 0.2, LONGEST])
def test_the_exponent_belongs_to_the_standard_deviation(length):
    profile = Profile(exponent_of(length), 1.0)
    mean, square = (quad(lambda t, p=p: t**p * density(profile, t), 0, 1)[0] for p in (1, 2))
    assert np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.29, 1e-300, float("nan")])
@pytest.mark.usefixtures("unchecked")
def test_impossible_lengths_are_refused(length):
    with pytest.raises(ValueError, match="an average of length"):
        exponent_of(length)


def test_inner_products_are_integrals_of_products():
    profiles = [Profile(exponent_of(a), n) for a in (0.05, 0.10, 0.25) for n in (40, 70, 100)]
    found = inner_products(profiles, profiles)
    for i, one in enumerate(profiles):
        for j, other in enumerate(profiles):
            end = min(one.steps, other.steps)
            truth = quad(
                lambda t, a=one, b=other: density(a, t) * density(b, t), 0, end, epsabs=1e-14
            )
            assert found[i, j] == pytest.approx(truth[0], rel=1e-7)


def test_coefficients_are_the_least_squares_fit_of_the_curves():
    stored = [Profile(exponent_of(a), n) for a in LENGTHS for n in (25, 50, 75, 100)]
    wanted = Profile(exponent_of(0.15), 100)
    # Both sides of the fit on a fine grid of midpoints.
    tau = (np.arange(400_000) + 0.5) / 4000.0
    curves = np.stack([density(profile, tau) for profile in stored], axis=1)
    # They sum to 1: the last one is what the others leave.
    others, last = curves[:, :-1] - curves[:, -1:], curves[:, -1]
    truth, *_ = np.linalg.lstsq(others, density(wanted, tau) - last, rcond=None)
    found = coefficients(stored, wanted)
    np.testing.assert_allclose(found[:-1], truth, rtol=1e-3, atol=1e-4)
    assert found.sum() == pytest.approx(1.0, rel=1e-12)


class Path(nn.Module):
    """Parameters that go a way written down beforehand."""

    def __init__(self, steps, seed=0):
        super().__init__()
        generator = np.random.default_rng(seed)
        time = np.arange(1, steps + 1)[:, None] / steps
        drift = np.concatenate([np.sqrt(time), np.cos(5 * time), np.exp(-9 * time)], axis=1)
        self.way = drift + 0.3 * generator.standard_normal(drift.shape)
        self.weight = nn.Parameter(torch.full((3,), 7.0, dtype=torch.float64))

    def go(self, step):
        self.weight.data.copy_(torch.from_numpy(self.way[step - 1]))


def followed(path, steps, lengths, every):
    """The averages at every so many steps."""
    averages, stored = PowerAverages(path, lengths), {}
    for step in range(1, steps + 1):
        path.go(step)
        averages.update(path, step)
        if step % every == 0:
            for length, shadow in averages.shadows.items():
                stored[length, step] = shadow["weight"].numpy().copy()
    return stored


def test_an_average_is_its_profile_summed_over_the_way():
    path = Path(60)
    stored = followed(path, 60, (0.05, 0.10, 0.2), every=20)
    for (length, step), value in stored.items():
        power = exponent_of(length) + 1.0
        ends = (np.arange(step + 1) / step) ** power
        np.testing.assert_allclose(value, np.diff(ends) @ path.way[:step], rtol=1e-12)


@pytest.mark.parametrize("step", [400, 200])
@pytest.mark.parametrize("length", [0.05, 0.10])
def test_a_profile_that_was_followed_comes_back(length, step):
    stored = followed(Path(400), 400, LENGTHS, every=25)
    known = {key: value for key, value in stored.items() if key[1] <= step}
    profiles = [Profile(exponent_of(each), n) for each, n in known]
    weights = coefficients(profiles, Profile(exponent_of(length), step))
    np.testing.assert_allclose(
        weights @ np.stack(list(known.values())), known[length, step], rtol=1e-6
    )


@pytest.mark.parametrize(("length", "error"), [(0.03, 0.05), (0.07, 0.005), (0.15, 0.005)])
def test_lengths_that_were_not_followed_come_near(length, error):
    path = Path(400)
    stored = followed(path, 400, LENGTHS, every=25)
    truth = followed(path, 400, (length,), every=400)[length, 400]
    profiles = [Profile(exponent_of(each), n) for each, n in stored]
    weights = coefficients(profiles, Profile(exponent_of(length), 400))
    found = weights @ np.stack(list(stored.values()))
    assert np.abs(found - truth).max() < error
    # The nearest of those that were followed is farther away.
    nearest = min(np.abs(stored[each, 400] - truth).max() for each in LENGTHS)
    assert np.abs(found - truth).max() < 0.5 * nearest


@pytest.mark.parametrize("length", [0.001, 0.28])
def test_an_average_that_would_be_another_one_is_refused(length):
    """The nearest combination misses more than half of what the profile is."""
    stored = [Profile(exponent_of(each), n) for each in LENGTHS for n in (50, 100)]
    with pytest.raises(ValueError, match="cannot be made of the 4"):
        coefficients(stored, Profile(exponent_of(length), 100))
