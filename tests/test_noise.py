"""One class for the noise of samplers and densities, whose draws stay what they were."""

import pytest
import torch

from softtrunc.noise import Noise

LIKE = torch.zeros(3, 2, 4, dtype=torch.float64)


def test_a_seed_gives_unrelated_numbers_for_every_purpose():
    draws = [Noise(3, [4, 5, 6], None, purpose=p).like(LIKE) for p in (None, "nelbo", "flow")]
    assert all((draws[i] - draws[j]).abs().max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    plain = torch.randn(2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.equal(draws[0][1], plain)


def test_draws_of_a_purpose_stay_what_they_were():
    noise = Noise(1, [5], None, purpose="dequantisation")
    found = noise.uniform(torch.zeros(1, 3), torch.float64)
    want = torch.tensor([[0.8780003174817, 0.0202589986094, 0.3015971947040]], dtype=torch.float64)
    torch.testing.assert_close(found, want, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("kind", ["like", "uniform", "signs"])
def test_what_is_drawn_is_each_examples_own(kind):
    def draw(seeds):
        noise, like = Noise(len(seeds), seeds, None, purpose="test"), LIKE[: len(seeds)]
        if kind == "signs":
            return noise.signs(like, 2).transpose(0, 1)
        return noise.like(like) if kind == "like" else noise.uniform(like, like.dtype)

    whole = draw([7, 8, 9])
    assert torch.equal(draw(torch.tensor([9, 7])), whole[[2, 0]])


def test_without_seeds_one_generator_serves_the_batch_or_draws_the_seeds():
    def generator():
        return torch.Generator().manual_seed(1)

    z = torch.randn(LIKE.shape, generator=generator(), dtype=LIKE.dtype)
    assert torch.equal(Noise(3, None, generator()).like(LIKE), z)
    signs = Noise(3, None, generator()).signs(LIKE, 2)
    assert signs.shape == (2, *LIKE.shape)
    assert signs.abs().eq(1.0).all()
    seeds = torch.randint(2**62, (3,), generator=generator())
    own = [Noise(3, s, g, purpose="x").like(LIKE) for s, g in ((None, generator()), (seeds, None))]
    assert torch.equal(*own)
