import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from training_small import small_data, small_objective, small_state, weights

from softtrunc.training import (
    Monitor,
    NonFiniteLossError,
    Stopwatch,
    TrainingConfig,
    fit,
    load_checkpoint,
    micro_batches,
    save_checkpoint,
)
from softtrunc.training.batches import BatchSource
from softtrunc.training.randomness import DataOrder, Stream, step_seed

CONFIG = TrainingConfig(batch_size=12, warmup_steps=5, learning_rate=1e-3, seed=3)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def run(accelerator, config, steps, state=None, objective=None):
    state = state or small_state(config)
    objective = objective or small_objective()
    records = list(
        fit(state, objective, small_data(), config, steps=steps, accelerator=accelerator)
    )
    return state, records


def test_training_lowers_the_loss(accelerator):
    config = dataclasses.replace(CONFIG, batch_size=64, learning_rate=1e-2)
    _, records = run(accelerator, config, 120)
    error = [float(r.error.mean()) for r in records]
    assert np.mean(error[-20:]) < 0.7 * np.mean(error[:5])


def test_adam_runs_in_one_kernel(accelerator):
    state, _ = run(accelerator, CONFIG, 1)
    assert [group["fused"] for group in state.optimizer.param_groups] == [True]


def test_resume_repeats_an_uninterrupted_run_bit_for_bit(accelerator, tmp_path):
    straight, _ = run(accelerator, CONFIG, 30)
    first, _ = run(accelerator, CONFIG, 12)
    path = save_checkpoint(tmp_path, first)
    second = small_state(CONFIG, seed=99)  # another random start, to be overwritten
    load_checkpoint(path, second)
    assert second.step == 12
    run(accelerator, CONFIG, 30, second)
    expected, got = weights(straight), weights(second)
    assert expected.keys() == got.keys()
    assert [n for n in expected if not torch.equal(expected[n], got[n])] == []


def test_another_seed_is_another_run(accelerator):
    one, _ = run(accelerator, CONFIG, 3)
    other, _ = run(accelerator, dataclasses.replace(CONFIG, seed=4), 3, small_state(CONFIG))
    assert not torch.equal(one.model.network.first.weight, other.model.network.first.weight)


@pytest.mark.parametrize("micro", [1, 3, 6])
def test_micro_batches_change_nothing_but_rounding(accelerator, micro):
    whole, records = run(accelerator, CONFIG, 6)
    cut = dataclasses.replace(CONFIG, micro_batch_size=micro)
    parts, part_records = run(accelerator, cut, 6)
    for a, b in zip(records, part_records, strict=True):
        assert a.tau == b.tau
        assert torch.equal(a.t, b.t)
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.grad_norm, b.grad_norm, rtol=1e-4, atol=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-3, atol=1e-5)


def test_one_tau_bounds_all_times_of_a_step_and_changes_between_steps(accelerator):
    config = dataclasses.replace(CONFIG, micro_batch_size=3)
    _, records = run(accelerator, config, 20)
    for record in records:
        assert record.t.dtype == torch.float64
        assert float(record.t.min()) >= record.tau
        assert float(record.t.max()) <= 1.0
    assert len({record.tau for record in records}) == 20


def test_learning_rate_warms_up_linearly(accelerator):
    _, records = run(accelerator, CONFIG, 7)
    rates = [record.learning_rate for record in records]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rates_are_those_of_torchs_schedulers(schedule, warmup):
    rate, final, steps = 3e-3, 1e-4, 15
    config = TrainingConfig(
        learning_rate=rate,
        warmup_steps=warmup,
        schedule=schedule,
        final_learning_rate=final,
        steps=steps,
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    if schedule == "cosine":
        after = CosineAnnealingLR(optimizer, steps - warmup, eta_min=final)
    else:
        after = LinearLR(optimizer, 1.0, final / rate, total_iters=steps - warmup)
    if warmup > 1:
        before = LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
        schedulers = SequentialLR(optimizer, [before, after], milestones=[warmup])
    else:
        schedulers = after
    truth = []
    for _ in range(steps + 1 - (warmup == 1)):
        truth.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedulers.step()
    # A warm-up of one step has the full rate already: torch's schedule follows it.
    first = int(warmup == 1)
    assert [config.learning_rate_at(step) for step in range(first, steps + 1)] == pytest.approx(
        truth, rel=1e-12
    )
    assert truth[-1] == pytest.approx(final)
    assert config.learning_rate_at(10 * steps) == final


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule": "exponential"}, "write one of constant, cosine, linear"),
        ({"schedule": "cosine", "steps": 10, "warmup_steps": 10}, "more steps than the warm-up"),
        ({"schedule": "linear", "warmup_steps": 0}, "steps=None"),
        ({"final_learning_rate": 1e-5}, "a constant learning rate has none"),
        ({"schedule": "linear", "steps": 9, "final_learning_rate": -1.0}, "need a number >= 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_schedules_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        TrainingConfig(**values)


def test_gradient_is_clipped_and_reported_before_clipping(accelerator):
    tight = dataclasses.replace(CONFIG, grad_clip=1e-3)
    state, records = run(accelerator, tight, 1)
    norm = sum(p.grad.square().sum() for p in state.model.parameters() if p.grad is not None).sqrt()
    assert float(records[0].grad_norm) > 1e-2
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.fixture
def bf16_accelerator():
    # accelerate keeps one global state a process; a test must leave none behind
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)


def test_bf16_autocast_keeps_times_and_losses_wide(accelerator, bf16_accelerator):
    _, plain = run(accelerator, CONFIG, 1)
    _, records = run(bf16_accelerator, CONFIG, 1)
    assert records[0].t.dtype == torch.float64
    assert records[0].loss.dtype == torch.float32
    assert torch.equal(records[0].t, plain[0].t)
    torch.testing.assert_close(records[0].loss, plain[0].loss, rtol=0.05, atol=0.05)
    assert not torch.equal(records[0].loss, plain[0].loss)


def test_flips_mirror_about_half_of_the_images():
    data = small_data(400)
    config = TrainingConfig(batch_size=400, flip=True, dequantize=False, warmup_steps=0)
    seen = []

    class Spy:
        def draw(self, n, *, tau=None, generator=None):
            return small_objective().draw(n, tau=tau, generator=generator)

        def __call__(self, model, x, *, tau=None, draw=None, noise=None, generator=None):
            seen.append(x.clone())
            return small_objective()(model, x, draw=draw, noise=noise)

    list(fit(small_state(config), Spy(), data, config, steps=1, accelerator=Accelerator(cpu=True)))
    order = DataOrder(400, seed=config.seed).batch(0, 400)
    plain = data.batch(order).float() / 16 * 2 - 1
    same = (seen[0] == plain).flatten(1).all(1)
    mirrored = (seen[0] == plain.flip(-1)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    # 400 fair coins: outside 200 +- 60 with probability below 1e-8.
    assert 140 < int(mirrored.sum()) < 260


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "words"),
    [
        (10, None, 3, "batch_size=10 does not divide over 3 processes"),
        (12, 5, 1, "micro_batch_size=5 does not divide the 12 examples"),
    ],
)
def test_uneven_batches_are_refused(batch, micro, processes, words):
    config = TrainingConfig(batch_size=batch, micro_batch_size=micro)
    with pytest.raises(ValueError, match=words):
        micro_batches(config, processes)


