"""Write the tables of results/*.json into the pages that show them, between `<!-- name -->` marks.

python benchmarks/render.py
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs/shapes.md",
    ROOT / "imagereward/assets/ImageReward-tiny/README.md",
    ROOT / "docs/reward-models.md",
    ROOT / "docs/bulk.md",
    ROOT / "docs/server.md",
    ROOT / "docs/finetuning.md",
    ROOT / "docs/objectives.md",
)


def machine(result: dict) -> str:
    """What it was measured on."""
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['device']}, {environment['threads']} threads; {versions}; "
        f"commit {environment['commit']}, {environment['date']}"
    )


def throughput(result: dict) -> str:
    """The throughput file as Markdown."""
    speed = [
        f"| {row['what']} | {row['per_s']:.2f} | {row['times_loop']:.2f} x |" for row in result["scoring"]
    ]
    alone = {row["dtype"]: row for row in result["model_alone"]}
    error = [
        f"| {row['dtype']} | {row['max_error']:.4f} | {row['mean_error']:.4f} "
        f"| {alone[row['dtype']]['images_per_s']:.2f} | {100 * alone[row['dtype']]['share']:.0f} % "
        f"| {1000 * alone[row['dtype']]['product_tflops']:.0f} |"
        for row in result["errors"]
    ]
    load = result["loading"]
    return "\n".join(
        [
            f"{machine(result)}; batches of {result['batch_size']}.",
            "",
            "| ImageReward, full size | images/s (or pairs/s) | against the loop |",
            "|---|---|---|",
            *speed,
            "",
            "| dtype | largest error of a score | mean error | images/s, model alone "
            "| share of this machine's matrix-product rate | that rate, GFLOP/s |",
            "|---|---|---|---|---|---|",
            *error,
            "",
            f"Loading takes {load['load_s']:.2f} s, {100 * load['load_share']:.0f} % of building "
            f"a random model and filling it ({load['build_and_fill_s']:.1f} s). Loading and scoring raise "
            f"resident memory by {load['peak_over_imports_mb']:.0f} MB, {load['peak_share']:.2f} x "
            f"the checkpoint ({load['checkpoint_mb']:.0f} MB).",
        ]
    )


def training_step(result: dict) -> str:
    """The full-size training step's file as Markdown."""
    what = f"{result['prompts']} prompts of {result['images']} images, fix_rate {result['fix_rate']}, float32"
    return steps(result, what, "checkpointing")


def refl_step(result: dict) -> str:
    """The ReFL step's file as Markdown."""
    what = f"Stable Diffusion 1.5 at {result['resolution']} pixels, {result['images']} image, float32"
    return steps(result, f"{what}; AdamW with LoRA alone", "what learns")


