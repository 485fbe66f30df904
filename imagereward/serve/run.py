"""The server's process: uvicorn around the app, from the command line to SIGTERM."""

import contextlib
import logging
import os
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from imagereward.errors import InputError
from imagereward.scorer import Scorer
from imagereward.serve.app import create_app

TOKEN_VARIABLE = "IMAGEREWARD_TOKEN"
# Seconds after SIGTERM in which requests that are being answered may finish.
DRAIN = 60


def run(scorers: Sequence[Scorer], host: str, port: int, **options) -> None:
    """Serve the scorers by their names until SIGTERM or SIGINT, then finish what was asked.

    `options` are those of `create_app`. Raises InputError for two scorers of one name.
    """
    app = create_app(by_name(scorers), **options)
    if not options.get("token") and not _is_loopback(host):
        logging.getLogger("uvicorn.error").warning(
            "%s is open to other machines and asks for no token: set %s or --token-file", host, TOKEN_VARIABLE
        )
    # It would log every malformed form: the answer says what is wrong, and who asked reads it.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    with contextlib.suppress(KeyboardInterrupt):
        server(app, host, port).run()


def server(app: FastAPI, host: str, port: int) -> uvicorn.Server:
    """What runs the app; port 0 is any free one."""
    # h11, because it bounds the size of headers.
    options: dict[str, Any] = {"http": "h11", "ws": "none", "access_log": False, "server_header": False}
    return uvicorn.Server(
        uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=DRAIN, **options)
    )


def by_name(scorers: Sequence[Scorer]) -> dict[str, Scorer]:
    """The scorers under their names; InputError if two have the same."""
    names = [scorer.name for scorer in scorers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two models are called {twice[0]!r}: rename a directory or file")
    return dict(zip(names, scorers))


def read_token(path: Path | None) -> str | None:
    """The token in the file, else in the environment; None if there is neither. InputError if it is empty."""
    if path is not None:
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the token file {path} cannot be read: {error}") from error
        where = str(path)
    elif TOKEN_VARIABLE in os.environ:
        token, where = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return None
    if not token:
        raise InputError(f"the token in {where} is empty")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
