"""The index of benchmarks: command, results file, machine and minutes of every number in the pages."""

import json
from pathlib import Path

from markup import cell, code, table

from benchmarks.lib.paths import RESULTS, ROOT
from benchmarks.lib.render import PAGES

# What a results file's name begins with -> (what it measures, the command that writes it).
COMMANDS = {
    "throughput": (
        "speed, memory and error of ImageReward at full size",
        "python -m benchmarks.scoring.throughput",
    ),
    "bulk": ("scoring of tables: speed, overhead, memory, kills, cache", "python -m benchmarks.scoring.bulk"),
    "serve": ("the server: throughput, CPU time, latency, answers", "python -m benchmarks.scoring.serve"),
    "tiny-drawings": (
        "faithfulness of the tiny generators' images",
        "python -m benchmarks.toy_models.drawings",
    ),
    "tiny": (
        "accuracy of ImageReward-tiny on pairs of Shapes",
        "python -m benchmarks.toy_models.imagereward_tiny WORKDIR",
    ),
    "shapes-measure": (
        "accuracy of the measure of Shapes",
        "python -m benchmarks.shapes.measure_accuracy",
    ),
    "training-step": (
        "time and memory of a training step of the full-size reward model",
        "python -m benchmarks.training.training_step",
    ),
    "refl-step": (
        "time and memory of a ReFL step at Stable Diffusion 1.5's size",
        "python -m benchmarks.training.refl_step",
    ),
    "fits": ("memory of an update at real sizes, counted", "python -m benchmarks.training.fits"),
    "finetune-flow": (
        "GRPO and ReFL on the tiny flow model",
        "python -m benchmarks.training.finetune_flow WORKDIR",
    ),
    "finetune": (
        "ReFL, DRaFT, AlignProp and best of 8 on the tiny Stable Diffusion",
        "python -m benchmarks.training.finetune WORKDIR",
    ),
}


def page() -> str:
    """Markdown: a row a results file."""
    rows = [_row(path) for path in sorted(RESULTS.glob("*.json"))]
    return table(("measures", "shown in", "command", "results file", "minutes", "measured on"), rows)


def command_of(name: str) -> tuple[str, str]:
    """(what is measured, command) of a results file. Raises KeyError for a file of no known benchmark."""
    return COMMANDS[max((each for each in COMMANDS if name.startswith(each)), key=len, default=name)]


def _row(path: Path) -> tuple[str, ...]:
    result = json.loads(path.read_text(encoding="utf-8"))
    measures, command = command_of(path.stem)
    shown = [page for page in PAGES if f"<!-- {path.stem} -->" in page.read_text(encoding="utf-8")]
    machine = result["environment"]
    where = (
        f"{machine['device']}, {machine['threads']} threads; commit {machine['commit']}, {machine['date']}"
    )
    return (
        cell(measures),
        ", ".join(_link(page) for page in shown),
        code(command),
        code(path.relative_to(ROOT)),
        minutes(result),
        cell(where),
    )


def _link(page: Path) -> str:
    """A link as a page in docs/ would write it; the hook turns it into one within the site."""
    inside = page.is_relative_to(ROOT / "docs")
    target = page.name if inside else f"../{page.relative_to(ROOT)}"
    return f"[{page.name if inside else page.relative_to(ROOT)}]({target})"


def minutes(result: dict) -> str:
    """Minutes of training that the results file gives, in words; nothing where it gives none."""
    if "seconds" in result:
        return f"{sum(result['seconds'].values()) / 60:.0f}"
    spent = [row["minutes"] for row in result.get("rows", []) if row.get("minutes")]
    if spent and "runs" in result:
        return f"up to {max(spent):.0f} a run, {len(spent) * result['runs']} runs"
    return f"{sum(spent):.0f}" if spent else ""
