"""RemoteScorer and AsyncRemoteScorer: scorers whose model runs behind a reward server.

Both may be used from several threads and in forked processes, and can be pickled. Each process opens
connections of its own on first use; with the async client, each event loop does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import torch

from imagereward.errors import InputError, RemoteError
from imagereward.remote.base import CLOSED, RemoteBase, without_secrets
from imagereward.remote.exchange import Exchange, Result, complete, plan, run
from imagereward.remote.forking import process_key
from imagereward.remote.judge import ChatJudge, is_chat_address
from imagereward.remote.single import SingleScorer, host_of
from imagereward.remote.threads import in_threads, wait
from imagereward.scoring.questions import Question, Rows, Scored

try:
    import httpx2
except ImportError:  # in an extra, which RemoteBase() names
    httpx2 = None  # type: ignore[assignment]


def connect(url: str, model: str | None = None, **options) -> "RemoteScorer | ChatJudge | SingleScorer":
    """A scorer whose model runs behind the reward server at `url`, such as "http://host:8000".

    model        name of a model of the server; default: the server's first
    token        the server's token; default: the environment variable IMAGEREWARD_TOKEN, if set
    timeout      seconds to wait for an answer; default 120
    retries      number of retries of a request that found the server full, restarting or gone; default 5
    connections  requests at a time; default 8

    An address that ends with "/v1" is one of an OpenAI-compatible server, whose `model` is asked in the
    words of a `template`: the result is a `ChatJudge`, whose options these are. One that ends with "/score"
    is asked about one image and prompt a request, as public training code does: a `SingleScorer`.

    A pickle of the scorer holds its settings. A `token` given here is pickled only for worker processes that
    multiprocessing starts; a scorer loaded from any other pickle reads IMAGEREWARD_TOKEN.

    Raises RemoteError with the cause if the server cannot be reached or refuses; InputError for a model that
    the server lacks, and for an invalid `url`.
    """
    if is_chat_address(url, options):
        if model is None:
            raise InputError(f"{without_secrets(url)}: say which model= is asked")
        return ChatJudge(url, model, **options)
    if (host := host_of(url)) is not None:
        return SingleScorer(RemoteScorer(host, **options), model)
    scorer = RemoteScorer(url, **options)
    scorer.choose(model, scorer.ask_models())
    return scorer


async def connect_async(url: str, model: str | None = None, **options) -> "AsyncRemoteScorer":
    """`connect` for async code, where verbs are awaited: `await scorer.score(prompt, images)`.

    Raises InputError for an address that ends with "/score", or of a chat server: no client awaits these.
    """
    if host_of(url) is not None or is_chat_address(url, options):
        raise InputError(
            f"{without_secrets(url)}: an address of /score, or of a chat server, is asked without await; "
            "expected connect, or the address of a reward server"
        )
    scorer = AsyncRemoteScorer(url, **options)
    scorer.choose(model, await scorer.ask_models())
    return scorer


class RemoteScorer(RemoteBase):
    """A scorer behind a reward server, made by `connect`, with all verbs but `reward`.

    `batch_size` is the number of images in a request; default 16. Images are sent without loss: files and
    bytes as they are, others as PNG. If the server cannot score some rows, a verb raises RemoteError, whose
    `causes` has the reason for each of them and whose `scores` has the scores of the others.
    """

    def __init__(self, url: str, **options):
        super().__init__(url, **options)
        self._clients: dict[tuple[int, int], httpx2.Client] = {}
        self._exchange = Exchange(self, _Blocking(self._client))

    def __enter__(self) -> "RemoteScorer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connections. The scorer cannot be used after that."""
        self._unusable = CLOSED
        if client := self._clients.pop(process_key(), None):
            client.close()

    def _client(self) -> "httpx2.Client":
        """This process's HTTP client, made on first use; may be called from any thread."""
        self._check_usable()
        key = process_key()
        if (client := self._clients.get(key)) is None:
            # If two threads make a client at once, both get the client that was stored first.
            client = self._clients.setdefault(key, httpx2.Client(**self._options))
            # The parent process's clients are dropped without closing, which would use its connections.
            for other in [each for each in self._clients if each != key]:
                self._clients.pop(other, None)
        return client

    def ask_models(self) -> Any:
        """The server's answer to GET /v1/models, as JSON; RemoteError if there is none."""
        return run(self._exchange.models())

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The server's answer to POST `path` with a JSON `body`, retried; RemoteError if there is none."""
        return run(self._exchange.post(path, body))

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Scores [B] of pixels in [0, 1], rounded to 8 bits; NaN for images that the server could not score.

        Raises RemoteError if the server scored none of the images.
        """
        try:
            return super().pixel_rewards(pixels_B_3_H_W, prompts)
        except RemoteError as error:
            if error.scores is None or len(error.scores) != len(prompts):
                raise
            scores = torch.as_tensor(error.scores, dtype=torch.float32)
            if not scores.isfinite().any():
                raise
            return scores

    def _scored(self, rows: Rows, batch_size: int | None) -> Scored:
        gathered, parts = plan(self, rows, batch_size)

        def send(part) -> None:
            run(self._exchange.send(rows, part, gathered))

        in_threads(send, parts, self.connections)
        return complete(self, gathered)


class _Blocking:
    """A `Transport` that blocks: its coroutines never suspend."""

    def __init__(self, client: "Callable[[], httpx2.Client]"):
        self.client = client

    async def request(self, method: str, path: str, content: dict[str, Any]) -> Any:
        return self.client().request(method, path, **content)

    async def sleep(self, seconds: float) -> None:
        wait(seconds)

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return function(*arguments)


class _LoopClient(NamedTuple):
    """The HTTP client of one event loop.

    process  key of the process that made the client
    http     the connections
    turn     a semaphore with as many places as there may be requests at a time
    """

    process: tuple[int, int]
    http: "httpx2.AsyncClient"
    turn: asyncio.Semaphore


class AsyncRemoteScorer(RemoteBase):
    """`RemoteScorer` for async code, made by `connect_async`; its verbs are awaited, and can be cancelled."""

    score: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    inference_rank: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    rank: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    best_of: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    score_pairs: Callable[..., Awaitable[Any]]  # type: ignore[assignment]
    score_matrix: Callable[..., Awaitable[Any]]  # type: ignore[assignment]

    def __init__(self, url: str, **options):
        super().__init__(url, **options)
        # A connection belongs to the event loop that opened it, as well as to its process.
        self._clients: dict[asyncio.AbstractEventLoop, _LoopClient] = {}
        self._exchange = Exchange(self, _Awaited(self._client))

    async def __aenter__(self) -> "AsyncRemoteScorer":
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    async def close(self) -> None:
        """Close this event loop's connections. The scorer cannot be used after that."""
        self._unusable = CLOSED
        held = self._clients.pop(asyncio.get_running_loop(), None)
        if held is not None and held.process == process_key():
            await held.http.aclose()

    def _client(self) -> "_LoopClient":
        """The HTTP client of the running event loop, made on first use."""
        self._check_usable()
        loop, process = asyncio.get_running_loop(), process_key()
        held = self._clients.get(loop)
        if held is None or held.process != process:
            # Clients of a parent process are not closed, because its event loop watches their sockets.
            for each in [each for each in self._clients if each.is_closed()]:
                self._clients.pop(each, None)
            turn = asyncio.Semaphore(self.connections)
            held = self._clients[loop] = _LoopClient(process, httpx2.AsyncClient(**self._options), turn)
        return held

    async def ask_models(self) -> Any:
        """The server's answer to GET /v1/models, as JSON; RemoteError if there is none."""
        return await self._exchange.models()

    async def _ask(self, question: Question[Result], batch_size: int | None) -> Result:  # type: ignore[override]
        rows = question.rows
        gathered, parts = await asyncio.to_thread(plan, self, rows, batch_size)

        async def send(part) -> None:
            async with (
                self._client().turn
            ):  # the connection pool's queue would count as waiting for an answer
                await self._exchange.send(rows, part, gathered)

        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(send(part))
        except BaseExceptionGroup as several:  # verbs raise what the blocking client raises
            raise several.exceptions[0] from None
        return question.answer(complete(self, gathered))


class _Awaited:
    """A `Transport` for an event loop; threads decode and encode images."""

    def __init__(self, client: Callable[[], _LoopClient]):
        self.client = client

    async def request(self, method: str, path: str, content: dict[str, Any]) -> Any:
        return await self.client().http.request(method, path, **content)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.to_thread(function, *arguments)
