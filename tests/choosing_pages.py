"""A page for choosing that runs in a thread, and pictures to choose from, for tests."""

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from personal_choices import rankings

from benchmarks.lib.serving import wait_until
from imagereward.choosing.app import create_app
from imagereward.choosing.session import Session
from imagereward.serve.run import server


@contextmanager
def running(session: Session, token: str | None = None):
    made = server(create_app(session, token), "127.0.0.1", 0)
    made.config.log_level = "critical"
    made.config.configure_logging()
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        wait_until(lambda: made.started or not thread.is_alive())
        yield f"http://127.0.0.1:{made.servers[0].sockets[0].getsockname()[1]}"
    finally:
        made.should_exit = True
        thread.join()


def reds(folder: Path) -> Path:
    """Write two pictures, which differ in red, for each of eight prompts, and return their table."""
    records = [{"prompt": each["prompt"], "images": []} for each in rankings(8, 2)]
    for row, (record, drawn) in enumerate(zip(records, rankings(8, 2))):
        for place, image in enumerate(drawn["images"]):
            image.save(folder / f"{row}-{place}.png")
            record["images"].append(f"{row}-{place}.png")
    table = folder / "prompts.jsonl"
    rows = [{"prompt": each["prompt"], "image": name} for each in records for name in each["images"]]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def say_better(monkeypatch, better: bool) -> None:
    """Let every training say that its adapter is better than the scorer, or that it is not."""
    from imagereward.tuning.personal import train

    real = train.personalise_scorer

    def found(*args, **options):
        result = real(*args, **options)
        gain = (0.2, 0.1, 0.3) if better else (0.0, -0.1, 0.1)
        return result._replace(summary=replace(result.summary, gain=gain, adapted=(0.8, 0.7, 0.9)))

    monkeypatch.setattr(train, "personalise_scorer", found)
