"""The standard Inception network: found where it was put, or fetched once and checked."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from softtrunc.metrics.features import INCEPTION_NAME, INCEPTION_SHA256

__all__ = ["cache_folder", "inception_file"]

# Where NVIDIA publishes it with StyleGAN2-ADA.
INCEPTION_URL = (
    f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_NAME}.pt"
)
INCEPTION_BYTES = 95_607_719
_PIECE = 1 << 20
_TIMEOUT_SECONDS = 30.0


def cache_folder() -> Path:
    """`$SOFTTRUNC_CACHE`, else `$XDG_CACHE_HOME/softtrunc`, else `~/.cache/softtrunc`."""
    named = os.environ.get("SOFTTRUNC_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "softtrunc"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inception_file(progress: Callable[[int, int], None] | None = None) -> Path:
    """The path of `inception-2015-12-05.pt` in the cache folder, fetched if it is not there.

    The file appears when it is whole and its SHA-256 is right, and not at all otherwise; a file
    that is there is checked as well.

    Args:
        progress: called with (bytes so far, bytes in all) while fetching.

    Raises:
        ValueError: if it cannot be fetched or is not the right one, saying what to do.
    """
    path = cache_folder() / f"{INCEPTION_NAME}.pt"
    if path.is_file():
        if _sha256(path) == INCEPTION_SHA256:
            return path
        raise ValueError(
            f"{path}: is not the standard network (SHA-256 {_sha256(path)[:12]}, expected "
            f"{INCEPTION_SHA256[:12]}): delete it, and it is fetched again"
        )
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    advice = (
        f"get {path.name} ({INCEPTION_BYTES:,} bytes, SHA-256 {INCEPTION_SHA256}) from "
        f"{INCEPTION_URL} elsewhere and put it there as {path}, or give --features PATH"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _download(partial, progress)
        if found != INCEPTION_SHA256:
            raise ValueError(
                f"what {INCEPTION_URL} gave is not the standard network (SHA-256 {found[:12]}, "
                f"expected {INCEPTION_SHA256[:12]}): {advice}"
            )
        partial.replace(path)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(
            f"no {path.name} at hand, and fetching it failed ({reason}): {advice}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _download(target: Path, progress: Callable[[int, int], None] | None) -> str:
    """Fetch into `target`; the SHA-256 of what came."""
    digest, done = hashlib.sha256(), 0
    request = urllib.request.Request(INCEPTION_URL, headers={"User-Agent": "softtrunc"})
    with (
        urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as source,
        target.open("wb") as file,
    ):
        total = int(source.headers.get("Content-Length") or INCEPTION_BYTES)
        while piece := source.read(_PIECE):
            file.write(piece)
            digest.update(piece)
            done += len(piece)
            if progress is not None:
                progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
