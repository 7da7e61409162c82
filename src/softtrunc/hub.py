"""Where a saved model lies: in a folder, in this package, or on the Hugging Face Hub."""

from __future__ import annotations

from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

from softtrunc.feedback.text import one_line

CONFIG_FILE = "config.json"

# Where pipelines of diffusers keep the model.
_SUBFOLDER = "unet"


class Download(TypedDict, total=False):
    """Options of `huggingface_hub.hf_hub_download`."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    force_download: bool
    local_files_only: bool


class Upload(TypedDict, total=False):
    """Options of `upload_folder`."""

    private: bool | None
    token: str | bool | None
    revision: str | None
    create_pr: bool
    commit_message: str


def shipped_folder(name: str) -> Path | None:
    """The folder of the model that ships with the package under `name`, None if there is none."""
    folder = Path(str(files("softtrunc"))) / "shipped" / name
    return folder if name.isidentifier() and (folder / CONFIG_FILE).is_file() else None


def shipped_names() -> list[str]:
    """The models that ship with the package."""
    return sorted(
        path.parent.name for path in Path(str(files("softtrunc"))).glob("shipped/*/config.json")
    )


def fetch(source: str, name: str, download: Download) -> Path:
    """The file in a folder, of a model that ships, or downloaded (or cached) from the Hub.

    Raises:
        FileNotFoundError: it is in none of these.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = shipped_folder(source) or folder
    if folder.is_dir():
        if not (folder / name).is_file():
            if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir():
                raise FileNotFoundError(
                    f"{folder}: is a run folder: write a model first, with "
                    f"`softtrunc export {folder} --out DIR`"
                )
            raise FileNotFoundError(f"{folder / name}: no such file: is {folder} a saved model?")
        return folder / name
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        ships = ", ".join(shipped_names())
        raise FileNotFoundError(
            f"{source}: no such folder, and neither a model that ships ({ships}) nor a repository "
            "of the Hub (owner/name)"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name, **download))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{source}: {name} is neither in a folder of that name nor to be had from the Hub: "
            f"{one_line(error, 200)}"
        ) from error


def find(source: str, name: str, download: Download) -> Path:
    """A file of a model, or of a pipeline of diffusers that holds one."""
    try:
        return fetch(source, name, download)
    except FileNotFoundError as error:
        with suppress(FileNotFoundError):
            return fetch(source, f"{_SUBFOLDER}/{name}", download)
        raise error


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a softtrunc model",
) -> str:
    """Put the files of a folder into a model repository of the Hub, made if it is not there.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
    commit = api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        repo_type="model",
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        ignore_patterns=[".*"],
    )
    return str(commit.commit_url)
