"""A cache of image features on disk: an SQLite file of bounded size, keyed by the hash of the encoded image.

Features do not depend on prompts or heads, so scoring the same images again needs no image encoder. When the
file reaches its budget, the least recently used features are removed. Processes of one machine may share a
cache.
"""

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError

from imagereward.adapters.files import plain_state
from imagereward.bulk.versions import versions
from imagereward.checkpoints.hub import sha256_of
from imagereward.errors import InputError
from imagereward.scoring.scorer import Scorer

FILE = "features.sqlite"
PAGE = 16384
# Pages that a value takes beyond its bytes: for partly filled pages and index entries.
SLACK_PAGES = 4
PATIENCE = 60  # seconds to wait while another process writes
LEAST_BUDGET = 2**20  # bytes
CHECKSUM = 4  # bytes of a CRC-32

Result = TypeVar("Result")


def tower_of(encoder: Scorer) -> bytes:
    """SHA-256 of all that decides an image's features. A part of every cache key.

    These are the image encoder's weights, architecture and (of a scorer from outside this package) code, its
    preprocessing, precision and device type, and the versions of libraries.

    Raises InputError for an encoder whose inputs are no stacked pixels.
    """
    if encoder.processor is not encoder.preprocess:
        raise InputError(f"features of {encoder.name} cannot be cached: its inputs are no stacked pixels")
    digest = hashlib.sha256()
    digest.update(encoder.adapters.digest_of(encoder.image_prefixes))
    for name, value in sorted(plain_state(encoder).items()):
        if name.startswith(encoder.image_prefixes):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    source = encoder.files.get("source")  # the code of a scorer from outside this package
    code = "" if source is None else sha256_of(source)
    decides = (encoder.config.architecture, code, asdict(encoder.preprocess), str(encoder.dtype))
    digest.update(repr((*decides, encoder.device.type, versions())).encode())
    return digest.digest()


@dataclass(frozen=True)
class FeatureReader:
    """Tells worker processes whether the cache holds an image: `digest in reader`.

    towers   `tower_of` every image encoder; an image counts as cached if features of all of them exist

    Each process opens the file when it first asks.
    """

    path: Path
    towers: tuple[bytes, ...]

    def __contains__(self, digest: bytes) -> bool:
        return all(_guarded(self.path, partial(self._has, _key(tower, digest))) for tower in self.towers)

    def _has(self, key: bytes) -> bool:
        return self._file.execute("SELECT 1 FROM features WHERE key = ?", (key,)).fetchone() is not None

    @cached_property
    def _file(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=PATIENCE)


