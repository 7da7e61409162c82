"""Results of a long measurement that outlive a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from softtrunc.feedback.files import whole_file


class Parts:
    """Named results, each a file of tensors.

    Args:
        folder: where they lie.
        identity: all that they depend on, plain values; results of another identity are not taken.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        self._root = folder
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def get(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The result of that name, made unless it is there."""
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            tensors = {key: value.contiguous() for key, value in make().items()}
            with whole_file(path) as partial:
                save_file(tensors, partial)
        return load_file(path)

    def remove(self) -> None:
        """Forget all of them, those of other identities too."""
        shutil.rmtree(self._root, ignore_errors=True)
