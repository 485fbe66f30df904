"""RemoteBase: the settings of a reward server's client, and how the client is copied and pickled."""

import contextlib
import math
import os
from multiprocessing.context import get_spawning_popen
from typing import Any, NoReturn, Self

from imagereward.config import whole_number
from imagereward.errors import InputError, RemoteError, missing_extra
from imagereward.remote import protocol
from imagereward.scoring.api import PairScorer

try:
    import httpx2
except ImportError:  # in an extra; RemoteBase() names the extra, so that this module imports without it
    httpx2 = None  # type: ignore[assignment]

TOKEN_VARIABLE = "IMAGEREWARD_TOKEN"
CLOSED = "is closed: connect again"


class RemoteBase(PairScorer):
    """The settings of a client, blocking or async; copies and pickles hold the settings alone.

    url          the server's address, such as "http://host:8000"; may have a user name and a password
    token        sent as a Bearer token; default: the environment variable IMAGEREWARD_TOKEN, if set
    timeout      seconds to wait for an answer; connecting takes at most 10 of them
    retries      number of retries of a request that found the server full, restarting or gone
    connections  most connections at a time

    Raises InputError for an invalid address, token or number; MissingExtraError without httpx2.
    """

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
        address = parse_address(url)
        # Messages and logs, also those of httpx2, show the address, so user name and password are removed.
        self.url = str(address.copy_with(username=None, password=None)).rstrip("/")
        self.name = self.url
        self.limits: dict[str, int] = {}
        self.retries = whole_number("retries", retries, 0)
        self.connections = whole_number("connections", connections, 1)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise InputError(f"timeout={timeout!r}: expected a number of seconds above 0")
        self._settings: dict[str, Any] = {
            "url": url,
            "token": token,
            "timeout": timeout,
            "retries": retries,
            "connections": connections,
        }
        self._withheld = False  # whether the pickle that this client was loaded from leaves a secret out
        self._unusable: str | None = None  # the reason if no request can be sent
        given = os.environ.get(TOKEN_VARIABLE) if token is None else token
        given = protocol.checked_token(given, "the token") if given else None
        if given and address.userinfo:
            raise InputError(f"{self.url}: give a token, or a user name in the address, not both")
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "auth": (address.username, address.password) if address.userinfo else None,
            "headers": {"Authorization": f"Bearer {given}"} if given else {},
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, 10.0), pool=None),
            "limits": httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, model={self.name!r})"

    def __getstate__(self) -> dict[str, Any]:
        settings = dict(self._settings)
        # As multiprocessing does with its own keys, give secrets to worker processes, but not to files.
        if (settings["token"] or self._options["auth"]) and get_spawning_popen() is None:
            settings |= {"token": None, "url": self.url}
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
                "was pickled, and a pickle leaves the token or password out: set the environment variable "
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
        """Set the model, and the server's limits, from the answer `offered` of `ask_models`.

        model  the model's name; default: the first of the answer

        Raises InputError for a model that the server lacks, RemoteError for an answer in another form.
        """
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
        """Always raises InputError: a server gives scores without gradients."""
        raise InputError(
            "a remote scorer has no `reward`: gradients do not travel over HTTP. Load the model where "
            f"you train, with imagereward.load({self.name!r}), or train from scores, without gradients"
        )


def parse_address(url: str) -> "httpx2.URL":
    """The parsed address; InputError if it is no http:// or https:// address with a host."""
    with contextlib.suppress(httpx2.InvalidURL, TypeError):
        parsed = httpx2.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    raise InputError(
        f"{without_secrets(url)!r} is no server's address; expected one like 'http://127.0.0.1:8000'"
    )


def without_secrets(url: object) -> str:
    """An address as messages show it: without user name and password, which end in @."""
    text = str(url)
    if "@" not in text:
        return text
    scheme, separator, _ = text.partition("://")
    return (f"{scheme}://" if separator and "@" not in scheme else "") + text.rpartition("@")[2]