class FeatureCache:
    """Image features in the file features.sqlite under `directory`; `commit` writes what `put` collected.

    budget   bytes on disk, at least 2**20; while a commit is written, SQLite's journal comes on top

    Raises InputError for a budget below that, a directory that cannot be made, and a damaged file.
    """

    def __init__(self, directory: str | os.PathLike, budget: int):
        if budget < LEAST_BUDGET:
            raise InputError(f"a cache of {budget} bytes holds nothing; expected at least {LEAST_BUDGET}")
        self.path = Path(directory).expanduser() / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the cache directory {self.path.parent} cannot be made: {error}") from error
        self.pages = budget // PAGE
        self.new: dict[bytes, bytes] = {}
        self.used: set[bytes] = set()
        _guarded(self.path, self._prepare)

    def reader(self, towers: Sequence[bytes]) -> FeatureReader:
        """A reader that tells whether the features of all `towers` of an image are cached."""
        return FeatureReader(self.path, tuple(towers))

    def get(self, tower: bytes, digest: bytes) -> torch.Tensor | None:
        """The image's features, a tensor on the CPU; None if they are not cached or are damaged.

        tower    `tower_of` the encoder
        digest   SHA-256 of the encoded image
        """
        key = _key(tower, digest)
        query = "SELECT value FROM features WHERE key = ?"
        found = _guarded(self.path, lambda: self.file.execute(query, (key,)).fetchone())
        if found is None:
            return None
        if (features := _unpacked(found[0])) is not None:
            self.used.add(key)
        return features

    def put(self, tower: bytes, digest: bytes, features: torch.Tensor) -> None:
        """Keep the image's features in memory until `commit`."""
        self.new[_key(tower, digest)] = _packed(features)

    def commit(self) -> None:
        """Write the features that were put; remove the least recently used where they need the space."""
        _guarded(self.path, self._commit)
        self.new.clear()
        self.used.clear()

    def _prepare(self) -> None:
        # Ray creates and calls a scorer in different threads, but never calls it from two at once.
        self.file = sqlite3.connect(
            self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        self.file.text_factory = bytes  # a value whose type is damaged may be text that cannot be decoded
        for pragma in (f"page_size = {PAGE}", "auto_vacuum = INCREMENTAL", "synchronous = NORMAL"):
            self.file.execute(f"PRAGMA {pragma}")
        self.file.executescript(
            "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB, used INTEGER);"
            "CREATE INDEX IF NOT EXISTS by_use ON features (used);"
        )
        if self._pragma("page_count") > self.pages:
            while self._pragma("page_count") - self._pragma("freelist_count") > self.pages and self._evict():
                pass
            self.file.executescript("PRAGMA incremental_vacuum")  # `execute` would take one step of it
        self.file.execute(f"PRAGMA max_page_count = {self.pages}")

    def _commit(self) -> None:
        with closing(self.file.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                (now,) = cursor.execute("SELECT coalesce(max(used), 0) + 1 FROM features").fetchone()
                marks = [(now, key) for key in sorted(self.used)]
                cursor.executemany("UPDATE features SET used = ? WHERE key = ?", marks)
                for key, value in self.new.items():
                    if self._make_room(len(value), now):
                        cursor.execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", (key, value, now))
                cursor.execute("COMMIT")
            except BaseException:
                if self.file.in_transaction:  # on a full disk, SQLite rolls back by itself
                    cursor.execute("ROLLBACK")
                raise

    def _make_room(self, size: int, now: int) -> bool:
        """Remove features not used in this commit until `size` more bytes fit; False if they never do."""
        needed = -(-size // (PAGE - 64)) + SLACK_PAGES
        while self._pragma("freelist_count") + self.pages - self._pragma("page_count") < needed:
            if not self._evict(before=now):
                return False
        return True

    def _evict(self, before: int = 2**62) -> int:
        oldest = "SELECT key FROM features WHERE used < ? ORDER BY used, rowid LIMIT 1"
        return self.file.execute(f"DELETE FROM features WHERE key IN ({oldest})", (before,)).rowcount

    def _pragma(self, name: str) -> int:
        return self.file.execute(f"PRAGMA {name}").fetchone()[0]


def _key(tower: bytes, digest: bytes) -> bytes:
    return hashlib.sha256(tower + digest).digest()


def _packed(features: torch.Tensor) -> bytes:
    """Features as bytes behind a CRC-32 of them: SQLite does not detect damaged values."""
    data = safetensors.torch.save({"features": features.cpu().contiguous()})
    return zlib.crc32(data).to_bytes(CHECKSUM, "big") + data


def _unpacked(value: object) -> torch.Tensor | None:
    if not isinstance(value, bytes):
        return None
    data = value[CHECKSUM:]
    if zlib.crc32(data).to_bytes(CHECKSUM, "big") != value[:CHECKSUM]:
        return None
    try:
        return safetensors.torch.load(data)["features"]
    except (SafetensorError, KeyError):
        return None


def _guarded(path: Path, action: Callable[[], Result]) -> Result:
    try:
        return action()
    except sqlite3.Error as error:
        raise InputError(
            f"the cache {path} cannot be used: {error}; if it is damaged, delete it: it holds nothing else"
        ) from error
