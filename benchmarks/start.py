"""Seconds that `import softtrunc` takes beyond `import torch`: the least of several processes."""

from __future__ import annotations

import subprocess
import sys

# Public names are fetched on first use: use them all.
LOAD = """
import time, torch
start = time.process_time()
import softtrunc
for name in softtrunc.__all__:
    getattr(softtrunc, name)
print(time.process_time() - start)
"""


def main() -> None:
    command = [sys.executable, "-c", LOAD]
    times = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    print(f"import softtrunc: {min(times):.2f} s of one core beyond import torch")


if __name__ == "__main__":
    main()
