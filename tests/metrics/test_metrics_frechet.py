"""Frechet distance against scipy and closed forms; statistics gathered, merged, stored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch

from softtrunc.metrics import FeatureStatistics, Provenance, frechet_distance


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(seed: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean and a well-conditioned covariance with eigenvalues over two decades."""
    g = generator(seed)
    q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    values = torch.logspace(-1, 1, d, dtype=torch.float64)
    return torch.randn(d, generator=g, dtype=torch.float64), q @ torch.diag(values) @ q.T


@pytest.mark.parametrize("d", [1, 2, 7, 64, 200])
def test_distance_equals_scipys_square_root(d):
    (m_a, a), (m_b, b) = gaussian(0, d), gaussian(1, d)
    root = scipy.linalg.sqrtm((a @ b).numpy())
    direct = float((m_a - m_b).square().sum() + a.trace() + b.trace() - 2 * np.trace(root).real)
    assert frechet_distance(m_a, a, m_b, b) == pytest.approx(direct, rel=1e-8)


def test_distance_of_commuting_covariances():
    q = torch.linalg.qr(torch.randn(30, 30, generator=generator(0), dtype=torch.float64)).Q
    a, b = (torch.rand(30, generator=generator(i), dtype=torch.float64) for i in (1, 2))
    a[:12] = 0.0  # singular, where scipy's square root loses half of its digits
    b[8:20] = 0.0
    mean = torch.zeros(30, dtype=torch.float64)
    found = frechet_distance(mean, q @ torch.diag(a) @ q.T, mean + 0.1, q @ torch.diag(b) @ q.T)
    exact = float((a.sqrt() - b.sqrt()).square().sum()) + 30 * 0.01
    assert found == pytest.approx(exact, rel=1e-7)


def test_distance_of_fewer_samples_than_features():
    """Two sets of 5 points in 40 dimensions: the optimal map is that of the 4-d hulls."""
    x = torch.randn(5, 40, generator=generator(0), dtype=torch.float64)
    statistics = FeatureStatistics(40)
    statistics.update(x)
    shifted = FeatureStatistics(40)
    shifted.update(x + 2.0)
    assert statistics.distance(shifted) == pytest.approx(40 * 4.0, rel=1e-12)
    assert statistics.distance(statistics) == pytest.approx(0.0, abs=1e-10)
    scaled = FeatureStatistics(40)
    scaled.update(x * 3.0)
    mean = x.mean(0)
    exact = float((2.0 * mean).square().sum() + 4.0 * statistics.covariance.trace())
    assert statistics.distance(scaled) == pytest.approx(exact, rel=1e-9)


def test_distance_is_symmetric_and_invariant_under_rotation():
    (m_a, a), (m_b, b) = gaussian(0, 20), gaussian(1, 20)
    d = frechet_distance(m_a, a, m_b, b)
    assert frechet_distance(m_b, b, m_a, a) == pytest.approx(d, rel=1e-12)
    q = torch.linalg.qr(torch.randn(20, 20, generator=generator(5), dtype=torch.float64)).Q
    turned = frechet_distance(q @ m_a, q @ a @ q.T, q @ m_b, q @ b @ q.T)
    assert turned == pytest.approx(d, rel=1e-12)


def test_arguments_that_make_no_sense_are_refused():
    mean, a = gaussian(0, 4)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, a * float("nan"), mean, a)


@pytest.mark.usefixtures("unchecked")
def test_features_of_two_extractors_are_refused():
    (m_a, a), (m_b, b) = gaussian(0, 4), gaussian(1, 5)
    with pytest.raises(ValueError, match=r"means \(4,\) and \(5,\)"):
        frechet_distance(m_a, a, m_b, b)


def features(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    # Large against their spread, as features may be.
    return 1e4 + torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def test_statistics_are_those_of_numpy():
    x = features(500)
    statistics = FeatureStatistics(6)
    for part in x.split(64):
        statistics.update(part)
    assert statistics.count == 500
    assert np.allclose(statistics.mean, x.numpy().mean(0), rtol=1e-14)
    exact = np.cov((x - 1e4).numpy().T)
    assert np.allclose(statistics.covariance, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cuts", [[500], [1, 499], [250, 250], [7, 0, 93, 400]])
def test_merged_statistics_equal_one_pass(cuts):
    x = features(500)
    whole = FeatureStatistics(6)
    whole.update(x)
    merged = FeatureStatistics(6)
    for part in x.split(cuts):
        one = FeatureStatistics(6)
        one.update(part)
        merged.merge(one)
    assert merged.count == whole.count
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(merged.covariance, whole.covariance, rtol=1e-10, atol=1e-10)


PROVENANCE = Provenance("f" * 64, "train", "digits-mlp", "a" * 64, "none")


def gathered(provenance: Provenance | None = PROVENANCE, n: int = 20) -> FeatureStatistics:
    statistics = FeatureStatistics(6, provenance)
    statistics.update(features(n))
    return statistics


def test_statistics_come_back_from_disk_to_the_last_bit(tmp_path):
    saved = gathered()
    saved.save(tmp_path / "a.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "a.safetensors", expected=PROVENANCE)
    assert (loaded.count, loaded.provenance) == (20, PROVENANCE)
    assert torch.equal(loaded.mean, saved.mean)
    assert torch.equal(loaded.covariance, saved.covariance)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Provenance)])
def test_statistics_of_different_things_never_mix(tmp_path, field):
    other = dataclasses.replace(PROVENANCE, **{field: "other"})
    with pytest.raises(ValueError, match=f"not mixed: {field} '.*' against 'other'"):
        gathered().merge(gathered(other))
    gathered().save(tmp_path / "a")
    with pytest.raises(ValueError, match=f"not mixed: {field}"):
        FeatureStatistics.load(tmp_path / "a", expected=other)
    if field in ("data", "split"):
        # What a distance is for.
        assert gathered().distance(gathered(other)) == pytest.approx(0.0, abs=1e-8)
    else:
        with pytest.raises(ValueError, match=f"not mixed: {field}"):
            gathered().distance(gathered(other))


def test_broken_statistics_are_refused(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(FileNotFoundError, match="no such file"):
        FeatureStatistics.load(path)
    with pytest.raises(ValueError, match="provenance"):
        gathered(None).save(path)
    with pytest.raises(ValueError, match="with and without"):
        gathered().merge(gathered(None))
    gathered().save(path)
    content = path.read_bytes()
    for broken in (
        b"",
        content[:-1],
        content[:50],
        content.replace(b"statistics 1", b"statistics 2"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="no feature statistics that can be read"):
            FeatureStatistics.load(path)


def test_features_that_do_not_fit_are_refused():
    statistics = gathered()
    with pytest.raises(ValueError, match="features of 5 numbers given to statistics of 6"):
        statistics.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="not finite"):
        statistics.update(torch.full((2, 6), float("inf")))
    with pytest.raises(ValueError, match="6 and of 5"):
        statistics.merge(FeatureStatistics(5))
    with pytest.raises(ValueError, match="covariance of 1 images"):
        _ = gathered(n=1).covariance
