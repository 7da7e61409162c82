"""Checkpoints that are damaged, foreign or no checkpoints, and configurations that do not fit."""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Outcome, Proof, at_length, part, seeded, times
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

sys.path.append(str(Path(__file__).parents[1] / "interop"))
from public_network import VE, checkpoint, configuration

SMALL: dict[str, Any] = {"model.nf": 8, "model.num_res_blocks": 1, "model.ch_mult": [1, 2]}


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    found: dict[str, Any] = checkpoint(configuration(SMALL))[0]
    return found


@pytest.fixture
def right(hostile: Proof, content) -> Callable[[Outcome], None]:
    """The weights of the run are those of the file."""
    Path("c.json").write_text(json.dumps(configuration(SMALL)))
    torch.save(content, "whole.pth")
    hostile.attempt("whole", *command("whole.pth"), right=lambda _: None, writes=[])
    # The first one is refused for nothing but that it is taken twice: its folder is the truth.
    hostile.short.clear()
    truth = {
        name: load_file(hostile.folder / "run/checkpoints/step-00001234" / name)
        for name in ("model.safetensors", "ema.safetensors")
    }
    (hostile.folder / "run").rename(hostile.folder / "truth")

    def same(_: Outcome) -> None:
        (folder,) = Path("run/checkpoints").iterdir()
        for name, tensors in truth.items():
            found = load_file(folder / name)
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[key], value) for key, value in tensors.items())

    return same


def command(path: str, config: str = "c.json") -> list[str]:
    return ["import", path, "--config", config, "--out", "run"]


def test_flipped_bits(hostile: Proof, right, content):
    draw = seeded(1)
    stream = io.BytesIO()
    torch.save(content, stream)
    plain = stream.getvalue()
    # Half of them anywhere, half where the structure is: the pickle and the directory at the end.
    for number in range(times(6)):
        at = (
            draw.randrange(len(plain))
            if number % 2
            else draw.choice([draw.randrange(2000), len(plain) - 1 - draw.randrange(8000)])
        )
        damaged = bytearray(plain)
        damaged[at] ^= 1 << draw.randrange(8)
        Path("c.pth").write_bytes(damaged)
        hostile.attempt(f"byte {at}", *command("c.pth"), right=right, writes=["run"])


def test_cut_padded_and_overwritten(hostile: Proof, right, content):
    draw = seeded(2)
    stream = io.BytesIO()
    torch.save(content, stream)
    plain = stream.getvalue()
    for number in range(times(3)):
        kind, at = number % 3, draw.randrange(1, len(plain))
        damaged = {
            0: plain[:at],
            1: plain[:at] + bytes(draw.randrange(1, 5000)) + plain[at:],
            2: plain[:at] + draw.randbytes(64) + plain[at + 64 :],
        }[kind]
        Path("c.pth").write_bytes(damaged)
        hostile.attempt(f"{kind} at {at}", *command("c.pth"), right=right, writes=["run"])


class Call:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts[0], self.parts[1:]


def test_files_that_are_no_checkpoints(hostile: Proof, right, content):
    deep: Any = {}
    for _ in range(200):
        deep = {"model": deep}
    kinds: dict[str, bytes] = {
        "empty": b"",
        "page": b"<!DOCTYPE html><html>quota exceeded</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "json": b'{"error": "not found"}',
        "text": b"hello\n" * 100,
        "noise": random.Random(3).randbytes(5000),
        "zeros": bytes(5000),
        "safetensors": save_tensors({"a": torch.zeros(3)}),
        "safetensors that promise": struct.pack("<Q", 1 << 60) + b"{}",
        "pickle of a list": pickle.dumps([1, 2]),
        "pickle with a call": pickle.dumps(Call(print, "ran")),
        "pickle that claims memory": b"\x80\x05\x96\0\0\0\0\0\0\0\x0f.",
        "pickle of a great long": b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(10),
        "half a zip": b"PK\x03\x04" + bytes(100),
    }
    for name, saved in {
        "list": [torch.zeros(2)],
        "number": 3,
        "no model": {"state": {}},
        "model of texts": {"model": {"a": "b"}},
        "a numpy scalar": content | {"step": np.float64(3)},
        "a call": content | {"step": Call(print, "ran")},
        "deep": deep,
        "negative step": content | {"step": -5, "ema": {"shadow_params": None}},
    }.items():
        stream = io.BytesIO()
        torch.save(saved, stream)
        kinds[f"saved {name}"] = stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes((300 if at_length() else 30) << 20))
    kinds["zip of zeros"] = stream.getvalue()
    for name, data in part(kinds.items(), 10):
        Path("c.pth").write_bytes(data)
        outcome = hostile.attempt(name, *command("c.pth"))
        assert "ran" not in outcome.out


