"""Runs the page with uvicorn until Ctrl-C; trains the adapter when the page asks for it."""

import contextlib
import copy
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagereward.choosing.app import create_app
from imagereward.choosing.candidates import read_candidates
from imagereward.choosing.journal import Journal
from imagereward.choosing.session import ScoreAll, Session, Train, Trained
from imagereward.config import AdapterConfig
from imagereward.errors import InputError
from imagereward.scoring.scorer import Scorer
from imagereward.serve.run import is_loopback, server

REFITS = 4  # adapters on resampled choices, after each training


def run(
    load: Callable[[], Scorer],
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
    AdapterConfig(kind, name_of(adapter))  # a wrong kind or name is refused before anything is loaded
    candidates, journal = read_candidates(folder, prompts), Journal(choices)
    if adapter.exists() and not (adapter / "adapter.safetensors").is_file() and any(adapter.iterdir()):
        raise InputError(
            f"--adapter {adapter} holds something else than an adapter; choose another directory"
        )
    scorer = load()
    session = Session(scorer, candidates, journal, trainer(scorer, adapter, kind), seed, shown)
    token = None if is_loopback(host) else secrets.token_urlsafe(16)
    port = port or _free_port(host)
    running = server(create_app(session, token), host, port)
    running.config.log_level = "warning"
    running.config.configure_logging()
    query = "" if token is None else f"?token={token}"
    print(f"{len(candidates.pairs)} pairs of {len(candidates.images)} images", file=sys.stderr)
    print(f"choose at http://{host}:{port}/{query}; Ctrl-C ends", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        running.run()
    print(f"{len(journal.records)} choices are in {journal.path}", file=sys.stderr)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def name_of(adapter: Path) -> str:
    """The adapter's name: that of its directory, with what a name cannot hold replaced by "-"."""
    name = adapter.expanduser().resolve().name
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def trainer(scorer: Scorer, adapter: Path, kind: str, folds: int = 5, **settings: Any) -> Train:
    """The function that a `Session` trains with: on a copy of the scorer; the adapter is saved each time.

    Then `REFITS` adapters learn from resampled choices for as many epochs: where they disagree, more choices
    would tell most.

    folds, settings  further keys of the recipe imagereward/personal
    """

    def train(choices: Path, score: ScoreAll) -> Trained:
        from imagereward.tuning.config import build
        from imagereward.tuning.personal.bootstrap import refits
        from imagereward.tuning.personal.choices import read_choices
        from imagereward.tuning.personal.config import LearningConfig
        from imagereward.tuning.personal.train import personalise_scorer, save_result

        learner, read = copy.deepcopy(scorer), read_choices(choices)
        config = build(LearningConfig, {"kind": kind, **settings}, "imagereward choose")
        found = personalise_scorer(learner, read, config, name_of(adapter), folds=folds)
        adapter.mkdir(parents=True, exist_ok=True)
        summary = save_result(found.adapter, found.summary, adapter)
        scores = score(learner)
        return Trained(scores, refits(learner, read, config, summary.epochs, REFITS, score), summary)

    return train
