"""The standard Inception network: found where it was put, or fetched once and checked."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import sys
from pathlib import Path

import torch

from softtrunc.feedback.files import whole_file
from softtrunc.metrics.features import INCEPTION_NAME, INCEPTION_SHA256

# Where NVIDIA publishes it with StyleGAN2-ADA.
INCEPTION_URL = (
    f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_NAME}.pt"
)
INCEPTION_BYTES = 95_607_719
_TIMEOUT_SECONDS = 30.0


def cache_folder() -> Path:
    """`$SOFTTRUNC_CACHE`, else `$XDG_CACHE_HOME/softtrunc`, else `~/.cache/softtrunc`."""
    named = os.environ.get("SOFTTRUNC_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "softtrunc"


def _check(path: Path, what: object, advice: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != INCEPTION_SHA256:
        raise ValueError(
            f"{what} is not the standard network (SHA-256 {found[:12]}, expected "
            f"{INCEPTION_SHA256[:12]}): {advice}"
        )


def inception_file() -> Path:
    """The path of `inception-2015-12-05.pt` in the cache folder, fetched if it is not there.

    The file appears when it is whole and its SHA-256 is right, and not at all otherwise; a file
    that is there is checked as well. On a terminal, a bar is drawn while it is fetched.

    Raises:
        ValueError: if it cannot be fetched or is not the right one, saying what to do.
    """
    path = cache_folder() / f"{INCEPTION_NAME}.pt"
    if path.is_file():
        _check(path, f"{path}:", "delete it, and it is fetched again")
        return path
    advice = (
        f"get {path.name} ({INCEPTION_BYTES:,} bytes, SHA-256 {INCEPTION_SHA256}) from "
        f"{INCEPTION_URL} elsewhere and put it there as {path}, or give --features PATH"
    )
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)  # PyTorch sets none
    try:
        with whole_file(path) as partial:
            bar = sys.stderr.isatty()
            torch.hub.download_url_to_file(INCEPTION_URL, str(partial), progress=bar)
            _check(partial, f"what {INCEPTION_URL} gave", advice)
    except (http.client.HTTPException, OSError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"no {path.name} at hand, and fetching it failed ({reason}): {advice}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return path
