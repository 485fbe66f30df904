"""ChatClient: sends chat completions to one address, with retries, budgets, and a key."""

import os
import threading
from typing import Any

from imagereward.errors import InputError, RemoteError, missing_extra
from imagereward.remote import protocol
from imagereward.remote.base import parse_address
from imagereward.remote.chat import Reply, replies_of, usage_of
from imagereward.remote.forking import process_key
from imagereward.remote.threads import wait

try:
    import httpx2
except ImportError:  # in an extra, which ChatClient() names
    httpx2 = None  # type: ignore[assignment]

RETRIED = (408, 409, 429, 500, 502, 503, 504)
PATH = "/chat/completions"
SHOWN = 300  # characters of an answer in a message


class ChatClient:
    """Requests to an OpenAI-compatible address; may be used from several threads, and pickled.

    url           the address up to the version
    key_variable  environment variable with the key, which is read for every request and kept nowhere
    timeout       seconds to wait for an answer
    retries       of a request that found the server full, restarting or gone
    tokens        most tokens, read and written, as the server counts them; None: no limit. No request begins
                  after that; those under way then may exceed it
    requests      most requests, tries that failed included; None: no limit

    `used` counts requests and tokens. Raises InputError for an invalid address, or one with a user name;
    MissingExtraError without httpx2.
    """

    def __init__(
        self,
        url: str,
        key_variable: str,
        timeout: float = 120.0,
        retries: int = 5,
        tokens: int | None = None,
        requests: int | None = None,
    ):
        if httpx2 is None:
            raise missing_extra("a remote judge", "serve")
        address = parse_address(url)
        if address.userinfo:
            raise InputError(
                f"an address with a user name: a judge takes its key from the variable {key_variable}"
            )
        self.url = str(address).rstrip("/")
        self.key_variable, self.timeout, self.retries = key_variable, timeout, retries
        self.tokens, self.requests = tokens, requests
        self.used = {"requests": 0, "tokens read": 0, "tokens written": 0}
        self._locks: dict[tuple[int, int], threading.Lock] = {}
        self._clients: dict[tuple[int, int], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_locks", "_clients")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._locks, self._clients = {}, {}

    @property
    def _lock(self) -> threading.Lock:
        """This process's lock: one that was held during a fork would stay held in the child."""
        return self._locks.setdefault(process_key(), threading.Lock())

    def reply(self, body: dict[str, Any]) -> Reply:
        """The reply to a request, tried again where the server may recover.

        RemoteError with the cause, permanent if the server refused the request's content.
        """
        cause = ""
        for attempt in range(self.retries + 1):
            self._begin(cause)
            try:
                response = self._post(body)
            except httpx2.RequestError as error:
                cause, after = f"{type(error).__name__}: {error}", None
            else:
                if response.status_code == 200:
                    return self._counted(response)
                cause, after = self._refusal(response), response.headers.get("Retry-After")
                if response.status_code not in RETRIED:
                    raise RemoteError(cause, permanent=response.status_code in protocol.REFUSED)
            if attempt < self.retries:
                wait(protocol.wait(attempt, after))
        raise RemoteError(cause)

    def _begin(self, cause: str) -> None:
        """Count a request that is about to be sent; RemoteError if a budget is used up.

        cause  why the try before failed; "": it is the first
        """
        with self._lock:
            used = self.used["tokens read"] + self.used["tokens written"]
            spent = {"tokens": (used, self.tokens), "requests": (self.used["requests"], self.requests)}
            for name, (count, most) in spent.items():
                if most is not None and count >= most:
                    last = f"; the try before failed with {cause}" if cause else ""
                    raise RemoteError(f"the budget of {name}={most} is used up{last}")
            self.used["requests"] += 1

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {}
        if key := os.environ.get(self.key_variable):
            checked = protocol.checked_token(key, f"the key in {self.key_variable}")
            headers["Authorization"] = f"Bearer {checked}"
        return self._client().post(self.url + PATH, json=body, headers=headers)

    def _client(self) -> Any:
        key = process_key()
        with self._lock:
            if key not in self._clients:
                self._clients = {key: httpx2.Client(timeout=self.timeout)}
            return self._clients[key]

    def _refusal(self, response: Any) -> str:
        return f"HTTP {response.status_code}: {self._shown(response.text)}"

    def _shown(self, text: str) -> str:
        """The beginning of what the server wrote, without the key: it is replaced before the text is cut."""
        if key := os.environ.get(self.key_variable, "").strip():
            text = text.replace(key, "***")
        return text[:SHOWN]

    def _counted(self, response: Any) -> Reply:
        try:
            body = response.json()
            (reply,) = replies_of(body)
        except ValueError:
            raise RemoteError(
                f"{self.url} answered in another form than a chat completion: {self._shown(response.text)}"
            ) from None  # the cause would show the answer with the key
        read, written = usage_of(body)
        with self._lock:
            self.used["tokens read"] += read
            self.used["tokens written"] += written
        return reply
