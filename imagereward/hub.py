"""From a file's name to a verified local file, and from a local file to a state dict."""

import contextlib
import hashlib
import os
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from huggingface_hub import constants, try_to_load_from_cache
from tqdm import tqdm

from imagereward.errors import CheckpointError, DownloadError, listing
from imagereward.registry import ASSETS, File

# The original's cache: files that it downloaded are found and used.
CACHE = Path("~/.cache/ImageReward")


def fetch(file: File, download_root: str | os.PathLike | None = None, local_files_only=False) -> Path:
    """The local path of a registry file, downloaded if it is nowhere on this machine.

    Looked for in `download_root` (default `~/.cache/ImageReward`), then in the hub cache, then
    downloaded: into `download_root` if given. What arrives is checked against the registry's sha256
    where it has one, and a wrong file is removed; a file that you put into `download_root` yourself is
    taken as it is. Raises DownloadError, which says what was tried.
    """
    if file.packaged:
        return ASSETS / file.name
    root = Path(download_root or CACHE).expanduser()
    if (root / file.name).is_file():
        return root / file.name
    tried = []
    for repo in file.hub:
        cached = try_to_load_from_cache(repo, file.name)
        try:
            if isinstance(cached, str):
                return _verified(Path(cached), file)
            return _download(repo, file, download_root, local_files_only)
        except DownloadError as error:
            tried.append(str(error))
    if file.url and _offline(local_files_only):
        tried.append(f"{file.url}: not tried, offline")
    elif file.url:
        try:
            return fetch_from_url(file.url, root / file.name, file)
        except DownloadError as error:
            tried.append(str(error))
    raise DownloadError(
        f"{file.name} is not in {root} and could not be downloaded:\n  "
        + "\n  ".join(tried)
        + f"\nOn a machine without network, put the file at {root / file.name} "
        "or pass its directory as download_root="
    )


def _download(repo: str, file: File, root: str | os.PathLike | None, local_files_only: bool) -> Path:
    if root is None or _offline(local_files_only):
        return _verified(fetch_from_hub(repo, file.name, None, local_files_only), file)
    root = Path(root).expanduser()
    with _temporary_in(root) as directory:  # under its final name only once it is verified
        path = fetch_from_hub(repo, file.name, directory)
        _check_hash(path, file)
        return path.replace(root / file.name)


def fetch_from_hub(
    repo: str, name: str, local_dir: str | os.PathLike | None = None, local_files_only=False
) -> Path:
    """A file of a hub repository by way of the hub cache, or DownloadError.

    huggingface_hub waits, retries and resumes when a connection breaks, within one call.
    """
    try:
        if _offline(local_files_only):
            cached = try_to_load_from_cache(repo, name)
            if isinstance(cached, str):
                return Path(cached)
            raise FileNotFoundError("not in the hub cache, and offline")
        # The endpoint is read now rather than at import, so that setting it in a notebook works.
        return Path(
            huggingface_hub.hf_hub_download(
                repo,
                name,
                local_dir=None if local_dir is None else os.fspath(local_dir),
                endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
            )
        )
    except Exception as error:  # requests or httpx, by its version: no common base to name
        reason = str(error).strip().splitlines() or [""]
        raise DownloadError(f"hub {repo}/{name}: {type(error).__name__}: {reason[0]}") from error


def fetch_from_url(url: str, target: Path, file: File | None = None) -> Path:
    """Download to `target`, which appears only once all of it has arrived and its hash is right.

    A download that breaks off starts anew with the next call. Raises DownloadError.
    """
    with _temporary_in(target.parent) as directory:
        partial = Path(directory, target.name)
        try:
            with urllib.request.urlopen(url, timeout=30) as response, open(partial, "wb") as output:
                size = int(response.headers.get("Content-Length") or 0)
                bar = tqdm(total=size or None, desc=target.name, unit="B", unit_scale=True, leave=False)
                with bar:
                    while chunk := response.read(2**20):
                        output.write(chunk)
                        bar.update(len(chunk))
        except (OSError, HTTPException, ValueError) as error:
            raise DownloadError(f"{url}: {type(error).__name__}: {error}") from error
        if size and partial.stat().st_size != size:
            raise DownloadError(f"{url}: broke off after {partial.stat().st_size} of {size} bytes")
        if file:
            _check_hash(partial, file)
        os.replace(partial, target)
    return target


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _temporary_in(root: Path) -> tempfile.TemporaryDirectory:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=root, prefix=".downloading-")
    except OSError as error:
        raise DownloadError(f"downloads cannot be put into {root}: {error}") from error


def _verified(path: Path, file: File) -> Path:
    """`path`, a file of the hub cache, hashed unless it was found right before and has not changed."""
    if file.sha256:
        note = CACHE.expanduser() / ".verified" / file.sha256
        status = path.stat()
        state = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        if not (note.is_file() and note.read_text() == state):
            _check_hash(path, file)
            with contextlib.suppress(OSError):  # a home that cannot be written costs a hash a load
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(state)
    return path


def _check_hash(path: Path, file: File) -> None:
    if file.sha256 and (found := sha256_of(path)) != file.sha256:
        size = path.stat().st_size
        for part in {path.resolve(), path}:  # in the hub cache, a link and what it points to
            part.unlink(missing_ok=True)
        raise DownloadError(
            f"{file.name}: the download ({size} bytes) has sha256 {found}, "
            f"expected {file.sha256}; it was removed"
        )


def _offline(local_files_only: bool) -> bool:
    return local_files_only or constants.HF_HUB_OFFLINE


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors`, `.pt` or `.pth` file by name, mapped from disk where possible.

    Takes a state dict as it is, or under `model`, `state_dict` or `module`; a `module.` that
    data-parallel training left before every name is taken off. Never runs code from the file.
    Raises CheckpointError for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        read = safetensors.torch.load_file if path.suffix == ".safetensors" else _read_torch
        state: Any = read(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise CheckpointError(
            f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read: it is damaged, "
            f"half-downloaded, or holds more than tensors ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    for container in ("model", "state_dict", "module"):
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"checkpoint {path} holds no state dict")
    others = [
        name
        for name, value in state.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise CheckpointError(f"checkpoint {path}: not tensors: {listing(others)}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _read_torch(path: Path):
    mapped = zipfile.is_zipfile(path)  # files from before torch 1.6 cannot be mapped
    if mapped:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(
                    f"checkpoint {path} is a TorchScript archive, which holds code; "
                    "use the same weights as a state dict or safetensors"
                )
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
