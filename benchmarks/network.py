"""The CIFAR-10 DDPM++ beside diffusers' UNet2DModel of the same widths: speed and memory.

Or beside itself through torch.compile (`--against compiled`). Forward passes and whole training
steps (forward, backward, Adam) of both networks alternate, so that whatever else the machine does
hits both alike; the ratio is a median over pairs. Peak memory is measured in processes of their
own.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import conv_peak, matmul_peak, seconds
from softtrunc.networks import ScoreUNet, preset
from softtrunc.training.speed import keep_freed_memory

console = Console(width=150, highlight=False)

# forward, gradient of the activations, gradient of the weights
STEP_OVER_FORWARD = 3
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def ours() -> nn.Module:
    return ScoreUNet(preset("ddpmpp", image_size=32))


class _Diffusers(nn.Module):
    """UNet2DModel with the widths, blocks and attention of DDPM++, called as ours is."""

    def __init__(self) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        plain, attending = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
        levels = [plain, attending, plain, plain]
        self.body = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=4,
            down_block_types=tuple(down for down, _ in levels),
            up_block_types=tuple(up for _, up in reversed(levels)),
            attention_head_dim=256,  # one head, as in DDPM++
            dropout=0.1,
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.body(x, label).sample


def _compiled() -> nn.Module:
    network = ours()
    network.compile()
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ours": ours,
    "diffusers": _Diffusers,
    "compiled": _compiled,
}


class Case:
    """One network, ready to run forward passes or training steps in one precision."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, batch: int) -> None:
        self.network = NETWORKS[name]().to(device)
        # Ours starts with last convolutions of almost zero, whose squared gradients are denormal
        # numbers: Adam's square root is slow on them for the first steps, and on no others.
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, std=0.03)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-5, fused=True)
        self.x = torch.randn(batch, 3, 32, 32, device=device)
        self.label = torch.rand(batch, device=device) * 999
        self.autocast = (
            nullcontext
            if dtype == torch.float32
            else lambda: torch.autocast(device.type, dtype)  # as in training: weights in float32
        )

    def channels_last(self) -> Case:
        self.network = self.network.to(memory_format=torch.channels_last)
        self.x = self.x.to(memory_format=torch.channels_last)
        return self

    def forward(self) -> None:
        self.network.eval()
        with torch.no_grad(), self.autocast():
            self.network(self.x, self.label)

    def step(self) -> None:
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = (self.network(self.x, self.label) - self.x).square().mean()
        loss.backward()
        self.optimizer.step()


def flops(name: str) -> int:
    """Operations of one image's forward pass."""
    with torch.device("meta"):
        network = NETWORKS["ours" if name == "compiled" else name]().eval()
        x, label = torch.empty(1, 3, 32, 32), torch.empty(1)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(x, label)
    return int(counter.get_total_flops())


def peak_memory(name: str, what: str, dtype: str, batch: int, layout: str) -> float:
    """GiB that one pass takes at most beyond what an idle process holds."""
    command = [sys.executable, "-m", "benchmarks.network", "--memory-of", name, what, dtype, layout]
    done = subprocess.run(
        [*command, "--batch", str(batch)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def _most_resident() -> int:
    """Largest resident set of this process so far, in KiB; getrusage counts its parent's too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) if found else 0


def print_memory(name: str, what: str, dtype: str, layout: str, batch: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = _most_resident()
    case = Case(name, device, DTYPES[dtype], batch)
    if layout == "channels-last":
        case.channels_last()
    getattr(case, what)()
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        print((_most_resident() - before) / 2**20)


def compare(options: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as training does, for both
    names = ("ours", options.against)
    work = {name: flops(name) for name in names}
    for name in names:
        with torch.device("meta"):
            count = sum(p.numel() for p in NETWORKS[name]().parameters())
        console.print(
            f"{name}: {count:,} parameters, {work[name] / 1e9:.1f} GFLOP an image forward"
        )
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = ("precision", "layout", "pass", "network", "img/s", "GFLOP/s", "of matmul", "of conv")
    for column in (*columns, "GiB", "per FLOP, ours / theirs"):
        table.add_column(column, justify="left" if column in columns[:4] else "right")
    for precision in options.precision:
        dtype = DTYPES[precision]
        peaks = matmul_peak(device, dtype), conv_peak(device, dtype)
        console.print(
            f"{device.type}, {precision}: matmul {peaks[0]:,.0f} GFLOP/s, 3x3 convolution "
            f"{peaks[1]:,.0f} GFLOP/s"
        )
        for layout in options.layout:
            cases = {name: Case(name, device, dtype, options.batch) for name in names}
            if layout == "channels-last":
                cases = {name: case.channels_last() for name, case in cases.items()}
            for what in options.passes:
                factor = {"forward": 1, "step": STEP_OVER_FORWARD}[what]
                for case in cases.values():
                    getattr(case, what)()
                pairs = [
                    {name: seconds(getattr(case, what), device) for name, case in cases.items()}
                    for _ in range(options.rounds)
                ]
                rates = {
                    name: options.batch
                    * factor
                    * work[name]
                    / 1e9
                    / statistics.median(p[name] for p in pairs)
                    for name in cases
                }
                ratio = statistics.median(
                    (work["ours"] / p["ours"]) / (work[names[1]] / p[names[1]]) for p in pairs
                )
                for name, rate in rates.items():
                    memory = (
                        f"{peak_memory(name, what, precision, options.batch, layout):.2f}"
                        if options.memory
                        else ""
                    )
                    table.add_row(
                        precision,
                        layout,
                        what,
                        name,
                        f"{rate * 1e9 / factor / work[name]:,.2f}",
                        f"{rate:,.0f}",
                        *(f"{rate / peak:.0%}" for peak in peaks),
                        memory,
                        f"{ratio:.2f}" if name == "ours" else "",
                    )
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--layout",
        nargs="+",
        choices=("contiguous", "channels-last"),
        default=["contiguous", "channels-last"],
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of passes")
    parser.add_argument(
        "--passes", nargs="+", choices=("forward", "step"), default=["forward", "step"]
    )
    parser.add_argument("--against", choices=("diffusers", "compiled"), default="diffusers")
    parser.add_argument("--memory", action="store_true", help="measure peak memory as well")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_of:
        print_memory(*options.memory_of, batch=options.batch)
        return
    compare(options)


if __name__ == "__main__":
    main()
