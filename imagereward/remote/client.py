"""RemoteScorer: every verb of a scorer that runs behind a reward server, but for gradients.

Both clients may be used from several threads and in forked processes, and can be pickled. Connections are
opened on first use, by each process (and, of the async client, by each event loop) for itself.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import get_spawning_popen
from typing import Any, NamedTuple, NoReturn, Self

from imagereward.config import whole_number
from imagereward.errors import InputError, RemoteError, missing_extra
from imagereward.remote import protocol
from imagereward.remote.forking import process_key
from imagereward.remote.protocol import Failed, Gathered, Part
from imagereward.scoring.api import Result, Rows, Scored, Verbs, warn_truncated

try:
    import httpx2
except ImportError:  # an extra: said when it is needed, so that this module can be looked at without
    httpx2 = None  # type: ignore[assignment]

DEFAULT_BATCH = 16  # images a request
TOKEN_VARIABLE = "IMAGEREWARD_TOKEN"
CLOSED = "is closed: connect again"


def connect(url: str, model: str | None = None, **options) -> "RemoteScorer":
    """A scorer whose model runs behind the reward server at `url`, such as "http://host:8000".

    model        a name that the server knows; default: the server's first
    token        what the server asks for; default: the environment's IMAGEREWARD_TOKEN, if set
    timeout      seconds to wait for one answer, default 120
    retries      how often a request is tried again that found the server full, restarting or gone, default 5
    connections  requests at a time, default 8

    A pickle of the scorer holds its settings. A `token` given here is pickled only for worker processes that
    multiprocessing starts; a scorer loaded from any other pickle reads IMAGEREWARD_TOKEN.

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
    """What both clients share: address, model, retry policy, and how they are copied and pickled."""

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
            raise missing_extra("a remote scorer", "serve")
        address = _address(url)
        # For messages and logs too, httpx2's own among them: so without what is secret in it.
        self.url = str(address.copy_with(username=None, password=None)).rstrip("/")
        self.name = self.url
        self.limits: dict[str, int] = {}
        self._retries = whole_number("retries", retries, 0)
        self._connections = whole_number("connections", connections, 1)
        self._settings: dict[str, Any] = {
            "url": url,
            "token": token,
            "timeout": timeout,
            "retries": retries,
            "connections": connections,
        }
        self._withheld = False  # whether a token was left out of the pickle that this comes from
        self._unusable: str | None = None  # why no request can be sent
        given = os.environ.get(TOKEN_VARIABLE) if token is None else token
        given = protocol.checked_token(given, "the token") if given else None
        if given and address.username:
            raise InputError(f"{self.url}: give a token, or a user name in the address, not both")
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "auth": (address.username, address.password) if address.username else None,
            "headers": {"Authorization": f"Bearer {given}"} if given else {},
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            "limits": httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, model={self.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        settings = dict(self._settings)
        # As multiprocessing does with its own keys: a secret goes to worker processes, not into files.
        if settings["token"] and get_spawning_popen() is None:
            settings["token"] = None
            withheld = True
        else:
            withheld = self._withheld
        return {"settings": settings, "withheld": withheld, "name": self.name, "limits": self.limits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["settings"])  # type: ignore[misc]
        self.name, self.limits = state["name"], dict(state["limits"])
        self._withheld = state["withheld"]
        if self._withheld and not self._options["headers"]:
            self._unusable = (
                "was pickled, and a pickle leaves the token out: set the environment variable "
                f"{TOKEN_VARIABLE} in the process that loads it, or connect there"
            )

    def __copy__(self) -> Self:
        state = {**self.__getstate__(), "settings": self._settings, "withheld": self._withheld}
        copied = type(self).__new__(type(self))
        copied.__setstate__(state)
        return copied

    def __deepcopy__(self, _: dict) -> Self:
        return self.__copy__()

    def _check_usable(self) -> None:
        if self._unusable:
            raise InputError(f"the remote scorer of {self.url} {self._unusable}")

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
        protocol.check(rows)
        size = DEFAULT_BATCH if batch_size is None else whole_number("batch_size", batch_size, 1)
        return Gathered(rows, f"{self.url} ({self.name})"), list(protocol.split(rows, size, self.limits))

    def _form(self, rows: Rows, part: Part) -> dict[str, Any]:
        return protocol.form(rows, part, self.name, self.limits["body"])

    def _complete(self, gathered: Gathered) -> Scored:
        scored = gathered.scored()
        warn_truncated(self.name, scored.truncated, f"the model at {self.url} has no room for more")
        return scored

    def _again(self, attempt: int, outcome: Any) -> float | None:
        """Seconds to wait before trying again; None for a response that is final; Failed at the end."""
        if isinstance(outcome, Exception):
            if attempt < self._retries:
                return protocol.wait(attempt, None)
            tried = f" ({attempt + 1} attempts)" if attempt else ""
            raise Failed(protocol.explain(outcome) + tried, lost=True) from outcome
        if outcome.status_code in protocol.TRANSIENT and attempt < self._retries:
            return protocol.wait(attempt, outcome.headers.get("retry-after"))
        return None


def _address(url: str) -> "httpx2.URL":
    """`url`, parsed; InputError if it is no server's address."""
    with contextlib.suppress(httpx2.InvalidURL, TypeError):
        parsed = httpx2.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    raise InputError(f"{url!r} is no server's address; expected one like 'http://127.0.0.1:8000'")


class RemoteScorer(_Remote):
    """See `connect`. Every verb of `Scorer` that returns scores; `batch_size` is images a request.

    Images go without loss: files and bytes as they are, all else as PNG. What the server cannot
    score is a RemoteError: its `causes` name the rows, its `scores` hold the others.
    """

    def __init__(self, url: str, **options):
        super().__init__(url, **options)
        self._clients: dict[tuple[int, int], httpx2.Client] = {}

    def __enter__(self) -> "RemoteScorer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connections; the scorer cannot be used afterwards."""
        self._unusable = CLOSED
        if client := self._clients.pop(process_key(), None):
            client.close()

    def _client(self) -> "httpx2.Client":
        """This process's client, made on first use. Used from any thread."""
        self._check_usable()
        key = process_key()
        if (client := self._clients.get(key)) is None:
            # Of two threads that come here at once, both get the one that was stored first.
            client = self._clients.setdefault(key, httpx2.Client(**self._options))
            # Dropped, not closed: closing would talk over connections that are the parent's.
            for other in [each for each in self._clients if each != key]:
                self._clients.pop(other, None)
        return client

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
                outcome = self._client().request(method, path, **content)
            except httpx2.RequestError as error:
                outcome = error
            delay = self._again(attempt, outcome)
            if delay is None:
                return protocol.answer_of(outcome)
            attempt += 1
            time.sleep(delay)


class _LoopClient(NamedTuple):
    """One event loop's connections, and its turns: at most so many requests at a time."""

    process: tuple[int, int]
    http: "httpx2.AsyncClient"
    turn: asyncio.Semaphore


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
        # A connection belongs to the event loop that opened it, as well as to its process.
        self._clients: dict[asyncio.AbstractEventLoop, _LoopClient] = {}

    async def __aenter__(self) -> "AsyncRemoteScorer":
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    async def close(self) -> None:
        """Close this event loop's connections; the scorer cannot be used afterwards."""
        self._unusable = CLOSED
        held = self._clients.pop(asyncio.get_running_loop(), None)
        if held is not None and held.process == process_key():
            await held.http.aclose()

    def _client(self) -> "_LoopClient":
        """The running event loop's client, made on first use."""
        self._check_usable()
        loop, process = asyncio.get_running_loop(), process_key()
        held = self._clients.get(loop)
        if held is None or held.process != process:
            # A parent's clients stay untouched: its event loop watches their sockets.
            for each in [each for each in self._clients if each.is_closed()]:
                self._clients.pop(each, None)
            turn = asyncio.Semaphore(self._connections)
            held = self._clients[loop] = _LoopClient(process, httpx2.AsyncClient(**self._options), turn)
        return held

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
        async with (
            self._client().turn
        ):  # not the connection pool's, whose queue counts as waiting for an answer
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
                outcome = await self._client().http.request(method, path, **content)
            except httpx2.RequestError as error:
                outcome = error
            delay = self._again(attempt, outcome)
            if delay is None:
                return protocol.answer_of(outcome)
            attempt += 1
            await asyncio.sleep(delay)
