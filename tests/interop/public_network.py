"""The public networks once more, as one function over a flat state: the truth for imports.

Written from the description of the format, without our network: it walks the public module list,
makes each weight as it is needed (and so fixes names, shapes and order), and computes the output
in float64.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

CONFIG = {
    "data": {"image_size": 16, "num_channels": 3, "centered": True, "dataset": "CIFAR10"},
    "model": {
        "name": "ncsnpp",
        "nf": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "resamp_with_conv": True,
        "conditional": True,
        "fir": False,
        "fir_kernel": [1, 3, 3, 1],
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "none",
        "progressive_combine": "sum",
        "embedding_type": "positional",
        "fourier_scale": 16,
        "init_scale": 0.0,
        "nonlinearity": "swish",
        "dropout": 0.1,
        "scale_by_sigma": False,
        "num_scales": 1000,
        "beta_min": 0.1,
        "beta_max": 20,
        "sigma_min": 0.01,
        "sigma_max": 50,
        "ema_rate": 0.9999,
        "normalization": "GroupNorm",
        "attention_type": "ddpm",
        "conv_size": 3,
    },
    "training": {"sde": "vpsde", "continuous": True, "batch_size": 128},
}

VE = {
    "data.centered": False,
    "training.sde": "vesde",
    "model.embedding_type": "fourier",
    "model.scale_by_sigma": True,
    "model.fir": True,
    "model.progressive_input": "residual",
}

VARIANTS = {
    "ddpmpp": {},
    "512": {
        "model.lsgm": True,
        "model.embedding_dim": 12,
        "model.fir": True,
        "model.nf": 16,
        "model.ch_mult": [1, 1, 1],
        "model.num_res_blocks": 2,
        "model.attn_resolutions": [16],
    },
    "unbounded": {"training.unbounded_parametrization": True},
    "subvp": {"training.sde": "subvpsde", "model.ch_mult": [1, 3], "model.nonlinearity": "elu"},
    "ncsnpp": VE,
    "ncsnpp-256": VE
    | {
        "model.progressive_input": "input_skip",
        "model.progressive": "output_skip",
        "model.ch_mult": [1, 1, 2, 2],
        "model.num_res_blocks": 2,
        "data.image_size": 32,
    },
    "no fir": VE | {"model.fir": False, "model.skip_rescale": False},
    "cat": {
        "model.progressive_input": "input_skip",
        "model.progressive_combine": "cat",
        "model.nonlinearity": "lrelu",
    },
    "no fir output": {"model.progressive": "output_skip", "model.ch_mult": [1, 2, 2]},
    "ddpm": {"model.resblock_type": "ddpm", "model.nonlinearity": "relu"},
    "ddpm plain": {"model.resblock_type": "ddpm", "model.resamp_with_conv": False},
    "no attention": {"model.attention": False, "data.num_channels": 1},
    "unconditional": VE | {"model.conditional": False},
    "48": VE | {"data.image_size": 48, "model.attn_resolutions": [16], "model.ch_mult": [1, 2, 2]},
}


def configuration(changes: dict[str, object]) -> dict[str, dict[str, object]]:
    """The base configuration with `section.key` values changed."""
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        section, key = name.split(".")
        config[section][key] = value
    return config


ACTIVATIONS = {
    "swish": lambda x: x * torch.sigmoid(x),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "relu": lambda x: x.clamp(min=0),
    "lrelu": lambda x: torch.where(x > 0, x, 0.2 * x),
}


@dataclass
class Public:
    """One network; `state` fills while it runs for the first time."""

    config: dict[str, dict[str, object]]
    seed: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.act = ACTIVATIONS[self.config["model"]["nonlinearity"]]
        taps = torch.tensor(self.config["model"]["fir_kernel"], dtype=torch.float64)
        self.kernel = torch.outer(taps, taps) / taps.sum() ** 2

    def weight(self, name: str, *shape: int) -> Tensor:
        key = f"all_modules.{self.index}.{name}"
        if key not in self.state:
            drawn = torch.randn(shape, generator=self.generator)
            if len(shape) > 1:
                drawn = drawn / math.sqrt(math.prod(shape) / shape[0])
            elif "GroupNorm" in name and name.endswith("weight"):
                drawn = 1 + 0.3 * drawn
            self.state[key] = drawn
        assert self.state[key].shape == shape
        return self.state[key].double()

    def next(self) -> None:
        self.index += 1

    # Layers; `name` is the prefix inside a block, or "" for a module of its own.
    def conv(self, name, x, out, size, *, stride=1, padding=0):
        weight = self.weight(f"{name}weight", out, x.shape[1], size, size)
        return functional.conv2d(x, weight, self.weight(f"{name}bias", out), stride, padding)

    def norm(self, name, x):
        c = x.shape[1]
        grouped = x.reshape(len(x), min(c // 4, 32), -1)
        variance, mean = torch.var_mean(grouped, dim=2, keepdim=True, correction=0)
        x = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
        scale, shift = self.weight(f"{name}weight", c), self.weight(f"{name}bias", c)
        return x * scale[:, None, None] + shift[:, None, None]

    def linear(self, name, x, out):
        return x @ self.weight(f"{name}weight", out, x.shape[1]).T + self.weight(f"{name}bias", out)

    def nin(self, name, x, out):
        w, b = self.weight(f"{name}W", x.shape[1], out), self.weight(f"{name}b", out)
        return torch.einsum("bchw,cd->bdhw", x, w) + b[:, None, None]

    def combine(self, x, h):
        return (x + h) / math.sqrt(2) if self.config["model"]["skip_rescale"] else x + h

    # Resampling without weights.
    def filtered(self, x, before, after):
        x = functional.pad(x, (before, after, before, after))
        kernel = self.kernel.flip(0, 1).expand(x.shape[1], 1, -1, -1)
        return functional.conv2d(x, kernel, groups=x.shape[1])

    def down(self, x):
        if self.config["model"]["fir"]:
            return self.filtered(x, 1, 1)[:, :, ::2, ::2]
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))

    def up(self, x):
        if self.config["model"]["fir"]:
            b, c, h, w = x.shape
            spread = x.new_zeros(b, c, 2 * h, 2 * w)
            spread[:, :, ::2, ::2] = 4 * x
            return self.filtered(spread, 2, 1)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def conv_down(self, x, out):
        if self.config["model"]["fir"]:
            return self.conv("Conv2d_0.", self.filtered(x, 2, 2), out, 3, stride=2)
        return self.conv("Conv_0.", functional.pad(x, (0, 1, 0, 1)), out, 3, stride=2)

    # Blocks.
    def residual(self, x, temb, out, resample=None):
        biggan = self.config["model"]["resblock_type"] == "biggan"
        changes = resample is not None or out != x.shape[1]
        h = self.act(self.norm("GroupNorm_0.", x))
        if resample is not None:
            h, x = resample(h), resample(x)
        h = self.conv("Conv_0.", h, out, 3, padding=1)
        told = self.linear("Dense_0.", self.act(temb), out)
        if self.config["model"]["conditional"]:
            h = h + told[:, :, None, None]
        h = self.conv("Conv_1.", self.act(self.norm("GroupNorm_1.", h)), out, 3, padding=1)
        if changes:
            x = self.conv("Conv_2.", x, out, 1) if biggan else self.nin("NIN_0.", x, out)
        self.next()
        return self.combine(x, h)

    def attention(self, x):
        c = x.shape[1]
        h = self.norm("GroupNorm_0.", x)
        q, k, v = (self.nin(f"NIN_{i}.", h, c).flatten(2) for i in range(3))
        mix = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(c), dim=-1)
        h = torch.einsum("bij,bcj->bci", mix, v).reshape(x.shape)
        h = self.nin("NIN_3.", h, c)
        self.next()
        return self.combine(x, h)

    def resampled(self, h, temb, *, down):
        resample = self.down if down else self.up
        if self.config["model"]["resblock_type"] == "biggan":
            return self.residual(h, temb, h.shape[1], resample)
        if not self.config["model"]["resamp_with_conv"]:
            h = resample(h)
        elif down:
            h = self.conv_down(h, h.shape[1])
        else:
            h = self.conv("Conv_0.", self.up(h), h.shape[1], 3, padding=1)
        self.next()
        return h

    def head(self, h, channels):
        h = self.act(self.norm("", h))
        self.next()
        h = self.conv("", h, channels, 3, padding=1)
        self.next()
        return h

    def embedded(self, label):
        model, nf = self.config["model"], self.config["model"]["nf"]
        if model["embedding_type"] == "fourier":
            angle = 2 * math.pi * label[:, None] * self.weight("W", nf)
            emb, width = torch.cat([angle.sin(), angle.cos()], 1), 4 * nf
            self.next()
        else:
            size = model["embedding_dim"] if model.get("lsgm") else nf
            half = size // 2
            rate = torch.exp(-math.log(10_000) * torch.arange(half).double() / (half - 1))
            angle = label[:, None] * rate
            emb, width = torch.cat([angle.sin(), angle.cos()], 1), 4 * size
        if not model["conditional"]:
            return emb.new_zeros(len(emb), width)
        emb = self.linear("", emb, width)
        self.next()
        emb = self.linear("", self.act(emb), width)
        self.next()
        return emb

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        """Output before any division by sigma, of x in [-1, 1] and the label as embedded."""
        model, channels = self.config["model"], x.shape[1]
        self.index = 0
        nf, blocks, last = model["nf"], model["num_res_blocks"], len(model["ch_mult"]) - 1
        sides = [self.config["data"]["image_size"] // 2**i for i in range(last + 1)]
        attends = [
            model.get("attention", True) and side in model["attn_resolutions"] for side in sides
        ]
        temb = self.embedded(label.double())
        pyramid = x = x.double()
        h = self.conv("", x, nf, 3, padding=1)
        self.next()
        skips = [h]
        for level, multiplier in enumerate(model["ch_mult"]):
            for _ in range(blocks):
                h = self.residual(h, temb, nf * multiplier)
                if attends[level]:
                    h = self.attention(h)
                skips.append(h)
            if level == last:
                break
            h = self.resampled(h, temb, down=True)
            if model["progressive_input"] == "input_skip":
                pyramid = self.down(pyramid)
                seen = self.conv("Conv_0.", pyramid, h.shape[1], 1)
                cat = model["progressive_combine"] == "cat"
                h = torch.cat([seen, h], 1) if cat else seen + h
                self.next()
            elif model["progressive_input"] == "residual":
                pyramid = h = self.combine(self.conv_down(pyramid, h.shape[1]), h)
                self.next()
            skips.append(h)
        h = self.residual(h, temb, h.shape[1])
        h = self.attention(h)
        h = self.residual(h, temb, h.shape[1])
        image = None
        for level in range(last, -1, -1):
            for _ in range(blocks + 1):
                h = torch.cat([h, skips.pop()], 1)
                h = self.residual(h, temb, nf * model["ch_mult"][level])
            if attends[level]:
                h = self.attention(h)
            if model["progressive"] == "output_skip":
                own = self.head(h, channels)
                image = own if image is None else self.up(image) + own
            if level != 0:
                h = self.resampled(h, temb, down=False)
        return self.head(h, channels) if image is None else image


def trained(state: dict[str, Tensor]) -> list[Tensor]:
    """What the public code averages."""
    return [value for key, value in state.items() if key.split(".")[2] != "W"]


def checkpoint(config, *, prefix="module.", seed=0):
    """Content of a file, and the networks with the last and the averaged weights."""
    data, model = config["data"], config["model"]
    raw, average = Public(config, seed), Public(config, seed + 1)
    x = torch.zeros(1, data["num_channels"], data["image_size"], data["image_size"])
    for network in (raw, average):
        network(x, torch.ones(1))
    frozen = [key for key in raw.state if key.split(".")[2] == "W"]
    average.state |= {key: raw.state[key] for key in frozen}
    ends = (math.log(model["sigma_max"]), math.log(model["sigma_min"]))
    sigmas = torch.linspace(*ends, model["num_scales"], dtype=torch.float64).exp()
    content = {
        "optimizer": {"state": {}, "param_groups": []},
        "model": {f"{prefix}sigmas": sigmas}
        | {prefix + key: value for key, value in raw.state.items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": trained(average.state)},
        "step": 1234,
    }
    return content, raw, average
