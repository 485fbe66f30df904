"""The page about inpainting: every command of its shell blocks runs, on the tiny inpainting model."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from benchmarks.lib.paths import TINY_INPAINT
from benchmarks.scoring import inpainting
from benchmarks.toy_models.tiny_inpaint import start
from imagereward import cli
from imagereward.inpainting.writing import write_data

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/inpainting.md"
MODEL = "benchmarks/toy_models/tiny-inpaint"
# What trainings are cut down to, so that the page runs in a minute.
SMALL = ["updates=1", "batch_size=4", "micro_batch=4", "evaluation.count=2", "evaluation.seeds=1", "steps=3"]
CUT = {
    "tiny/inpaint_refl": ["gradient.first_step=1", "gradient.last_step=2"],
    "tiny/inpaint_grpo": ["group=2", "window.size=1", "window.last=1"],
    "tiny/inpaint_dpo_online": ["group=2", "times.count=1"],
}


def commands() -> list[list[str]]:
    """The command lines of the page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def cut_down(words: list[str], model: Path) -> list[str]:
    """The command with small numbers, on the model of this test."""
    small = [str(model) if word == MODEL else word.replace(MODEL, str(model)) for word in words]
    for option, number in (("--count", "6"), ("--most", "2")):
        if option in small:
            small[small.index(option) + 1] = number
    if small[1] in ("tune", "preprocess"):
        small += [*(SMALL if small[1] == "tune" else []), f"model={model}"]
        small += CUT[small[2]] if small[1] == "tune" else []
    if small[1] == "compare":
        small += ["--steps", "2", "--seeds", "1"]
    if small[0] == "python":
        small += ["--steps", "2"]
    if "--processes" in small:  # test_inpainting_data.py has several
        small[small.index("--processes") + 1] = "1"
    return small


def run(words: list[str], monkeypatch) -> None:
    """Run a command in this process, which has imported torch already. Raises AssertionError if it fails."""
    name = words[2] if words[0] == "python" else words[0]
    monkeypatch.setattr(sys, "argv", [name, *words[3 if words[0] == "python" else 1 :]])
    code = None
    try:
        {"imagereward": cli.main, "benchmarks.scoring.inpainting": inpainting.main}[name]()
    except SystemExit as ended:
        code = ended.code
    assert not code, words


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The tiny inpainting model; before it is trained, the pipeline that its training starts from."""
    if (TINY_INPAINT / "model_index.json").is_file():
        return TINY_INPAINT
    path = tmp_path_factory.mktemp("model")
    start().save_pretrained(path)
    return path


def test_the_page_s_commands_run(model, tmp_path, monkeypatch):
    write_data(tmp_path / "photos", "shapes", count=3, progress=False)
    records = [{"prompt": f"a photo {at}", "image": f"photos/originals/00000{at}.png"} for at in range(3)]
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    painted = [{**record, "mask": f"photos/masks/00000{at}.png"} for at, record in enumerate(records)]
    (tmp_path / "painted-images.jsonl").write_text("".join(json.dumps(each) + "\n" for each in painted))
    found = commands()
    assert {words[1] for words in found} >= {"masks", "preprocess", "tune", "compare", "score-table"}
    monkeypatch.chdir(tmp_path)
    for words in found:
        run(cut_down(words, model), monkeypatch)
    for name in (
        "painted/contact-sheet.png",
        "held-out/rows.jsonl",
        "cache/latents.json",
        "tuned/model_index.json",
        "tuned-grpo/model_index.json",
        "tuned-dpo/model_index.json",
        "before-after.html",
        "table/details.csv",
        "table/results.html",
        "scores.csv",
    ):
        assert (tmp_path / name).is_file(), name
    history = json.loads((tmp_path / "tuned-grpo/history.json").read_text())
    logged = {key for entry in history for key in entry}
    assert {"reward/inside(ImageReward-tiny, 48)", "reward/boundary"} <= logged


def test_the_page_names_every_recipe_of_regions():
    from imagereward.tuning.recipe import recipe_names

    text = PAGE.read_text()
    for name in recipe_names():
        if "region" in name or name.startswith("tiny/inpaint"):
            assert name in text
