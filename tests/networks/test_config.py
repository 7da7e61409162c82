"""Configurations and presets: exact sizes, round trips and refusals."""

import dataclasses
import json
import re

import pytest
import yaml

from softtrunc.networks import (
    PRESETS,
    ScoreUNetConfig,
    estimate_activation_bytes,
    flops_per_image,
    parameter_count,
    preset,
)

PUBLISHED = [
    ("ddpmpp", 32, 61_804_419),
    ("uddpmpp", 32, 61_804_419),
    ("ddpmpp-deep", 32, 106_632_579),
    ("ddpmpp-512", 32, 373_929_475),
    ("ncsnpp", 32, 62_758_915),
    ("uncsnpp", 32, 62_758_915),
    ("ncsnpp-deep", 32, 107_587_075),
    ("ncsnpp-256", 256, 65_574_549),
    ("ncsnpp", 48, 61_440_515),
]


@pytest.mark.parametrize(("name", "size", "count"), PUBLISHED)
def test_parameter_counts_of_the_paper(name, size, count) -> None:
    assert parameter_count(preset(name, image_size=size)) == count


def test_small_presets_are_small() -> None:
    assert 150_000 <= parameter_count(preset("tiny", image_size=8, channels=1)) <= 350_000
    assert 5e6 <= parameter_count(preset("small", image_size=32)) <= 8e6
    assert 5e6 <= parameter_count(preset("small", image_size=28, channels=1)) <= 8e6


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json_and_yaml(name) -> None:
    config = preset(name, image_size=(64, 128), dropout=0.25)
    assert ScoreUNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ScoreUNetConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert hash(config) == hash(ScoreUNetConfig.from_dict(config.to_dict()))


def test_overrides_replace_fields() -> None:
    config = preset("ddpmpp", image_size=32)
    assert preset("ddpmpp", image_size=32, dropout=0.0) == dataclasses.replace(config, dropout=0.0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: preset("ddpmp", image_size=32), "'ddpmp'; did you mean 'ddpmpp'"),
        (lambda: preset("ddpmpp", image_size=32, droput=0), "'droput'; did you mean 'dropout'"),
        (
            lambda: ScoreUNetConfig.from_dict({"image_size": 8, "attention_resolution": [4]}),
            "did you mean 'attention_resolutions'",
        ),
        (lambda: ScoreUNetConfig.from_dict({"channels": 1}), "'image_size' is missing"),
        (lambda: preset("ddpmpp", image_size=30), "height 30.*multiple of 8.*24 or 32"),
        (lambda: preset("ncsnpp-256", image_size=(256, 100)), "width 100.*multiple of 64"),
        (lambda: preset("ddpmpp", image_size=4), "height 4.*3 times.*nearest: 8"),
        (lambda: preset("ddpmpp", image_size=32.0), "image_size = 32.0 must be"),
        (lambda: preset("ddpmpp", image_size=(32, 32, 3)), "image_size.*must be"),
        (lambda: preset("ddpmpp", image_size=32, dropout=1.0), r"dropout = 1.0 .*\[0, 1\)"),
        (lambda: preset("ddpmpp", image_size=32, fir=1), "fir = 1 must be true or false"),
        (lambda: preset("ddpmpp", image_size=32, base_channels="128"), "whole number"),
        (lambda: preset("ddpmpp", image_size=32, base_channels=True), "whole number"),
        (lambda: preset("ddpmpp", image_size=32, base_channels=33), "must be even"),
        (lambda: preset("ddpmpp", image_size=32, embedding_size=3), "even whole number"),
        (lambda: preset("ddpmpp", image_size=32, embedding="sinus"), "positional, fourier"),
        (lambda: preset("ddpmpp", image_size=32, fir_kernel=(1, 2, 1)), "even number of taps"),
        (lambda: preset("ddpmpp", image_size=32, fir_kernel=(1, -1, 1, -1)), "sum is not 0"),
        (lambda: preset("ddpmpp", image_size=32, channel_multipliers=()), "at least one level"),
        (lambda: preset("ddpmpp", image_size=32, attention_resolutions=16), "whole numbers"),
        (lambda: preset("ddpmpp", image_size=32, init_scale=-1), ">= 0"),
        (lambda: preset("ddpmpp", image_size=32, fourier_scale=0), "> 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_refused_in_one_line(build, words) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert re.search(words, str(caught.value))
    assert "\n" not in str(caught.value)


def test_flops_of_one_convolution_chain_by_hand() -> None:
    """One level, one block, no noise label: every product counted by hand."""
    config = ScoreUNetConfig(
        image_size=(4, 8),
        channels=1,
        base_channels=8,
        channel_multipliers=(1,),
        blocks_per_level=1,
        attention_resolutions=(),
        conditional=False,
    )
    pixels, c = 32, 8
    wide = 9 * 2 * c * c + 9 * c * c + 2 * c * c  # joins 2c channels, with a 1x1 shortcut
    products = 9 * c + 3 * 18 * c * c + 2 * wide + 9 * c  # in, 3 blocks, 2 joins, out
    attention = 4 * c * c + 2 * pixels * c
    assert flops_per_image(config) == 2 * pixels * (products + attention)


def test_paper_network_needs_65_gflop_per_training_image() -> None:
    assert 3 * flops_per_image(preset("ddpmpp", image_size=32)) == pytest.approx(65e9, rel=0.01)


def test_activation_estimate_scales_and_checkpointing_lowers_it() -> None:
    config = preset("tiny", image_size=8, channels=1)
    one, two, four = (estimate_activation_bytes(config, n) for n in (16, 32, 64))
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    assert estimate_activation_bytes(config, 16, 2) * 2 == one
    greedy = preset("small", image_size=32)
    frugal = dataclasses.replace(greedy, checkpoint_activations=True)
    assert estimate_activation_bytes(frugal, 8) < 0.5 * estimate_activation_bytes(greedy, 8)
