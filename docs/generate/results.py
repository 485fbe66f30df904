"""The index of benchmarks: command, results file, machine and minutes of every number in the pages."""

import json
from pathlib import Path

from markup import code

from benchmarks.lib.paths import RESULTS, ROOT
from benchmarks.pages.render import PAGES

# What a results file's name begins with -> (what it measures, the command that writes it).
COMMANDS = {
    "throughput": (
        "speed, memory and error of ImageReward at full size",
        "python -m benchmarks.scoring.throughput",
    ),
    "bulk": ("scoring of tables: speed, overhead, memory, kills, cache", "python -m benchmarks.scoring.bulk"),
    "serve": ("the server: throughput, CPU time, latency, answers", "python -m benchmarks.scoring.serve"),
    "judges": (
        "CPU time of vision-language scorers: ten prompts an image against one, and a plain loop",
        "python -m benchmarks.scoring.judges",
    ),
    "judge-costs": (
        "tokens and operations of judging a thousand images, counted",
        "python -m benchmarks.scoring.judge_costs",
    ),
    "refused-requests": (
        "memory and answers of a server under requests that it refuses",
        "python -m benchmarks.scoring.refused_requests",
    ),
    "tiny-drawings": (
        "faithfulness of the tiny generators' images",
        "python -m benchmarks.toy_models.drawings",
    ),
    "tiny": (
        "accuracy of ImageReward-tiny on pairs of Shapes",
        "python -m benchmarks.toy_models.imagereward_tiny WORKDIR",
    ),
    "tiny-vlm": (
        "accuracy of the tiny vision-language judge on pairs of Shapes",
        "python -m benchmarks.toy_models.tiny_vlm WORKDIR --measure",
    ),
    "shapes-measure": (
        "accuracy of the measure of Shapes",
        "python -m benchmarks.shapes.measure_accuracy",
    ),
    "training-step": (
        "time and memory of a training step of the full-size reward model",
        "python -m benchmarks.training.training_step",
    ),
    "real-size-step": (
        "time and memory of a step of ReFL and of GRPO at Stable Diffusion 1.5's size, beside plain loops",
        "python -m benchmarks.training.real_size_step",
    ),
    "personal": (
        "personal adapters: agreement with three tastes, by what learns and from how many rankings",
        "python -m benchmarks.training.personal",
    ),
    "personal-shuffled": (
        "how often an adapter is called better though its rankings were shuffled",
        "python -m benchmarks.training.personal_shuffled",
    ),
    "adapter-step": (
        "time and memory of a training step of each adapter at full size",
        "python -m benchmarks.training.adapter_step",
    ),
    "inpainting": (
        "ReFL, GRPO and online DPO on the tiny inpainting model",
        "python -m benchmarks.training.inpainting WORKDIR",
    ),
    "fits": ("memory of an update at real sizes, counted", "python -m benchmarks.training.fits"),
    "fits-sharded": (
        "memory of a card in a sharded update at real sizes, counted",
        "python -m benchmarks.training.fits_sharded",
    ),
    "finetune-flow": (
        "policy gradients, learning from samples, and ReFL on the tiny flow model",
        "python -m benchmarks.training.finetune_flow WORKDIR",
    ),
    "self-imitation": (
        "gradients of SFT on drawn images: of imitation, and of the choice of the best",
        "python -m benchmarks.training.self_imitation",
    ),
    "finetune-judge": (
        "ReFL on the tiny Stable Diffusion by the tiny vision-language judge",
        "python -m benchmarks.training.finetune_judge WORKDIR",
    ),
    "finetune": (
        "ReFL, DRaFT, AlignProp and best of 8 on the tiny Stable Diffusion",
        "python -m benchmarks.training.finetune WORKDIR",
    ),
}


def page() -> str:
    """Markdown: a section a results file."""
    return "\n\n".join(_section(path) for path in sorted(RESULTS.glob("*.json")))


def command_of(name: str) -> tuple[str, str]:
    """(what is measured, command) of a results file. Raises KeyError for a file of no known benchmark."""
    return COMMANDS[max((each for each in COMMANDS if name.startswith(each)), key=len, default=name)]


def _section(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    measures, command = command_of(path.stem)
    shown = [page for page in PAGES if f"<!-- {path.stem} -->" in page.read_text(encoding="utf-8")]
    machine = result["environment"]
    facts = {
        "Command": code(command),
        "Results file": code(path.relative_to(ROOT)),
        "Shown in": ", ".join(map(_link, shown)),
        "Minutes of training": minutes(result),
        "Measured on": f"{machine['device']}, {machine['threads']} threads, {machine['date']}, "
        f"commit {machine['commit']}",
    }
    lines = [f"- {name}: {fact}" for name, fact in facts.items() if fact]
    return "\n\n".join([f"## {path.stem}", f"Measures {measures}.", "\n".join(lines)])


def _link(page: Path) -> str:
    """A link as a page in docs/ would write it; the hook turns it into a link within the site."""
    inside = page.is_relative_to(ROOT / "docs")
    title = next(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return f"[{title.removeprefix('# ')}]({page.name if inside else f'../{page.relative_to(ROOT)}'})"


def minutes(result: dict) -> str:
    """Minutes of training that the results file gives, in words; nothing where it gives none."""
    if "seconds" in result:
        return f"{sum(result['seconds'].values()) / 60:.0f}"
    spent = [row["minutes"] for row in result.get("rows", []) if row.get("minutes")]
    if spent and "runs" in result:
        return f"up to {max(spent):.0f} a run, {len(spent) * result['runs']} runs"
    return f"{sum(spent):.0f}" if spent else ""
