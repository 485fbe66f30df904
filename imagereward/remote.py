"""RemoteScorer: every verb of a scorer that runs behind a reward server, but for gradients."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from imagereward import wire
from imagereward.config import whole_number
from imagereward.errors import ImageRewardError, InputError, RemoteError
from imagereward.verbs import Result, Rows, Scored, Verbs, warn_truncated
from imagereward.wire import Failed, Gathered, Part

try:
    import httpx2
except ImportError:  # an extra: said when it is needed, so that this module can be looked at without
    httpx2 = None  # type: ignore[assignment]

DEFAULT_BATCH = 16  # images a request
TOKEN_VARIABLE = "IMAGEREWARD_TOKEN"


def connect(url: str, model: str | None = None, **options) -> "RemoteScorer":
    """A scorer whose model runs behind the reward server at `url`, such as "http://host:8000".

    model        a name that the server knows; default: the server's first
    token        what the server asks for; default: the environment's IMAGEREWARD_TOKEN, if set
    timeout      seconds to wait for one answer, default 120
    retries      how often a request is tried again that found the server full, restarting or gone, default 5
    connections  requests at a time, default 8

    Raises RemoteError, which names the server and the cause, if it cannot be reached or refuses;
    InputError for a model that it does not have, or a `url` that is none.
    """
    scorer = RemoteScorer(url, **options)
    scorer.choose(model, scorer.ask_models())
    return scorer


async def connect_async(url: str, model: str | None = None, **options) -> "AsyncRemoteScorer":
    """`connect`, with verbs that are awaited: `await scorer.score(prompt, images)`."""
    scorer = AsyncRemoteScorer(url, **options)
    scorer.choose(model, await scorer.ask_models())
    return scorer


class _Remote(Verbs):
    """What both clients are: a server, a model, and how to insist."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        connections: int = 8,
    ):
        if httpx2 is None:
            raise ImageRewardError("a remote scorer needs more: python -m pip install 'imagereward[serve]'")
        try:
            valid = httpx2.URL(url).scheme in ("http", "https") and bool(httpx2.URL(url).host)
        except (httpx2.InvalidURL, TypeError):
            valid = False
        if not valid:
            raise InputError(f"{url!r} is no server's address; expected one like 'http://127.0.0.1:8000'")
        self.url = url.rstrip("/")
        self.name = self.url
        self.limits: dict[str, int] = {}
        self._retries = whole_number("retries", retries, 0)
        self._connections = whole_number("connections", connections, 1)
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            "limits": httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        }

    def choose(self, model: str | None, offered: Any) -> None:
        """Take `model`, or the first, of what `ask_models` gave."""
        try:
            names = [card["name"] for card in offered["models"]]
            limits = {name: int(offered["limits"][name]) for name in ("body", "images", "prompts", "pairs")}
            default = names[0]
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise RemoteError(f"{self.url} is no reward server: /v1/models gives {offered!r:.200}") from error
        if model is not None and model not in names:
            raise InputError(f"{self.url} has no model {model!r}; it has: {', '.join(names)}")
        self.name = default if model is None else model
        self.limits = limits

    def reward(self, *arguments, **options) -> NoReturn:
        """Gradients do not travel over HTTP: always an InputError."""
        raise InputError(
            "a remote scorer has no `reward`: gradients do not travel over HTTP. Load the model where "
            f"you train, with imagereward.load({self.name!r}), or train from scores, without gradients"
        )

    def _gather(self, rows: Rows, batch_size: int | None) -> tuple[Gathered, list[Part]]:
        wire.check(rows)
        size = DEFAULT_BATCH if batch_size is None else whole_number("batch_size", batch_size, 1)
        return Gathered(rows, f"{self.url} ({self.name})"), list(wire.split(rows, size, self.limits))

    def _form(self, rows: Rows, part: Part) -> dict[str, Any]:
        return wire.form(rows, part, self.name, self.limits["body"])

    def _complete(self, gathered: Gathered) -> Scored:
        scored = gathered.scored()
        warn_truncated(self.name, scored.truncated, f"the model at {self.url} has no room for more")
        return scored

    def _again(self, attempt: int, outcome: Any) -> float | None:
        """Seconds to wait before trying again; None for a response that is final; Failed at the end."""
        if isinstance(outcome, Exception):
            if attempt < self._retries:
                return wire.wait(attempt, None)
            tried = f" ({attempt + 1} attempts)" if attempt else ""
            raise Failed(wire.explain(outcome) + tried, lost=True) from outcome
        if outcome.status_code in wire.TRANSIENT and attempt < self._retries:
            return wire.wait(attempt, outcome.headers.get("retry-after"))
        return None


