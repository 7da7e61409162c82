"""How fast do images reach training: our memory-mapped data, or files decoded by a DataLoader?

Both give shuffled uint8 batches of the same images. The files are decoded again in every epoch; we
decode once (the row that says how long that takes) and then read rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from softtrunc.data import open_dataset, prepare
from softtrunc.training import batches
from softtrunc.training.randomness import DataOrder

console = Console(width=120, highlight=False)


class FolderDataset(Dataset):
    """What people write: a list of files, decoded by Pillow one by one."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(path for path in folder.rglob("*") if path.is_file())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def write_images(folder: Path, count: int, side: int) -> None:
    """Smooth coloured noise as JPEG: about as large and as slow to decode as photographs."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = generator.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:06d}.jpg", quality=90)


def loaded(folder: Path, batch: int, workers: int) -> Iterator[torch.Tensor]:
    """Batches of a DataLoader, epoch after epoch, its workers kept."""
    loader = DataLoader(
        FolderDataset(folder),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def ours(data: Path, batch: int, *, resident: bool) -> Iterator[torch.Tensor]:
    """The batches that training draws."""
    images = open_dataset(data, "train").images
    limit = batches.RESIDENT_BYTES
    batches.RESIDENT_BYTES = limit if resident else 0
    order = DataOrder(len(images), seed=0)
    share, device = slice(0, batch), torch.device("cpu")
    with batches.BatchSource(images, order, batch_size=batch, share=share, device=device) as source:
        batches.RESIDENT_BYTES = limit
        step = 0
        while True:
            yield source.batch(step)
            step += 1


def rates(
    streams: dict[str, Iterator[torch.Tensor]], batch: int, rounds: int, seconds: float
) -> dict[str, float]:
    """Median images/s; turns are taken, so that whatever else the machine does hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds):
        for name, stream in streams.items():
            # What a DataLoader fetched while the others had their turn does not count.
            for _ in range(6):
                assert next(stream).dtype == torch.uint8
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds or count == 0:
                next(stream)
                count += batch
            found[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def compare(root: Path, side: int, options: argparse.Namespace) -> None:
    folder, prepared, batch = root / f"{side}", root / f"{side}-prepared", options.batch
    write_images(folder / "train", options.images, side)
    (folder / "test").mkdir()
    Image.new("RGB", (side, side)).save(folder / "test" / "a.png")
    start = time.perf_counter()
    prepare(folder, prepared, workers=options.workers)
    preparing = options.images / (time.perf_counter() - start)
    streams = {
        "ours, memory-mapped": ours(prepared, batch, resident=False),
        "ours, held in memory (up to 2 GiB)": ours(prepared, batch, resident=True),
        "DataLoader, 0 workers": loaded(folder / "train", batch, 0),
        "DataLoader, 2 workers": loaded(folder / "train", batch, 2),
    }
    found = rates(streams, batch, options.rounds, options.seconds)
    mapped = found["ours, memory-mapped"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(f"{options.images:,} JPEGs of {side}x{side}, batches of {batch}")
    table.add_column("images/s", justify="right")
    table.add_column("memory-mapped over this", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:,.0f}", f"{mapped / value:.2f}")
    table.add_row(f"preparing, once ({options.workers} workers)", f"{preparing:,.0f}", "")
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        for side in options.sides:
            compare(Path(root), side, options)


if __name__ == "__main__":
    main()