def steps(result: dict, what: str, setting: str) -> str:
    """What `benchmarks/steps.py` measured, as Markdown."""
    rows = [
        f"| {row['setting']} | {row['seconds']:.1f} | {row['peak_mb']:.0f} | {row['resting_mb']:.0f} "
        f"| {row['activations_mb']:.0f} | {100 * row['share']:.0f} % "
        f"| {row['learning_millions']:.1f} | {8 * row['learning_millions'] * 1e6 / 2**20:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"{machine(result)}; {what}.",
            "",
            f"| {setting} | seconds a step | peak, MB | between steps, MB | activations, MB | of plain "
            "| millions that learn | Adam's moments, MB |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def fits(result: dict) -> str:
    """What needs how much memory, as Markdown: how many images a card takes at once."""
    cards = list(result["rows"][0]["images"])
    rows = []
    for row in result["rows"]:
        apart = [
            "" if row["checkpointing"] else "no checkpointing",
            "" if row["encoders"] else "text encoders away",
            "" if row["decoder"] == "float32" else f"decoder in {row['decoder']}",
        ]
        kept = "" if row["kept_mb"] is None else f"{row['kept_mb']:.1f}"
        images = " | ".join(str(row["images"][card] or "none") for card in cards)
        rows.append(
            f"| {row['objective']} | {row['model']} | {row['learns']} | {', '.join(filter(None, apart))} "
            f"| {row['peak_gb']:.1f} | {row['another_gb']:.1f} | {kept} | {images} |"
        )
    beside = ", ".join(f"{row['setting']} {1024 * row['activations_gb']:.0f}" for row in result["float32"])
    return "\n".join(
        [
            "| objective | model | what learns | with | GB for one image | for another "
            "| MB kept of each image of an update "
            + "".join(f"| images at once in {card} GB " for card in cards)
            + "|",
            f"|---|---|---|---|---|---|---{'|---' * len(cards)}|",
            *rows,
            "",
            f"Counted the same way, activations in float32 at SD 1.5's size are, in MB: {beside}.",
        ]
    )


def finetune(result: dict) -> str:
    """Fine-tuning methods side by side as Markdown."""
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
            f"{machine(result)}; {result['prompts']} held-out prompts, {result['seeds']} seeds; intervals of "
            "95 % over prompts.",
            "",
            "| method | reward | gained | in standard deviations of the base's | faithfulness | gained "
            "| diversity | minutes |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def finetune_flow(result: dict) -> str:
    """The same for policy gradient on the tiny flow model as Markdown: every judge's mean and its change."""

    def judged(row: dict, name: str) -> str:
        if name not in row:
            return ""
        if row is result["rows"][0]:
            return f"{row[name]:.3f}"
        low, high = row[f"{name} low"], row[f"{name} high"]
        return f"{row[name]:.3f}, {row[f'{name} gained']:+.3f} ({low:+.3f} to {high:+.3f})"

    rows = [
        f"| {row['method']} | {' | '.join(judged(row, name) for name in ('reward', 'faithfulness', 'jpeg'))} "
        f"| {row['images'] or ''} | {'' if row['minutes'] is None else format(row['minutes'], '.1f')} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"{machine(result)}; {result['prompts']} held-out prompts, {result['seeds']} images of each, "
            f"{result['runs']} runs of each method; changes with intervals of 95 % over prompts.",
            "",
            "| method | reward | faithfulness | JPEG compressibility | images drawn to learn | minutes |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def tiny(result: dict) -> str:
    """ImageReward-tiny's file as Markdown: the run, and its accuracy on held-out pairs."""
    seconds = result["seconds"]
    since = ", both since it was last resumed" if "resume=true" in result["overrides"] else ""
    rows = [
        f"| {row['pairs']} | {100 * row['accuracy']:.1f} % | {100 * row['shuffled']:.1f} % | {row['count']} |"
        for row in result["rows"]
    ]
    return "\n".join(
        [
            f"{machine(result)}. The warm-up took {seconds['warmup'] / 60:.0f} minutes, the rankings "
            f"{seconds['ranking'] / 60:.0f}{since}; "
            f"{result['parameters'] / 1e6:.2f} million parameters, {result['megabytes']:.1f} MB. "
            f"{result['held_out']['prompts']} held-out prompts, seed {result['held_out']['seed']}.",
            "",
            "| clear pairs | right | shuffled | pairs |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def shapes_measure(result: dict) -> str:
    """The measure's file as Markdown: agreement by attribute and condition, and clean against damaged."""
    rows = result["attributes"]
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    agreement = {(row["attribute"], row["condition"]): row["agreement"] for row in rows}
    damages = [row for row in result["cleanliness"] if row["level"]]
    levels = sorted({row["level"] for row in damages})
    ordered = {(row["damage"], row["level"]): row["ordered"] for row in damages}
    return "\n".join(
        [
            f"{machine(result)}; {result['images']} images for each condition and kind of mistake, "
            f"{result['milliseconds']['64']:.0f} ms an image of 64 pixels.",
            "",
            "How often an attribute is judged rightly, over images where it is right and where it is wrong:",
            "",
            f"| attribute | {' | '.join(conditions)} |",
            f"|---{'|---' * len(conditions)}|",
            *(
                f"| {name} | {' | '.join(f'{100 * agreement[name, where]:.1f} %' for where in conditions)} |"
                for name in dict.fromkeys(row["attribute"] for row in rows)
            ),
            "",
            "How often the clean drawing of a scene measures cleaner than the damaged one:",
            "",
            f"| damage | {' | '.join(f'level {level}' for level in levels)} |",
            f"|---{'|---' * len(levels)}|",
            *(
                f"| {name} | {' | '.join(f'{100 * ordered[name, level]:.1f} %' for level in levels)} |"
                for name in dict.fromkeys(row["damage"] for row in damages)
            ),
        ]
    )


def bulk(result: dict) -> str:
    """The file of scoring in bulk as Markdown: one line for each thing that was measured."""
    full, over, memory = result["throughput"], result["overhead"], result["memory"]
    kills, corrupt, cache = result["kills"], result["corrupt"], result["cache"]
    sizes = " and ".join(f"{rows}" for rows in memory["rows"])
    peaks = " and ".join(f"{peak:.0f} MB" for peak in memory["peak_mb"])
    lines = {
        f"full size, {full['rows']} rows, batches of {full['batch_size']}": f"{full['bulk_per_s']:.2f} "
        f"rows/s; bare model on decoded batches {full['bare_per_s']:.2f}: {100 * full['share']:.0f} % of it, "
        f"{100 * full['share_with_decode']:.0f} % of model and decoding ({full['decode_ms']:.1f} ms) in turn",
        f"overhead, {over['rows']} rows": f"{over['overhead_ms']:.2f} ms of CPU a row beyond decoding and "
        f"model, which take {over['decode_and_model_ms']:.2f} ms",
        f"peak memory at {sizes} rows": f"{peaks}, {memory['ratio']:.2f} x",
        f"kill -9 at {kills['kills']} random moments": "identical file" if kills["equal"] else "ANOTHER file",
        f"{100 * corrupt['damaged']:.0f} % damaged images in {corrupt['rows']} rows": f"{corrupt['failed']} "
        f"rows with an error; {corrupt['wrong']} rows with one missing or too much",
        f"cache, full size, {cache['rows']} rows": f"first pass {cache['first_s']:.0f} s, second with other "
        f"prompts {cache['second_s']:.0f} s, {cache['times']:.1f} x; {cache['mb_an_image']:.2f} MB an image",
    }
    rows = [f"| {what} | {figure} |" for what, figure in lines.items()]
    return "\n".join([f"{machine(result)}.", "", "| | |", "|---|---|", *rows])


def serve(result: dict) -> str:
    """The server's file as Markdown: one line for each thing that was measured, and latency by clients."""
    speed, cpu, answers = result["throughput"], result["cpu"], result["answers"]
    memory = answers["memory_mib"]
    lines = {
        f"full size, {speed['clients']} clients, an image a request": (
            f"{speed['served_per_s']:.2f} images/s; offline {speed['offline_per_s']:.2f}: "
            f"{100 * speed['share']:.0f} % of it"
        ),
        f"CPU a request, {cpu['images_a_batch']:.0f} images a batch": (
            f"{cpu['server_ms']:.1f} ms; decoding and model alone {cpu['decode_and_model_ms']:.1f} ms: "
            f"{cpu['overhead_ms']:+.2f} ms"
        ),
        f"{answers['requests']} answers": f"{answers['lost']} lost, {answers['crossed']} not their own",
        "the server's memory on the way": f"{memory[1]:.0f} MiB after a tenth, {memory[-1]:.0f} at the end",
    }
    latency = [
        f"| {row['clients']} | {row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {100 * row['refused']:.1f} % |"
        for row in result["latency"]
    ]
    return "\n".join(
        [
            f"{machine(result)}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {what} | {figure} |" for what, figure in lines.items()),
            "",
            "With a queue of 256, of what was answered:",
            "",
            "| clients | median, ms | 99th percentile, ms | refused (429) |",
            "|---|---|---|---|",
            *latency,
        ]
    )


TABLES: dict[str, Callable[[dict], str]] = {
    "throughput-cpu": throughput,
    "throughput-cuda": throughput,
    "training-step-cpu": training_step,
    "training-step-cuda": training_step,
    "shapes-measure": shapes_measure,
    "tiny": tiny,
    "refl-step-cpu": refl_step,
    "refl-step-cuda": refl_step,
    "fits": fits,
    "finetune": finetune,
    "finetune-flow": finetune_flow,
    "bulk-cpu": bulk,
    "bulk-cuda": bulk,
    "serve-cpu": serve,
    "serve-cuda": serve,
}


def rendered(text: str) -> str:
    """`text` with every block of a name in `TABLES` filled in from that results file."""

    def fill(match: re.Match) -> str:
        result = json.loads((HERE / "results" / f"{match[1]}.json").read_text())
        return f"<!-- {match[1]} -->\n{TABLES[match[1]](result)}\n<!-- /{match[1]} -->"

    return re.sub(rf"<!-- ({'|'.join(TABLES)}) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
