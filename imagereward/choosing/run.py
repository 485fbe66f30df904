"""Runs the page with uvicorn until Ctrl-C."""

import secrets
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from imagereward.choosing.app import create_app
from imagereward.choosing.candidates import Candidates, read_candidates
from imagereward.choosing.journal import Journal
from imagereward.choosing.learning import trainer, why_not
from imagereward.choosing.saved import Saved
from imagereward.choosing.session import Session
from imagereward.config import AdapterConfig
from imagereward.scoring.api import PairScorer
from imagereward.scoring.scorer import Scorer
from imagereward.serve.run import is_loopback, run_until_stopped, server


def run(
    load: Callable[[], PairScorer],
    folder: Path,
    prompts: Path | None,
    choices: Path,
    adapter: Path,
    *,
    kind: str,
    host: str,
    port: int,
    seed: int,
    shown: int,
) -> None:
    """Serve the page until Ctrl-C; the address is printed to stderr.

    load     gives the scorer, after folder and choices were found to be in order
    prompts, choices, adapter   see `imagereward choose`
    """
    saved = Saved(adapter.expanduser(), choices.expanduser().resolve(), kind)
    AdapterConfig(kind, saved.name)  # a wrong kind or name is refused before anything is loaded
    candidates = read_candidates(folder, prompts)
    saved.check()
    with Journal(choices) as journal:
        session = _session(load(), candidates, journal, saved, seed, shown)
        token = None if is_loopback(host) else secrets.token_urlsafe(16)
        port = port or _free_port(host)
        running = server(create_app(session, token), host, port)
        running.config.log_level = "warning"
        running.config.configure_logging()
        query = "" if token is None else f"?token={token}"
        print(f"{len(candidates.pairs)} pairs of {len(candidates.images)} images", file=sys.stderr)
        if session.no_training:
            print(f"choices are only collected: {session.no_training}", file=sys.stderr)
        address = f"[{host}]" if ":" in host else host
        print(f"choose at http://{address}:{port}/{query}; Ctrl-C ends", file=sys.stderr)
        run_until_stopped(running)
        print(f"{len(journal.records)} choices are in {journal.path}", file=sys.stderr)


def _session(
    scorer: PairScorer, candidates: Candidates, journal: Journal, saved: Saved, seed: int, shown: int
) -> Session:
    reason = why_not(scorer, saved)
    if reason or not isinstance(scorer, Scorer):
        return Session(scorer, candidates, journal, None, seed, shown, no_training=reason)
    train, restore = trainer(scorer, saved), partial(saved.restore, scorer)
    return Session(scorer, candidates, journal, train, seed, shown, restore=restore)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
