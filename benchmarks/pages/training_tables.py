"""Markdown tables of the results of benchmarks/training and benchmarks/toy_models."""

from benchmarks.lib import record


def training_step(result: dict) -> str:
    """A table of results/training-step-*.json."""
    what = f"{result['prompts']} prompts of {result['images']} images, fix_rate {result['fix_rate']}, float32"
    return steps(result, what, "checkpointing")


def real_size_step(result: dict) -> str:
    """A table of results/real-size-step-*.json: each method's step, and that of its plain loop."""
    rows = []
    for row in result["rows"]:
        beside = f" {100 * row['of_loop']:.0f} % " if "of_loop" in row else " "
        away = f" {max(row['differences'].values()):.1g} " if "differences" in row else " "
        numbers = " | ".join(f"{row[name]:.4g}" for name in ("loss", "reward", "gradient_norm"))
        rows.append(
            f"| {row['step']} | {row['seconds']:.1f} |{beside}| {row['peak_mb']:.0f} "
            f"| {100 * row['outside']:.1f} % | {numbers} |{away}|"
        )
    return "\n".join(
        [
            f"{record.machine(result)}; Stable Diffusion 1.5 at {result['resolution']} pixels, float32, "
            f"LoRA, {result['steps']} sampling steps; ReFL on 1 image, GRPO on {result['group']}; "
            f"rounds: {result['rounds']}.",
            "",
            "| step | seconds | of the loop's | peak, MB | time outside the networks | loss | reward "
            "| norm of the gradient | relative difference from the loop |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def steps(result: dict, what: str, setting: str) -> str:
    """A table of results of benchmarks/lib/steps.py, a row for each setting."""
    rows = [
        f"| {row['setting']} | {row['seconds']:.1f} | {row['peak_mb']:.0f} | {row['resting_mb']:.0f} "
        f"| {row['activations_mb']:.0f} | {100 * row['share']:.0f} % "
        f"| {row['learning_millions']:.1f} | {8 * row['learning_millions'] * 1e6 / 2**20:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"{record.machine(result)}; {what}.",
            "",
            f"| {setting} | seconds a step | peak, MB | between steps, MB | activations, MB | of plain "
            "| millions that learn | Adam's moments, MB |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def tiny(result: dict) -> str:
    """Tables of results/tiny.json: the run, and its accuracy on held-out pairs."""
    seconds = result["seconds"]
    since = ", both since it was last resumed" if "resume=true" in result["overrides"] else ""
    rows = [
        f"| {row['pairs']} | {100 * row['accuracy']:.1f} % | {100 * row['shuffled']:.1f} % | {row['count']} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"{record.machine(result)}. The warm-up took {seconds['warmup'] / 60:.0f} minutes, the rankings "
            f"{seconds['ranking'] / 60:.0f}{since}; "
            f"{result['parameters'] / 1e6:.2f} million parameters, {result['megabytes']:.1f} MB. "
            f"{result['held_out']['prompts']} held-out prompts, seed {result['held_out']['seed']}.",
            "",
            "| clear pairs | right | shuffled | pairs |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def tiny_drawings(result: dict) -> str:
    """A table of the measure's mean attributes of images, by their source."""
    columns = [name for name in result["rows"][0] if name != "images"]
    rows = [
        f"| {row['images']} | {' | '.join(f'{row[name]:.2f}' for name in columns)} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"{record.machine(result)}; {result['prompts']} prompts, {result['steps']} steps.",
            "",
            f"| images | {' | '.join(columns)} |",
            f"|---|{'---|' * len(columns)}",
            *rows,
        ]
    )


def finetune(result: dict) -> str:
    """A table of results/finetune.json: fine-tuning methods side by side."""
    base = result["rows"][0]
    rows = []
    for row in result["rows"]:
        gained = [
            f"{row[name]:.3f} | {row[f'{name} gained']:+.3f} ({row[f'{name} low']:+.3f} to "
            f"{row[f'{name} high']:+.3f})"
            for name in ("reward", "faithfulness")
        ]
        others = [
            f"{row['reward in base deviations']:+.2f}",
            "" if row["diversity"] is None else f"{row['diversity']:.3f}",
            "" if row["minutes"] is None else f"{row['minutes']:.0f}",
        ]
        name, (reward, faithfulness), (deviations, diversity, minutes) = row["method"], gained, others
        if row is base:
            reward, faithfulness, deviations = f"{row['reward']:.3f} |", f"{row['faithfulness']:.3f} |", ""
        rows.append(f"| {name} | {reward} | {deviations} | {faithfulness} | {diversity} | {minutes} |")
    return "\n".join(
        [
            f"{record.machine(result)}; {result['prompts']} held-out prompts, {result['seeds']} images of "
            "each; intervals of 95 % over prompts.",
            "",
            "| method | reward | gained | gained, in standard deviations of the base's rewards "
            "| faithfulness | gained | diversity | minutes |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def finetune_flow(result: dict) -> str:
    """A table of results/finetune-flow.json: mean and change of each judge, by method."""

    def judged(row: dict, name: str) -> str:
        if name not in row:
            return ""
        if row is result["rows"][0]:
            return f"{row[name]:.3f}"
        low, high = row[f"{name} low"], row[f"{name} high"]
        runs = ", ".join(f"{gained:+.3f}" for gained in row[f"{name} of runs"])
        alone = f"; {runs}" if len(row[f"{name} of runs"]) > 1 else ""
        return f"{row[name]:.3f}, {row[f'{name} gained']:+.3f} ({low:+.3f} to {high:+.3f}){alone}"

    rows = [
        f"| {row['method']}{' *' * ('environment' in row)} "
        f"| {' | '.join(judged(row, name) for name in ('reward', 'faithfulness', 'jpeg'))} "
        f"| {row['images'] or ''} | {'' if row['minutes'] is None else format(row['minutes'], '.1f')} |"
        for row in result["rows"]
    ]
    elsewhere = {record.machine(row) for row in result["rows"] if "environment" in row}
    notes = ["", *(f"\\* measured on {machine}" for machine in sorted(elsewhere))] if elsewhere else []
    return "\n".join(
        [
            f"{record.machine(result)}; {result['prompts']} held-out prompts, "
            f"{result['seeds']} images of each, {result['runs']} runs of each method; "
            "changes with intervals of 95 % over prompts, and each run's; minutes are the longest run's.",
            "",
            "| method | reward | faithfulness | JPEG compressibility | images drawn to learn | minutes |",
            "|---|---|---|---|---|---|",
            *rows,
            *notes,
        ]
    )


def self_imitation(result: dict) -> str:
    """A sentence of results/self-imitation.json: the squared norms of both gradients."""
    imitation, choice = (
        f"{row['squared norm']:.4f} (standard error {row['standard error']:.4f})" for row in result["rows"]
    )
    return (
        f"The squared norm of the gradient of SFT on all drawn images is {imitation}, and that of the "
        f"choice, which is the gradient on the best image of each group of {result['group']} minus the "
        f"gradient on all images, {choice}; from {result['prompts']} prompts."
    )


def inpainting(result: dict) -> str:
    """A table of results/inpainting.json: what each method gained, and how far the rest moved."""

    def judged(row: dict, name: str) -> str:
        runs = ", ".join(f"{gained:+.3f}" for gained in row[f"{name} of runs"])
        interval = f"{row[f'{name} low']:+.3f} to {row[f'{name} high']:+.3f}"
        return f"{row[name]:.3f}, {row[f'{name} gained']:+.3f} ({interval}); {runs}"

    rows = [
        f"| {row['method']} | {' | '.join(judged(row, name) for name in ('region', 'inside', 'boundary'))} "
        f"| {row['outside']:.4f}, before {row['outside before']:.4f} | {row['floor']:.4f} "
        f"| {row['minutes']:.1f} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"{record.machine(result)}; {result['held_out']} held-out rows, {result['drawn']} images of "
            f"each, {result['runs']} runs of each method; changes with intervals of 95 % over rows, and each "
            "run's; minutes are the longest run's.",
            "",
            "| method | reward of the region | asked for, inside | boundary | moved outside "
            "| the autoencoder's own | minutes |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
