"""docs/personal.md, as written: from a folder to an adapter with the tiny model, and its Python."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx2

import imagereward as RM
from benchmarks.lib.serving import wait_until

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "imagereward"]
# What makes the commands of the page quick; everything else stays as it is written there.
QUICK = {"shapes": ["--prompts", "20"], "tune": ["folds=2", "epochs=1", "device=cpu"]}


def quick(command: str) -> list[str]:
    """The words of a command of the page after `imagereward`, with fewer prompts and epochs."""
    words = shlex.split(command)[1:]
    if words[0] == "shapes":
        at = words.index("--prompts")
        words[at + 1] = QUICK["shapes"][1]
        return words
    return [*words, *QUICK.get(words[0], [])]


def test_the_page_takes_a_reader_from_a_folder_to_an_adapter(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/personal.md").read_text(encoding="utf-8")
    commands = re.search(r"```bash\n(imagereward shapes.*?)```", page, re.DOTALL)[1].splitlines()
    assert [line.split()[1] for line in commands] == ["shapes", "choose", "tune", "score"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    options = {"cwd": tmp_path, "env": environment, "text": True}

    subprocess.run([*COMMAND, *quick(commands[0])], check=True, capture_output=True, **options)
    choosing = subprocess.Popen(
        [*COMMAND, *quick(commands[1]), "--port", "0"], stderr=subprocess.PIPE, **options
    )
    try:
        found = None
        while not found:
            line = choosing.stderr.readline()
            assert line, "the page did not start"
            found = re.search(r"choose at (http://\S+/);", line)
        _choose(found[1], 12)
        choosing.send_signal(signal.SIGINT)
        assert "12 choices are in" in choosing.stderr.read()
        assert choosing.wait(60) == 0
    finally:
        choosing.kill()
    assert len((tmp_path / "shapes-60/choices.jsonl").read_text().splitlines()) == 12

    tuned = subprocess.run([*COMMAND, *quick(commands[2])], capture_output=True, **options)
    assert tuned.returncode == 0, tuned.stderr
    assert "verdict: " in tuned.stderr
    assert "RM.load('ImageReward-tiny', adapter='my-taste')" in tuned.stderr
    images = sorted((tmp_path / "shapes-60/images/test").glob("*-0.png"))
    words = [word for word in quick(commands[3]) if not word.endswith("*-0.png")]
    scored = subprocess.run([*COMMAND, *words, *map(str, images)], capture_output=True, **options)
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.count("-0.png") == len(images)

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block.replace("epochs=4", "epochs=1"), names)
    on, off = (eval(line) for line in capsys.readouterr().out.splitlines()[:2])
    assert len(on) == len(off) == 2
    assert on != off
    assert names["summary"].choices <= 12
    assert not len(names["model"].adapters)
    assert list(RM.load("ImageReward-tiny", "cpu", adapter="my-taste").adapters) == ["my-taste"]


def _choose(url: str, count: int) -> None:
    """Answer questions of the page: the image of the lower number is better, in turns of sides."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        wait_until(lambda: _answers(client))
        for _ in range(count):
            images = client.get("state").json()["question"]["images"]
            ranking = [1, 2] if images[0] < images[1] else [2, 1]
            answer = client.post("choose", json={"images": images, "ranking": ranking})
            assert answer.status_code == 200, answer.text


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("state").status_code == 200
    except httpx2.TransportError:
        return False
