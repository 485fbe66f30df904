"""Exchange: sends requests to a reward server, retries and splits them, for both clients.

Its methods are coroutines. The async client awaits them in its event loop. The blocking client's transport
never suspends, so `run` completes them without an event loop.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from imagereward.config import whole_number
from imagereward.errors import RemoteError
from imagereward.remote import protocol
from imagereward.remote.base import RemoteBase
from imagereward.remote.gathered import Gathered
from imagereward.remote.protocol import Failed, Part
from imagereward.scoring.api import warn_truncated
from imagereward.scoring.questions import Rows, Scored

try:
    import httpx2
except ImportError:  # in an extra, which RemoteBase() names
    httpx2 = None  # type: ignore[assignment]

DEFAULT_BATCH = 16  # images in a request

Result = TypeVar("Result")


class Transport(Protocol):
    """Sends requests, sleeps and runs slow functions: blocking, or in an event loop."""

    async def request(self, method: str, path: str, content: dict[str, Any]) -> Any:
        """The response, of any status; raises httpx2.RequestError if there is none."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        ...

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """The result of `function(*arguments)`, which decodes or encodes images."""
        ...


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never suspends, because its transport blocks."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    coroutine.close()
    raise RuntimeError("a blocking transport was suspended")


class Exchange:
    """The requests of a client over a transport."""

    def __init__(self, client: RemoteBase, transport: Transport):
        self.client, self.transport = client, transport

    async def models(self) -> Any:
        """The server's answer to GET /v1/models, as JSON; RemoteError if there is none."""
        try:
            return await self._ask("GET", "/v1/models", {})
        except Failed as failed:
            raise RemoteError(f"{self.client.url}: {failed.cause}") from failed

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The server's answer to POST `path` with `body` as JSON; RemoteError if there is none."""
        try:
            return await self._ask("POST", path, {"json": body})
        except Failed as failed:
            raise RemoteError(f"{self.client.url}: {failed.cause}", permanent=failed.refused) from failed

    async def send(self, rows: Rows, part: Part, gathered: Gathered) -> None:
        """Send a part, and put the scores of its rows, or the causes of failure, into `gathered`.

        A part that is too large is sent again in halves; a part with faulty images, without these images.
        """
        pending = [part]
        while pending and gathered.stopped_by is None:
            part = pending.pop()
            try:
                name, most_bytes = self.client.name, self.client.limits["body"]
                form = await self.transport.work(protocol.form, rows, part, name, most_bytes)
                gathered.put(part, await self._ask("POST", "/v1/score", form))
            except Failed as failed:
                pending += gathered.fail(part, failed)

    async def _ask(self, method: str, path: str, content: dict[str, Any]) -> Any:
        """The answer as JSON; Failed for a refusal, and after the last of the client's retries."""
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
            raise Failed(protocol.explain(error) + tried, stop_all=True) from error
        return protocol.answer_of(response)


def plan(client: RemoteBase, rows: Rows, batch_size: int | None) -> tuple[Gathered, list[Part]]:
    """(an object that gathers the answers, the parts of at most `batch_size` images to send).

    Raises InputError for nothing to score, and the errors of `imagereward.images` for unreadable images.
    """
    protocol.check(rows)
    size = DEFAULT_BATCH if batch_size is None else whole_number("batch_size", batch_size, 1)
    return Gathered(rows, f"{client.url} ({client.name})"), list(protocol.split(rows, size, client.limits))


def complete(client: RemoteBase, gathered: Gathered) -> Scored:
    """The scores of all rows, with a warning for prompts that were cut.

    Raises RemoteError naming the rows without a score.
    """
    scored = gathered.scored()
    warn_truncated(client.name, scored.truncated, f"the model at {client.url} has no room for more")
    return scored
