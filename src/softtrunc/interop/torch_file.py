"""Files that `torch.save` wrote, read without running what is in them or trusting what they say."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch

from softtrunc.feedback.text import one_line

# What people have in hand when a download or a conversion went wrong, by how the file begins.
_STRANGERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file: fetch it with git lfs pull"),
    (b"<", "a web page, not a checkpoint: the download went wrong: fetch it again"),
    (b"{", "a text in JSON, not a checkpoint"),
)

# Modules that EDM's pickles name (Karras et al. 2022).
_EDM = ("torch_utils.", "dnnlib.")


def read_torch_file(path: Path) -> object:
    """What `torch.save` put into a file: tensors, numbers, texts, lists and dictionaries.

    Every byte is compared with the checksums of the file first. (Files of PyTorch before 1.6 have
    none.) Storages are mapped, not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no such file, or holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    packed = _check(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    # An unpickler fed with anything but a pickle of tensors ends in nearly any of Python's errors.
    except Exception as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is not None and asked[1].startswith(_EDM):
            raise ValueError(
                f"{path}: a pickled network of EDM, whose code would run when it is read: refused; "
                "load it with EDM's own code and give its net.model to ScoreModel "
                '(prediction="edm"), as docs/models.md shows'
            ) from error
        if asked is None:
            raise ValueError(f"{path}: no file of tensors that torch.save wrote") from error
        raise ValueError(
            f"{path}: holds a {asked[1]}, which is no plain tensor and could run code when read: "
            "refused; save tensors and plain numbers alone"
        ) from error


def _check(path: Path) -> bool:
    """Whether a file is a zip, as PyTorch writes since 1.6; all its checksums are then right."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise ValueError(f"{path}: empty: the download went wrong: fetch it again")
    for start, what in _STRANGERS:
        if head.lstrip().startswith(start):
            raise ValueError(f"{path}: {what}")
    if head[8:9] == b"{":  # after the length of its header
        raise ValueError(
            f"{path}: a safetensors file: import reads what torch.save wrote (.pth); for a model "
            "saved by softtrunc use ScoreModel.from_pretrained"
        )
    if not head.startswith(b"PK"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # Torch packs nothing, so all there is lies in the file.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its members are compressed, which torch.save never does")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("its members promise more bytes than it has")
            damaged = archive.testzip()
    except Exception as error:
        reason = one_line(error, 80)
        raise ValueError(f"{path}: damaged or cut short: {reason}: fetch it again") from error
    if damaged is not None:
        raise ValueError(f"{path}: damaged: {damaged} is not what was saved (CRC): fetch it again")
    return True
