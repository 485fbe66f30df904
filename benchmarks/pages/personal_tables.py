"""Tables of the benchmarks of personal adapters."""

from benchmarks.lib import record
from benchmarks.pages.training_tables import steps
from benchmarks.training.personal import BASE_METHOD, reached, summaries


def adapter_step(result: dict) -> str:
    """A table of results/adapter-step-*.json."""
    what = f"{result['prompts']} prompts of {result['images']} images, float32, AdamW"
    return steps(result, what, "what learns")


def personal_shuffled(result: dict) -> str:
    """A sentence on results/personal-shuffled.json."""
    better = sum(each["better"] for each in result["runs"])
    return (
        f"Trainings on {result['rankings']} rankings in random order: {len(result['runs'])}; of them called "
        f"better than the base: {better}. {record.machine(result)}."
    )


def personal(result: dict) -> str:
    """A table of results/personal.json: agreement, size and time of every method, taste and number."""
    rows = []
    for row in summaries(result):
        interval = "" if row["seeds"] < 2 else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        trained = row["method"] != BASE_METHOD
        size = f"{row['parameters']:,.0f} | {row['bytes'] / 1000:.1f}" if trained else " | "
        cost = f"{row['cpu_seconds']:.0f} | {row['peak_mb']:.0f}" if trained else " | "
        found = f"{100 * row['agreement']:.1f}{interval} | {100 * row['silent']:.1f}"
        head = f"{row['taste']} | {row['rankings']:,} | {row['method']}"
        rows.append(f"| {head} | {found} | {row['seeds']} | {size} | {cost} |")
    return "\n".join(
        [
            _facts(result),
            "",
            "| taste | rankings | what learns | agreement, % (95 %, over seeds) "
            "| where the taste is silent, % | seeds | parameters | kB | seconds of CPU "
            "| MB more at the peak |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def personal_reached(result: dict) -> str:
    """A short table of results/personal.json: of each taste the best intervention from 48 rankings."""
    rows = []
    for row in reached(result):
        interval = "" if row["seeds"] < 2 else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        rows.append(
            f"| {row['taste']} | {100 * row['base']:.1f} | {100 * row['agreement']:.1f}{interval} "
            f"| {100 * row['reference']:.1f} | {100 * row['share']:.0f} % "
            f"| {100 * row['silent_base']:.1f} | {100 * row['silent']:.1f} "
            f"| {100 * row['silent_reference']:.1f} | {row['method']} | {row['cpu_seconds']:.0f} "
            f"| {row['bytes'] / 1000:.1f} |"
        )
    return "\n".join(
        [
            _facts(result),
            "",
            "| taste | base, % | from 48 rankings, % (95 %, over seeds) | all weights, from 5,000, % "
            "| share of the gain from 5,000 | where silent: base, % | from 48, % | from 5,000, % | kind "
            "| seconds of CPU | kB |",
            f"|{'---|' * 11}",
            *rows,
        ]
    )


def _facts(result: dict) -> str:
    return f"{record.machine(result)}; {result['base']}, {result['prompts']} test prompts of 4 images."
