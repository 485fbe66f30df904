"""All errors that this package raises on purpose, and helpers for their messages.

Each error is an `ImageRewardError` and also the builtin that a caller would expect, so both
`except ImageRewardError` and, say, `except FileNotFoundError` work. A message names the thing
(path, index, key), the expected value, and the remedy.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ImageRewardError(Exception):
    """Base of all errors raised by this package."""


class InputError(ImageRewardError, ValueError):
    """An argument has the wrong value: an empty list, unequal lengths, a size out of range."""


class ImageReadError(ImageRewardError, ValueError):
    """A file or a buffer exists but does not hold a readable image."""


class ImageNotFound(ImageReadError, FileNotFoundError):
    """A path given as an image does not exist."""


class ImageTypeError(ImageRewardError, TypeError):
    """An object passed as an image has an unsupported type."""


class CheckpointError(ImageRewardError, RuntimeError):
    """A checkpoint is missing, unreadable, incomplete, or belongs to another model."""


class DownloadError(CheckpointError, ConnectionError):
    """A file could not be downloaded, or the download is not the expected file."""


class DeviceError(ImageRewardError, RuntimeError):
    """The requested device is not on this machine."""


class ModelMemoryError(ImageRewardError, MemoryError):
    """Memory does not suffice for a model and its smallest batch; the message says what to lower."""


class OutputError(ImageRewardError, OSError):
    """A result cannot be written: the file exists, belongs to another run, or the disk is full."""


class MissingExtraError(ImageRewardError, ImportError):
    """An optional library is not installed; the message names the extra that brings it (`missing_extra`)."""


class NonFiniteScoreError(ImageRewardError, ArithmeticError):
    """A score came out NaN or infinite; it is never turned into a ranking."""


class DeadHeadError(ImageRewardError, ArithmeticError):
    """A reward model in training gives every image the same score, and its weights no longer change that."""


class RemoteError(ImageRewardError, ConnectionError):
    """A reward server did not answer, or did not answer with scores.

    `causes` maps each row without a score to the reason; `scores` [P] holds the others, and NaN for
    these. Rows are those of the verb: images for `score` and `rank`, pairs for `score_pairs`, and
    for `score_matrix` the pairs of image 0 with every prompt, then of image 1, and so on. `permanent` says
    whether the same would happen again for each row without a score, because the server refused its content.
    """

    def __init__(
        self,
        message: str,
        causes: Mapping[int, str] | None = None,
        scores: Any = None,
        permanent: bool = False,
    ):
        super().__init__(message)
        self.permanent = permanent
        self.causes = dict(causes or {})
        self.scores = scores


class RewardError(ImageRewardError, RuntimeError):
    """A reward used for training failed for all images of an update, despite retries."""


class ProcessLostError(ImageRewardError, RuntimeError):
    """Another process of a training ended or no longer answers; the message names it."""


class NonFiniteLossError(ImageRewardError, ArithmeticError):
    """A loss or gradient in training was NaN or infinite; the update was not applied."""


class UnreadableVerdictWarning(UserWarning):
    """Some texts that a judge wrote hold no verdict in the form asked for; their scores are NaN."""


class PromptTruncatedWarning(UserWarning):
    """Some prompts are longer than the model's limit; only their beginning was scored."""


class PositionsClampedWarning(UserWarning):
    """Some prompts have fewer tokens than an adapter's positions ask for; fewer tokens are changed there."""


class AdapterUnusedWarning(UserWarning):
    """A forward pass did not call some of the modules that an adapter is on."""


class DistilledModelWarning(UserWarning):
    """The model seems distilled to few sampling steps, which the objective would blur."""


class IgnoredOptionWarning(UserWarning):
    """An option in a scheduler's config has no part in training; the pipeline itself goes by it."""


def missing_extra(what: str, extra: str, cause: ImportError | None = None) -> MissingExtraError:
    """The error for `what` ("a report") where the libraries of `extra` ("report") are not installed."""
    reason = f" ({cause})" if cause else ""
    return MissingExtraError(f"{what} needs the extra {extra!r}{reason}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """The command that installs an extra. The package is on no index: it comes from a clone or a wheel."""
    return (
        f"run python -m pip install '.[{extra}]' in your clone of imagereward "
        f"(from a wheel: python -m pip install 'FILE.whl[{extra}]')"
    )


def listing(names, most: int = 8) -> str:
    """`a, b, c (+5 more)`: the first `most` names, for messages."""
    names = [str(name) for name in names]
    rest = f" (+{len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def did_you_mean(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str:
    """The question `did you mean 'x'?`, with the valid name nearest to `name`; "" if none is near.

    cutoff   least similarity of names in [0, 1], as of difflib.get_close_matches
    """
    near = difflib.get_close_matches(name, list(valid), 1, cutoff)
    return f"did you mean {near[0]!r}?" if near else ""
