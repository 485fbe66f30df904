"""fetch: finds or downloads the files of a checkpoint, and verifies their SHA-256."""

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

# The cache of the original implementation; files that it downloaded are used.
CACHE = Path("~/.cache/ImageReward")


def fetch(file: File, download_root: str | os.PathLike | None = None, local_files_only=False) -> Path:
    """The local path of a registry file; the file is downloaded if it is not on this machine.

    file              an entry of the registry
    download_root     directory to look in and to download to; default: look in ~/.cache/ImageReward, and
                      download to the hub cache, or from a URL to ~/.cache/ImageReward
    local_files_only  never use the network

    The file is looked for in the directory, then in the hub cache, and then downloaded. If the registry has
    its sha256, it is verified. A passed check is remembered until the file changes, because hashing 1.8 GB
    takes 1 to 5 seconds. Without a sha256, a file that was not downloaded by this function is accepted by its
    name, with a warning.

    Raises DownloadError listing the sources tried if the file cannot be had, or if a download has another
    hash, which is then removed; CheckpointError for a file of the user's with another hash.
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
    with _temporary_in(root) as directory:  # renamed to its final name after it is verified
        path = fetch_from_hub(repo, file.name, directory)
        _check_hash(path, file)
        return _put(path, root / file.name, file)


def fetch_from_hub(
    repo: str, name: str, local_dir: str | os.PathLike | None = None, local_files_only=False
) -> Path:
    """The path of the file `name` of the hub repository `repo` ("owner/name"), from the hub cache or the hub.

    local_dir         directory to download to; default: the hub cache
    local_files_only  never use the network

    huggingface_hub retries and resumes a broken connection within the call. Raises DownloadError.
    """
    try:
        if _offline(local_files_only):
            cached = try_to_load_from_cache(repo, name)
            if isinstance(cached, str):
                return Path(cached)
            raise FileNotFoundError("not in the hub cache, and offline")
        # The endpoint is read at each call, not at import, so that a notebook can set it.
        return Path(
            huggingface_hub.hf_hub_download(
                repo,
                name,
                local_dir=None if local_dir is None else os.fspath(local_dir),
                endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
            )
        )
    except Exception as error:  # of requests or httpx, by huggingface_hub's version, without a common base
        reason = str(error).strip().splitlines() or [""]
        raise DownloadError(f"hub {repo}/{name}: {type(error).__name__}: {reason[0]}") from error


def fetch_repository(repo: str, local_files_only=False) -> Path:
    """The directory, in the hub cache, with all files of the hub repository `repo`; DownloadError."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                local_files_only=_offline(local_files_only),
                endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
            )
        )
    except Exception as error:  # of requests or httpx, by huggingface_hub's version, without a common base
        reason = str(error).strip().splitlines() or [""]
        raise DownloadError(f"hub {repo}: {type(error).__name__}: {reason[0]}") from error


def fetch_from_url(url: str, target: Path, file: File | None = None) -> Path:
    """Download `url` to `target`; returns `target`.

    file  registry entry with the expected sha256; None: no check

    The file gets its name after it is complete and verified. A broken download starts from the beginning at
    the next call. Raises DownloadError.
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
    """`path`, a file of the hub cache, after checking its hash, unless an earlier check still holds."""
    if file.sha256 and not _is_remembered(path, file):
        _check_hash(path, file)
        _remember(path, file)
    return path


def _as_released(path: Path, file: File) -> Path:
    """`path`, a file that the user has under a released file's name, after checking its hash.

    Raises CheckpointError for another hash.
    """
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


def _hash_record(path: Path, file: File) -> tuple[Path, str]:
    """(path of the file that records a passed check, the file's path, size and times at the check).

    For a file without a known hash, it records that the file was downloaded.
    """
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    now = path.stat()
    state = f"{path.resolve()} {now.st_size} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_ino}"
    return CACHE.expanduser() / ".verified" / f"{file.sha256 or 'downloaded'}-{place}", state


def _is_remembered(path: Path, file: File) -> bool:
    record, state = _hash_record(path, file)
    with contextlib.suppress(OSError, ValueError):
        return record.read_text(encoding="utf-8", errors="surrogateescape") == state
    return False


def _remember(path: Path, file: File) -> None:
    record, state = _hash_record(path, file)
    with contextlib.suppress(OSError):  # without a writable home, every load hashes the file again
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(state, encoding="utf-8", errors="surrogateescape")


def _check_hash(path: Path, file: File) -> None:
    if file.sha256 and (found := sha256_of(path)) != file.sha256:
        size = path.stat().st_size
        for part in {path.resolve(), path}:  # in the hub cache, a link and its target
            part.unlink(missing_ok=True)
        raise DownloadError(
            f"{file.name}: the download ({size} bytes) has sha256 {found}, "
            f"expected {file.sha256}; it was removed"
        )


def _offline(local_files_only: bool) -> bool:
    return local_files_only or constants.HF_HUB_OFFLINE