def test_data_order_visits_everything_once_an_epoch_and_depends_on_the_step_alone():
    order = DataOrder(10, seed=0)
    steps = [order.batch(i, 4) for i in range(10)]  # 40 positions: four epochs
    flat = torch.cat(steps)
    for epoch in flat.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(flat[:10], flat[10:20])
    fresh = DataOrder(10, seed=0)
    assert torch.equal(fresh.batch(7, 4), steps[7])
    assert torch.equal(fresh.batch(2, 4), steps[2])


def test_step_seeds_do_not_collide():
    seeds = {step_seed(s, n, stream) for s in range(5) for n in range(50) for stream in Stream}
    assert len(seeds) == 5 * 50 * len(Stream)


def test_large_data_are_read_ahead_with_the_same_result(monkeypatch):
    data, order = small_data(30), DataOrder(30, seed=1)
    options = {"batch_size": 8, "share": slice(2, 7), "device": torch.device("cpu")}
    with BatchSource(data.images, order, **options) as source:
        expected = [source.batch(step) for step in (0, 1, 2, 5)]
    monkeypatch.setattr("softtrunc.training.batches.RESIDENT_BYTES", 0)
    with BatchSource(data.images, order, **options) as source:
        got = [source.batch(step) for step in (0, 1, 2, 5)]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_monitor_reports_means_and_bins(accelerator):
    _, records = run(accelerator, CONFIG, 5)
    clock = Stopwatch(100.0)
    monitor = Monitor(accelerator, dimensions=36, summed=False, clock=clock)
    for record in records:
        monitor.add(record)
    row = monitor.row()
    losses = torch.cat([r.loss for r in records])
    assert row.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert list(row.taus) == [r.tau for r in records]
    assert row.grad_norms == pytest.approx([float(r.grad_norm) for r in records], rel=1e-4)
    assert row.seconds >= 100.0
    bins = row.by_log10_t
    assert sum(bins.count) == losses.numel()
    total = sum(n * v for n, v in zip(bins.count, bins.loss, strict=True) if n)
    assert total == pytest.approx(float(losses.sum()), rel=1e-5)
    t = torch.cat([r.t for r in records]).log10()
    for i, n in enumerate(bins.count):
        assert n == int(((t >= bins.edges[i]) & (t < bins.edges[i + 1])).sum())
    assert monitor.row() is None


def test_sums_over_dimensions_are_reported_per_dimension(accelerator):
    _, records = run(accelerator, CONFIG, 1)
    rows = []
    for summed, factor in ((False, 1.0), (True, 36.0)):
        scaled = dataclasses.replace(records[0], error=records[0].error * factor)
        monitor = Monitor(accelerator, dimensions=36, summed=summed, clock=Stopwatch())
        monitor.add(scaled)
        rows.append(monitor.row().by_log10_t.error)
    assert [e for e in rows[0] if e] == pytest.approx([e for e in rows[1] if e])


def test_a_loss_that_is_not_finite_is_named_with_step_tau_and_times(accelerator):
    state = small_state(CONFIG)
    records = []
    objective, data = small_objective(), small_data()
    for record in fit(state, objective, data, CONFIG, steps=5, accelerator=accelerator):
        records.append(record)
        if record.step == 3:
            with torch.no_grad():
                state.model.network.last.bias.fill_(float("nan"))
    monitor = Monitor(accelerator, dimensions=36, summed=False, clock=Stopwatch())
    for record in records:
        monitor.add(record)
    bad = records[3]
    with pytest.raises(NonFiniteLossError) as raised:
        monitor.row()
    message = str(raised.value)
    assert "step 4:" in message
    assert f"tau = {bad.tau:.3g}" in message
    assert f"{float(bad.t.min()):.3g} to {float(bad.t.max()):.3g}" in message


def test_stopwatch_leaves_pauses_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("softtrunc.training.monitor.time.perf_counter", lambda: now[0])
    clock = Stopwatch(5.0)
    now[0] = 2.0
    clock.pause()
    now[0] = 50.0
    clock.resume()
    now[0] = 51.0
    assert clock.seconds == 5.0 + 2.0 + 1.0
