"""The table of released scorers: facts from the registry, and what committed results say of them."""

import json

import torch
from markup import cell, code, table

from benchmarks.lib.paths import RESULTS
from imagereward.checkpoints.registry import REGISTRY, Checkpoint
from imagereward.models import model_class

# `Preprocess.recipe` -> the part of an image that the model sees.
SEEN = {
    "clip": "short side to {size}, centre square",
    "transformers": "short side to {size}, centre square",
    "pad": "long side to {size}, padded with black",
}


def page() -> str:
    """Markdown: one row for each scorer."""
    rows = [_row(name, entry) for name, entry in REGISTRY.items()]
    head = (
        "scorer",
        "score",
        "parameters, millions",
        "prompt tokens",
        "image, pixels",
        "measured here",
        "licence of the weights",
        "paper",
    )
    return table(head, rows)


def _row(name: str, entry: Checkpoint) -> tuple[str, ...]:
    size = entry.config.preprocess.size
    ignores_prompt = entry.config.kind == "Aesthetic"
    return (
        code(name),
        cell(entry.scores),
        f"{_parameters(entry) / 1e6:.1f}",
        "–" if ignores_prompt else str(entry.config.max_length),
        SEEN[entry.config.preprocess.resizing].format(size=size),
        measured(name),
        entry.licence,
        _paper(entry.paper),
    )


def _parameters(entry: Checkpoint) -> int:
    """Weights of the network, counted without memory for them."""
    with torch.device("meta"):
        scorer = model_class(entry.config.kind)(entry.config)
    return sum(each.numel() for each in scorer.parameters())


def _paper(paper: str) -> str:
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return f"[card](../imagereward/{paper})" if paper.endswith(".md") else paper


def measured(name: str) -> str:
    """Speed or accuracy of a scorer, with the results file's name; nothing where no file has it."""
    if name == "ImageReward-v1.0":
        result = _result("throughput-cpu")
        speed = next(row["per_s"] for row in result["scoring"] if row["what"] == "score, float32")
        threads = result["environment"]["threads"]
        source = "[throughput-cpu](benchmarks.md#throughput-cpu)"
        return f"{speed:.2f} images/s in float32 on {threads} CPU threads ({source})"
    if name == "ImageReward-tiny":
        row = next(row for row in _result("tiny")["rows"] if row["pairs"] == "all clear pairs")
        return f"{row['accuracy']:.1%} of clear pairs of Shapes ([tiny](benchmarks.md#tiny))"
    return ""


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
