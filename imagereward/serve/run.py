"""Runs the reward server with uvicorn, from the command line until SIGTERM; reads its token."""

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
from imagereward.scoring.api import PairScorer
from imagereward.serve.app import create_app
from imagereward.serve.connections import BoundedProtocol, Connections

TOKEN_VARIABLE = "IMAGEREWARD_TOKEN"
# Seconds after SIGTERM for requests that are being answered.
DRAIN = 60


def run(scorers: Sequence[PairScorer], host: str, port: int, **options) -> None:
    """Serve the scorers by their names until SIGTERM or SIGINT; requests in progress get up to 60 s more.

    `options` are those of `create_app`. Raises InputError for two scorers of one name.
    """
    app = create_app(by_name(scorers), **options)
    if not options.get("token") and not is_loopback(host):
        logging.getLogger("uvicorn.error").warning(
            "%s is open to other machines and asks for no token: set %s or --token-file", host, TOKEN_VARIABLE
        )
    # python_multipart warns about every malformed form; the client reads that error in its answer.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    _allow_many_connections()
    run_until_stopped(server(app, host, port))


def run_until_stopped(running: uvicorn.Server) -> None:
    """Run a server until SIGTERM or SIGINT. InputError if it cannot listen, as on a port that is taken."""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            running.run()
    except SystemExit as stop:  # uvicorn's code 3 has another meaning in this package's command
        if running.started:
            raise
        where = f"{running.config.host}:{running.config.port}"
        raise InputError(f"the server cannot listen on {where}, as said above: try another port") from stop


def server(app: FastAPI, host: str, port: int) -> uvicorn.Server:
    """The uvicorn server of the app, not yet running; port 0 stands for any free port."""
    connections: Connections = app.state.connections

    class Protocol(BoundedProtocol):  # based on h11, which bounds the size of headers
        def __init__(self, config, server_state, app_state, **more):
            super().__init__(connections, config, server_state, app_state, **more)

    options: dict[str, Any] = {"http": Protocol, "ws": "none", "access_log": False, "server_header": False}
    return uvicorn.Server(
        uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=DRAIN, **options)
    )


def by_name(scorers: Sequence[PairScorer]) -> dict[str, PairScorer]:
    """{name: scorer}; InputError if two scorers have the same name."""
    names = [scorer.name for scorer in scorers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two models are called {twice[0]!r}: rename a directory or file")
    return dict(zip(names, scorers))


def read_token(path: Path | None) -> str | None:
    """The token in the file, or else in the variable IMAGEREWARD_TOKEN; None if neither is given.

    Raises InputError for a file that cannot be read and for a token that no header can carry.
    """
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
    """Raise the soft limit of open files, which is 1024 on many systems, to at most 65536."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    if soft not in (resource.RLIM_INFINITY,) and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
