"""The pictures of docs/gallery.md from a run of the demo, each by one command.

Run: softtrunc demo, then python examples/gallery.py runs/demo/soft docs/images
"""

import shlex
import sys
from pathlib import Path

from softtrunc.cli import main

PICTURES = {
    "trajectory.gif": "sample RUN --trajectory OUT --set sampling.steps=60",
    "trajectory.png": "sample RUN --trajectory OUT -n 4 --sampler pc --steps 200",
    "round-trip.png": "edit encode RUN --out OUT",
    "interpolation.png": "edit interpolate RUN --seed 0 --seed 11 --seed 4 --frames 7 --out OUT",
    "inpainting.png": "edit inpaint RUN -n 6 --mask top --sampler pc --steps 500 --out OUT",
}


def make(run: str, folder: Path) -> None:
    for name, command in PICTURES.items():
        out = folder / f"gallery-{name}"
        words = [{"RUN": run, "OUT": str(out)}.get(word, word) for word in command.split()]
        print(f"softtrunc {shlex.join(words)}", flush=True)
        if main(words) != 0:
            sys.exit(1)
        if out.stat().st_size > 200_000:
            sys.exit(f"{out}: {out.stat().st_size:,} bytes are too many for a page")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("write: python examples/gallery.py RUN FOLDER")
    make(sys.argv[1], Path(sys.argv[2]))
