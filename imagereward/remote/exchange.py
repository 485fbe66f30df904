"""Requests to a reward server, tried again, halved and gathered: coroutines that both clients run.

The async client awaits them in its event loop. The blocking client's transport answers every `await` at
once, so that `run` carries them through without an event loop.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from imagereward.config import whole_number
from imagereward.errors import RemoteError
from imagereward.remote import protocol
from imagereward.remote.base import RemoteBase
from imagereward.remote.protocol import Failed, Gathered, Part
from imagereward.scoring.api import warn_truncated
from imagereward.scoring.questions import Rows, Scored

try:
    import httpx2
except ImportError:  # of an extra, named when a client is made
    httpx2 = None  # type: ignore[assignment]

DEFAULT_BATCH = 16  # images a request

Result = TypeVar("Result")


class Transport(Protocol):
    """How a request leaves, time passes and slow work is done: blocking, or in an event loop."""

    async def request(self, method: str, path: str, content: dict[str, Any]) -> Any:
        """The response, of any status; raises httpx2.RequestError if there is none."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        ...

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)`, which decodes or encodes images."""
        ...


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never has to wait, because its transport blocks."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    coroutine.close()
    raise RuntimeError("a blocking transport was suspended")


class Exchange:
    """One client's requests over one transport."""

    def __init__(self, client: RemoteBase, transport: Transport):
        self.client, self.transport = client, transport

    async def models(self) -> Any:
        """The answer of /v1/models; RemoteError if there is none."""
        try:
            return await self._ask("GET", "/v1/models", {})
        except Failed as failed:
            raise RemoteError(f"{self.client.url}: {failed.cause}") from failed

    async def send(self, rows: Rows, part: Part, gathered: Gathered) -> None:
        """Put the scores of a part's rows, or why they have none, into `gathered`.

        Halves of a part that is too large, and its images without those at fault, are sent again.
        """
        pending = [part]
        while pending and gathered.lost is None:
            part = pending.pop()
            try:
                name, most_bytes = self.client.name, self.client.limits["body"]
                form = await self.transport.work(protocol.form, rows, part, name, most_bytes)
                gathered.put(part, await self._ask("POST", "/v1/score", form))
            except Failed as failed:
                pending += gathered.fail(part, failed)

    async def _ask(self, method: str, path: str, content: dict[str, Any]) -> Any:
        """The JSON of the answer; Failed once the client's retries are used up."""
        attempt = 0
        while True:
            response, error = None, None
            try:
                response = await self.transport.request(method, path, content)
            except httpx2.RequestError as raised:
                error = raised
            passing = response is None or response.status_code in protocol.TRANSIENT
            if not passing or attempt == self.client.retries:
                break
            asked = response.headers.get("retry-after") if response is not None else None
            await self.transport.sleep(protocol.wait(attempt, asked))
            attempt += 1
        if error is not None:
            tried = f" ({attempt + 1} attempts)" if attempt else ""
            raise Failed(protocol.explain(error) + tried, lost=True) from error
        return protocol.answer_of(response)


def plan(client: RemoteBase, rows: Rows, batch_size: int | None) -> tuple[Gathered, list[Part]]:
    """Where answers gather, and the parts to send; InputError for rows that cannot be scored."""
    protocol.check(rows)
    size = DEFAULT_BATCH if batch_size is None else whole_number("batch_size", batch_size, 1)
    return Gathered(rows, f"{client.url} ({client.name})"), list(protocol.split(rows, size, client.limits))


def complete(client: RemoteBase, gathered: Gathered) -> Scored:
    """All scores, with a warning of prompts that were cut; RemoteError naming rows without a score."""
    scored = gathered.scored()
    warn_truncated(client.name, scored.truncated, f"the model at {client.url} has no room for more")
    return scored
