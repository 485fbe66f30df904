"""SingleScorer: a scorer behind POST /score {image_base64, prompt} -> {score}, one request for each pair.

Public training code serves its rewards by this protocol, with one server for each scorer;
`imagereward serve` answers it.
"""

import base64
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from imagereward.errors import RemoteError
from imagereward.remote import protocol
from imagereward.remote.threads import in_threads
from imagereward.scoring.api import PairScorer
from imagereward.scoring.questions import Rows, Scored

PATH = "/score"


class Asked(Protocol):
    """A server that is asked in JSON, such as a `RemoteScorer`."""

    url: str
    connections: int

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to POST `path`, retried; RemoteError if there is none."""

    def close(self) -> None:
        """Close the connections."""


class SingleScorer(PairScorer):
    """A scorer at an address that ends with /score, made by `connect`, with all verbs but `reward`.

    server  sends the requests, and tries again those that found it full, restarting or gone
    model   the name of a model, for servers that have several; default: the server's own choice

    Every pair is a request of its own, `server.connections` of them at a time. Images are sent without loss,
    as by a `RemoteScorer`. A request that fails for good, or an answer without a finite number, gives no
    score: a verb raises RemoteError, whose `causes` has the reason for each row and whose `scores` has the
    others; `pixel_rewards`, by which a generator is trained, gives NaN for that image.
    """

    def __init__(self, server: Asked, model: str | None = None):
        self.server, self.model = server, model
        self.url = server.url + PATH
        self.name = self.url if model is None else f"{self.url}#{model}"

    def __repr__(self) -> str:
        return f"SingleScorer({self.name!r})"

    def __enter__(self) -> "SingleScorer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connections. The scorer cannot be used after that."""
        self.server.close()

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Scores [B] of pixels in [0, 1], rounded to 8 bits; NaN for images without one.

        Raises RemoteError if no image got one.
        """
        try:
            return super().pixel_rewards(pixels_B_3_H_W, prompts)
        except RemoteError as error:
            scores = torch.as_tensor(error.scores, dtype=torch.float32)
            if not scores.isfinite().any():
                raise
            return scores

    def _scored(self, rows: Rows, batch_size: int | None) -> Scored:
        protocol.check(rows)
        pictures = [
            base64.b64encode(protocol.encode(image, i)).decode() for i, image in enumerate(rows.images)
        ]
        own = {} if self.model is None else {"model": self.model}

        def score(row: int) -> float:
            image, prompt = rows.pairs_P_2[row].tolist()
            body = {"image_base64": pictures[image], "prompt": rows.prompts[prompt], **own}
            return finite_number(self.server.ask(PATH, body), "score")

        scores, causes, permanent = each_answer(score, len(rows.pairs_P_2), self.server.connections)
        if causes:
            row, cause = min(causes.items())
            raise RemoteError(
                f"{self.name}: {len(causes)} of {len(scores)} rows have no score (`causes` has all reasons, "
                f"`scores` the rest); row {row}: {cause}",
                causes,
                scores,
                permanent >= causes.keys(),
            )
        return Scored(scores, [0] * len(rows.prompts), [False] * len(rows.prompts))


def each_answer(
    ask: Callable[[int], float], count: int, connections: int
) -> tuple[torch.Tensor, dict[int, str], set[int]]:
    """(scores [count] float32, NaN without an answer; {row: cause} of these; which of them are permanent).

    ask          asks about a row, 0..count - 1; RemoteError if there is no answer
    connections  requests at a time
    """
    causes: dict[int, str] = {}
    permanent: set[int] = set()

    def answer(row: int) -> float:
        try:
            return ask(row)
        except RemoteError as error:
            causes[row] = str(error)
            if error.permanent:
                permanent.add(row)
            return math.nan

    scores = in_threads(answer, range(count), connections) if count else []
    return torch.tensor(scores, dtype=torch.float32, device="cpu"), causes, permanent


def finite_number(answer: Any, field: str) -> float:
    """The number in a field of a JSON answer; RemoteError for any other, also one that is not finite."""
    value = answer.get(field) if isinstance(answer, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        got = f"{field}={value!r:.100}" if isinstance(answer, dict) else f"{answer!r:.100}"
        raise RemoteError(f"its answer has {got}; expected a finite number as {field}")
    return float(value)


def host_of(url: str) -> str | None:
    """The address without /score at its end, which tells this module's protocol; None if it has none."""
    address = str(url).rstrip("/")
    return address.removesuffix(PATH) if address.endswith(PATH) else None
