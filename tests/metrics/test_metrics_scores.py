"""Inception score, kernel distance, precision and recall against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from softtrunc.metrics import inception_score, kernel_inception_distance, precision_recall
from softtrunc.metrics.kernel import squared_mmd


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_inception_score_of_sure_and_varied_answers_is_the_number_of_classes(classes):
    p = torch.eye(classes).repeat(10, 1)
    found = inception_score(p)
    assert found.mean == pytest.approx(classes, rel=1e-12)
    assert found.std == pytest.approx(0.0, abs=1e-12)


def test_inception_score_of_equal_answers_is_one():
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0]]).repeat(50, 1)
    assert inception_score(p).mean == pytest.approx(1.0, rel=1e-7)


def test_inception_score_of_half_sure_answers():
    # Two answers (1 - e, e) and (e, 1 - e): the marginal is even, KL = log 2 - H(e).
    e = 0.1
    p = torch.tensor([[1 - e, e], [e, 1 - e]], dtype=torch.float64).repeat(30, 1)
    entropy = -(e * math.log(e) + (1 - e) * math.log(1 - e))
    assert inception_score(p, splits=3).mean == pytest.approx(2.0 * math.exp(-entropy), rel=1e-12)


def test_inception_score_averages_before_the_exponential():
    # Two sure answers and two even ones: KL is log 2, log 2, 0 and 0.
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    assert inception_score(p, splits=1).mean == pytest.approx(math.sqrt(2.0), rel=1e-12)


def test_inception_score_takes_splits_in_order():
    # The first half knows one class, the second half two: scores 1 and 2.
    p = torch.eye(2)[torch.tensor([0] * 10 + [0, 1] * 5)]
    assert inception_score(p, splits=2) == pytest.approx((1.5, 0.5), rel=1e-12)


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="softmax"):
        inception_score(torch.randn(20, 5, generator=generator(0)))
    with pytest.raises(ValueError, match="softmax"):
        inception_score(torch.full((20, 5), 0.3))
    with pytest.raises(ValueError, match="softmax"):
        inception_score(torch.full((20, 5), float("nan")))
    with pytest.raises(ValueError, match="splits=10: need 1 to 9"):
        inception_score(torch.full((9, 2), 0.5))


def test_mmd_equals_its_definition():
    x = torch.randn(6, 3, generator=generator(0), dtype=torch.float64)
    y = torch.randn(5, 3, generator=generator(1), dtype=torch.float64) + 0.5

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    pairs_x = [k(x[i], x[j]) for i in range(6) for j in range(6) if i != j]
    pairs_y = [k(y[i], y[j]) for i in range(5) for j in range(5) if i != j]
    cross = [k(a, b) for a in x for b in y]
    exact = sum(pairs_x) / 30 + sum(pairs_y) / 20 - 2 * sum(cross) / 30
    assert float(squared_mmd(x, y)) == pytest.approx(exact, rel=1e-12)


def test_kernel_distance_of_gaussians_is_that_of_their_moments():
    """In one dimension the kernel is a sum over moments: MMD^2 = sum C(3, j) (m_j - n_j)^2."""
    mean, std = 0.7, 1.3
    ours = (1.0, 0.0, 1.0, 0.0)
    theirs = (1.0, mean, mean**2 + std**2, mean**3 + 3 * mean * std**2)
    exact = sum(
        math.comb(3, j) * (a - b) ** 2 for j, (a, b) in enumerate(zip(ours, theirs, strict=True))
    )
    n, repeats = 400, 200
    g = generator(0)
    values = torch.tensor(
        [
            float(
                squared_mmd(
                    torch.randn(n, 1, generator=g, dtype=torch.float64),
                    mean + std * torch.randn(n, 1, generator=g, dtype=torch.float64),
                )
            )
            for _ in range(repeats)
        ]
    )
    # Unbiased: within 4 standard errors (once in 16,000 by chance; the seed is fixed).
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(repeats)


def test_kernel_distance_of_one_law_is_zero_on_average_and_may_be_negative():
    g = generator(0)
    values = torch.tensor(
        [
            kernel_inception_distance(
                torch.randn(60, 8, generator=g),
                torch.randn(60, 8, generator=g),
                subsets=1,
                subset_size=60,
                generator=g,
            ).mean
            for _ in range(200)
        ]
    )
    assert (values < 0).any()
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(200)


def test_kernel_distance_averages_subsets():
    x = torch.randn(50, 4, generator=generator(0), dtype=torch.float64)
    y = torch.randn(40, 4, generator=generator(1), dtype=torch.float64)
    found = kernel_inception_distance(x, y, subsets=7, subset_size=20, generator=generator(2))
    g = generator(2)
    values = torch.stack(
        [
            squared_mmd(
                x[torch.randperm(50, generator=g)[:20]], y[torch.randperm(40, generator=g)[:20]]
            )
            for _ in range(7)
        ]
    )
    assert found == pytest.approx((float(values.mean()), float(values.std(correction=0))))
    with pytest.raises(ValueError, match="subset_size=1000: need 2 to 40"):
        kernel_inception_distance(x, y)
    with pytest.raises(ValueError, match="subsets=0"):
        kernel_inception_distance(x, y, subsets=0, subset_size=10)


def test_precision_and_recall_of_one_set_and_of_sets_apart():
    x = torch.randn(100, 5, generator=generator(0))
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100.0) == (0.0, 0.0)


def test_precision_sees_bad_samples_and_recall_missing_modes():
    left = torch.randn(200, 2, generator=generator(0))
    right = left + torch.tensor([50.0, 0.0])
    both = torch.cat([left, right])
    # Samples of one of two modes: all good, half missing.
    assert precision_recall(both, left) == (1.0, 0.5)
    # Samples of both where one is real: half good, none missing.
    assert precision_recall(left, both) == (0.5, 1.0)


def test_manifold_of_points_on_a_line():
    real = torch.arange(10.0)[:, None]
    # With k = 1 each ball has radius 1: the manifold is [-1, 10].
    samples = torch.tensor([-1.1, -0.9, 4.5, 9.9, 10.1])[:, None]
    assert precision_recall(real, samples, k=1).precision == pytest.approx(0.6)
    # With k = 2 the outer points reach 2 far.
    assert precision_recall(real, samples, k=2).precision == pytest.approx(1.0)
    with pytest.raises(ValueError, match="k=5 with 10 and 5 images"):
        precision_recall(real, samples, k=5)


def test_every_ball_has_its_own_radius():
    real = torch.tensor([0.0, 1.0, 2.0, 10.0, 20.0])[:, None]  # radii 1, 1, 1, 8, 10
    samples = torch.tensor([-2.0, -2.0, 28.0])[:, None]
    assert precision_recall(real, samples, k=1).precision == pytest.approx(1.0 / 3.0)