def test_weights_that_do_not_fit(hostile: Proof, right, content):
    draw = seeded(4)
    keys = [key for key in content["model"] if not key.endswith("sigmas")]

    def alter(state: dict[str, Any], shadow: list[Any], number: int) -> str:
        key, place = draw.choice(keys), draw.randrange(len(shadow))
        value = state[key]
        changes: list[tuple[str, Callable[[], object]]] = [
            ("missing", lambda: state.pop(key)),
            ("NaN", lambda: state.update({key: torch.full_like(value, math.nan)})),
            ("infinite", lambda: shadow.__setitem__(place, shadow[place] * math.inf)),
            ("expanded", lambda: state.update({key: torch.zeros(()).expand(10**6, 10**6)})),
            ("sparse", lambda: state.update({key: torch.zeros(value.shape).to_sparse()})),
            ("whole numbers", lambda: state.update({key: torch.zeros(value.shape).long()})),
            ("complex", lambda: state.update({key: torch.zeros(value.shape).cfloat()})),
            ("a text", lambda: state.update({key: "x" * 10_000})),
            ("another name", lambda: state.update({"n" * 5000: state.pop(key)})),
            ("one average less", shadow.pop),
            ("averages in another order", shadow.reverse),
            ("meta", lambda: state.update({key: torch.zeros(value.shape, device="meta")})),
        ]
        name, change = changes[number % len(changes)]
        change()
        return f"{name} at {key}"

    for number in range(times(6)):
        state, shadow = dict(content["model"]), list(content["ema"]["shadow_params"])
        what = alter(state, shadow, number)
        torch.save(content | {"model": state, "ema": {"shadow_params": shadow}}, "c.pth")
        hostile.attempt(what, *command("c.pth"))


def test_the_same_weights_in_other_wrappings(hostile: Proof, right, content):
    draw = seeded(5)
    plain = {key.removeprefix("module."): value for key, value in content["model"].items()}
    trained = [key for key in plain if key != "sigmas" and not key.endswith(".0.W")]
    shadow = content["ema"]["shadow_params"]
    forms = [
        {"shadow_params": shadow},
        list(shadow),
        tuple(shadow),
        dict(zip(trained, shadow, strict=True)),
        {f"_orig_mod.{k}": v for k, v in zip(trained, shadow, strict=True)},
    ]
    for number in range(times(3)):
        prefix = "".join(draw.choices(["module.", "_orig_mod."], k=draw.randrange(4)))
        model = {prefix + key: value for key, value in plain.items()}
        average = forms[number % len(forms)]
        torch.save(content | {"model": model, "ema": average}, "c.pth")
        what = f"{prefix or 'nothing'}, {type(average).__name__}"
        hostile.attempt(what, *command("c.pth"), right=right, writes=["run"])


def test_configurations(hostile: Proof, right):
    draw = seeded(6)
    odd = [
        None, True, -1, 0, 3, 8000, 10**9, 10**400, 1e308, math.inf, math.nan, "", "x" * 3000, [],
        [[]], {}, [1, 2] * 500, "ddpm", "ncsnpp", [8], -0.5, "vpsde", "subvpsde", "vesde",
    ]  # fmt: skip
    places = [
        (section, key) for section in ("data", "model", "training") for key in VE_KEYS[section]
    ]
    for _ in range(times(6)):
        config = configuration(SMALL)
        section, key = draw.choice(places)
        if draw.random() < 0.15:
            config[section].pop(key, None)
        else:
            config[section][key] = draw.choice(odd)
        Path("odd.json").write_text(json.dumps(config))
        what = f"{section}.{key} = {str(config[section].get(key))[:30]}"
        # A change of what decides no weight is taken.
        hostile.attempt(
            what, *command("whole.pth", "odd.json"), right=lambda _: None, writes=["run"]
        )
    texts = {
        "empty": "",
        "list": "[]",
        "deep": "[" * 100_000,
        "digits": '{"data": ' + "1" * 6000 + "}",
        "not utf-8": "\udcff",
        "no sections": "{}",
        "sections that are none": '{"data": 1, "model": [], "training": null}',
        "another family": '{"model": {"name": "ddpm"}, "data": {}, "training": {}}',
    }
    for name, text in part(texts.items(), 4):
        Path("odd.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        hostile.attempt(name, *command("whole.pth", "odd.json"))


VE_KEYS = {section: list(values) for section, values in configuration(VE).items()}