class RemoteScorer(_Remote):
    """See `connect`. Every verb of `Scorer` that returns scores; `batch_size` is images a request.

    Images go without loss: files and bytes as they are, all else as PNG. What the server cannot
    score is a RemoteError: its `causes` name the rows, its `scores` hold the others.
    """

    def __init__(self, url: str, **options):
        super().__init__(url, **options)
        self._client = httpx2.Client(**self._options)

    def __enter__(self) -> "RemoteScorer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask_models(self) -> Any:
        """What /v1/models answers; RemoteError if it does not."""
        try:
            return self._ask("GET", "/v1/models", {})
        except Failed as failed:
            raise RemoteError(f"{self.url}: {failed.cause}") from failed

    def _scored(self, rows: Rows, batch_size: int | None, finish: Callable[[Scored], Result]) -> Result:
        gathered, parts = self._gather(rows, batch_size)
        if len(parts) == 1:
            self._send(rows, parts[0], gathered)
        else:
            with ThreadPoolExecutor(min(self._connections, len(parts)), "imagereward-remote") as threads:
                sent = [threads.submit(self._send, rows, part, gathered) for part in parts]
                try:
                    for each in sent:
                        each.result()
                except BaseException:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise
        return finish(self._complete(gathered))

    def _send(self, rows: Rows, part: Part, gathered: Gathered) -> None:
        pending = [part]
        while pending and gathered.lost is None:
            part = pending.pop()
            try:
                gathered.put(part, self._ask("POST", "/v1/score", self._form(rows, part)))
            except Failed as failed:
                pending += gathered.fail(part, failed)

    def _ask(self, method: str, path: str, content: dict[str, Any]) -> Any:
        attempt = 0
        while True:
            outcome: Any
            try:
                outcome = self._client.request(method, path, **content)
            except httpx2.RequestError as error:
                outcome = error
            delay = self._again(attempt, outcome)
            if delay is None:
                return wire.answer_of(outcome)
            attempt += 1
            time.sleep(delay)


class AsyncRemoteScorer(_Remote):
    """See `connect_async`. The verbs of `RemoteScorer`, each to be awaited; cancelling one drops its work."""

    score: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    inference_rank: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    rank: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    best_of: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    score_pairs: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    score_matrix: Callable[..., Awaitable[Any]]  # type: ignore[assignment]

    def __init__(self, url: str, **options):
        super().__init__(url, **options)
        self._client = httpx2.AsyncClient(**self._options)
        self._turn = asyncio.Semaphore(self._connections)

    async def __aenter__(self) -> "AsyncRemoteScorer":
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask_models(self) -> Any:
        """What /v1/models answers; RemoteError if it does not."""
        try:
            return await self._ask("GET", "/v1/models", {})
        except Failed as failed:
            raise RemoteError(f"{self.url}: {failed.cause}") from failed

    def _scored(  # type: ignore[override]
        self, rows: Rows, batch_size: int | None, finish: Callable[[Scored], Result]
    ) -> Coroutine[Any, Any, Result]:
        async def scored() -> Result:
            gathered, parts = await asyncio.to_thread(self._gather, rows, batch_size)
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(self._send(rows, part, gathered))
            return finish(self._complete(gathered))

        return scored()

    async def _send(self, rows: Rows, part: Part, gathered: Gathered) -> None:
        pending = [part]
        async with self._turn:  # not the connection pool's, whose queue counts as waiting for an answer
            while pending and gathered.lost is None:
                part = pending.pop()
                try:
                    form = await asyncio.to_thread(self._form, rows, part)
                    gathered.put(part, await self._ask("POST", "/v1/score", form))
                except Failed as failed:
                    pending += gathered.fail(part, failed)

    async def _ask(self, method: str, path: str, content: dict[str, Any]) -> Any:
        attempt = 0
        while True:
            outcome: Any
            try:
                outcome = await self._client.request(method, path, **content)
            except httpx2.RequestError as error:
                outcome = error
            delay = self._again(attempt, outcome)
            if delay is None:
                return wire.answer_of(outcome)
            attempt += 1
            await asyncio.sleep(delay)
