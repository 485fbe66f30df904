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
from imagereward.remote.protocol import checked_token
from imagereward.scoring.scorer import Scorer
from imagereward.serve.app import create_app
from imagereward.serve.connections import BoundedProtocol, Connections

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
    _allow_many_connections()
    with contextlib.suppress(KeyboardInterrupt):
        server(app, host, port).run()


def server(app: FastAPI, host: str, port: int) -> uvicorn.Server:
    """What runs the app; port 0 is any free one."""
    connections: Connections = app.state.connections

    class Protocol(BoundedProtocol):  # h11's, because it bounds the size of headers
        def __init__(self, config, server_state, app_state, **more):
            super().__init__(connections, config, server_state, app_state, **more)

    options: dict[str, Any] = {"http": Protocol, "ws": "none", "access_log": False, "server_header": False}
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
    """The token in the file, else in the environment; None if there is neither. InputError for one that no
    header can carry."""
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
    return checked_token(token, f"the token in {where}")


def _allow_many_connections() -> None:
    """Raise the limit of open files as far as it may be: many systems begin with 1024."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    if soft not in (resource.RLIM_INFINITY,) and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
