"""Finds or downloads the files of a checkpoint and verifies their hashes."""

import contextlib
import hashlib
import os
import tempfile
import urllib.request
import warnings
from http.client import HTTPException
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, try_to_load_from_cache
from tqdm import tqdm

from imagereward.checkpoints.registry import ASSETS, File
from imagereward.errors import CheckpointError, DownloadError

# The original's cache: files that it downloaded are found and used.
CACHE = Path("~/.cache/ImageReward")


def fetch(file: File, download_root: str | os.PathLike | None = None, local_files_only=False) -> Path:
    """The local path of a registry file, downloaded if it is nowhere on this machine.

    Looked for in `download_root` (default `~/.cache/ImageReward`), then in the hub cache, then
    downloaded: into `download_root` if given. Where the registry has the sha256, every file is checked
    against it: a wrong download is removed (DownloadError, which says what was tried), and a wrong file that
    you put there yourself is a CheckpointError. A verdict is remembered until the file changes, so that the
    second load of 1.8 GB does not spend the 1 to 5 seconds again. Without a known sha256 a file that was not
    downloaded here is taken by its name, with a warning.
    """
    if file.packaged:
        return ASSETS / file.name
    root = Path(download_root or CACHE).expanduser()
    if _is_file(root / file.name):
        return _as_released(root / file.name, file)
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
        "or pass its directory as download_root= (--download-root of the commands)"
    )


def _download(repo: str, file: File, root: str | os.PathLike | None, local_files_only: bool) -> Path:
    if root is None or _offline(local_files_only):
        return _verified(fetch_from_hub(repo, file.name, None, local_files_only), file)
    root = Path(root).expanduser()
    with _temporary_in(root) as directory:  # under its final name only once it is verified
        path = fetch_from_hub(repo, file.name, directory)
        _check_hash(path, file)
        return _put(path, root / file.name, file)


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
        return _put(partial, target, file)


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


def _put(path: Path, target: Path, file: File | None) -> Path:
    """Rename a verified download to its final name."""
    try:
        os.replace(path, target)
    except OSError as error:
        raise DownloadError(f"the download cannot be put at {target}: {error}") from error
    if file:
        _remember(target, file)
    return target


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a directory that may not be searched
        raise DownloadError(
            f"{path} cannot be looked for: {error}; pass another download_root= (--download-root)"
        ) from error


def _verified(path: Path, file: File) -> Path:
    """`path`, a file of the hub cache, hashed unless it was found right before and has not changed."""
    if file.sha256 and not _is_remembered(path, file):
        _check_hash(path, file)
        _remember(path, file)
    return path


def _as_released(path: Path, file: File) -> Path:
    """`path`, a file that was there already under a released file's name. Raises CheckpointError."""
    if _is_remembered(path, file):
        return path
    if not file.sha256:
        warnings.warn(
            f"{path} is taken for the released {file.name} by its name alone: no sha256 of that is known",
            stacklevel=2,
        )
        return path
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if found != file.sha256:
        raise CheckpointError(
            f"{path} is not the released {file.name}: its sha256 is {found}, that of the released file "
            f"{file.sha256}. Load it as what it is, by its path: imagereward.load({str(path)!r}). For the "
            "released file, remove this one or pass another download_root= (--download-root)"
        )
    _remember(path, file)
    return path


def _note(path: Path, file: File) -> tuple[Path, str]:
    """(path of the note that a file has the right hash, the file's state that the note holds for).

    For a file without a known hash, the note says that it was downloaded.
    """
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    now = path.stat()
    state = f"{path.resolve()} {now.st_size} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_ino}"
    return CACHE.expanduser() / ".verified" / f"{file.sha256 or 'downloaded'}-{place}", state


def _is_remembered(path: Path, file: File) -> bool:
    note, state = _note(path, file)
    with contextlib.suppress(OSError, ValueError):
        return note.read_text(encoding="utf-8", errors="surrogateescape") == state
    return False


def _remember(path: Path, file: File) -> None:
    note, state = _note(path, file)
    with contextlib.suppress(OSError):  # a home that cannot be written costs a hash a load
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(state, encoding="utf-8", errors="surrogateescape")


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
