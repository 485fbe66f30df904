"""Markdown tables of counted memory: results/fits.json and results/fits-sharded.json."""

from imagereward.tuning.recipe import read_recipe, recipe_header


def fits(result: dict) -> str:
    """A table of results/fits.json: memory of a step, and images at once on each card."""
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
        gigabytes = f"{row['peak_gb']:.1f} | {row['moments_gb']:.2f} | {row['another_gb']:.1f}"
        rows.append(
            f"| {row['objective']} | {row['model']} | {row['learns']} | {', '.join(filter(None, apart))} "
            f"| {gigabytes} | {kept} | {images} |"
        )
    plain, recomputed = (row["activations_gb"] for row in result["float32"])
    return "\n".join(
        [
            "| objective | model | what learns | with | GB for one image | of them AdamW's moments "
            "| for another | MB kept of each image of an update "
            + "".join(f"| images at once in {card} GB " for card in cards)
            + "|",
            f"|---|---|---|---|---|---|---|---{'|---' * len(cards)}|",
            *rows,
            "",
            "Counted the same way, the activations of ReFL's step with gradient on one image, with SD 1.5 at "
            f"512 pixels in float32 and LoRA, take {1024 * plain:.0f} MB without checkpointing and "
            f"{1024 * recomputed:.0f} MB ({100 * recomputed / plain:.0f} %) with it.",
        ]
    )


RECIPES = {
    "SD 1.5": "sd15/refl",
    "SDXL": "sdxl/refl",
    "SD 3.5 Medium": "sd3/refl",
    "SD 3.5 Large": "sd35_large/refl",
    "FLUX.1-dev": "flux/refl",
    "SD 1.5 inpainting": "sd_inpaint/refl",
    "FLUX.1 Kontext": "flux_kontext/refl",
    "FLUX.1 Fill": "flux_fill/refl",
}
CARDS, FREE = (24, 48, 80, 141), 0.9  # gigabytes; the share of a card that a count may take


def fits_sharded(result: dict) -> str:
    """Tables of results/fits-sharded.json: gigabytes by sharding, and the fewest cards of each size."""
    numbers = list(result["rows"][0]["full"])
    lines, fewest = [], []
    for row in result["rows"]:
        shares = " | ".join(f"{row[mode][n]:.0f}" for mode in ("zero2", "full") for n in numbers)
        lines.append(f"| {row['model']} | {row['learns']} | {row['none']:.0f} | {shares} |")
        recipe = RECIPES[row["model"].partition(",")[0]] + ("_lora" if row["learns"] == "LoRA" else "")
        found = [_fewest(row, numbers, card * FREE) for card in CARDS]
        learns = f"{row['model']} | {row['learns']}"
        fewest.append(f"| {learns} | {' | '.join(found)} | `{_command(recipe, set(found) != {'1'})}` |")
    heads = " | ".join(f"{mode}, {n} cards" for mode in ("zero2", "full") for n in numbers)
    return "\n".join(
        [
            "The fewest cards N, and the `sharding` MODE that they take; nine tenths of a card are used. On "
            "one card N is 1 and MODE is none:",
            "",
            "| model | what learns " + "".join(f"| cards of {card} GB " for card in CARDS) + "| command |",
            f"|---|---{'|---' * len(CARDS)}|---|",
            *fewest,
            "",
            "GiB (2^30 bytes) of each card:",
            "",
            f"| model | what learns | none | {heads} |",
            f"|---|---|---{'|---' * 2 * len(numbers)}|",
            *lines,
        ]
    )


def _command(recipe: str, several: bool) -> str:
    """The command that is counted, from the recipe's own; `several`: N cards with MODE, else one card.

    Of keys it has those in which the recipe differs from what is counted.
    """
    (own,) = (line.strip() for line in recipe_header(recipe).splitlines() if line.startswith("  "))
    script, _, *data = own.removeprefix("accelerate launch ").split()
    values = read_recipe(recipe)
    counted = {"precision": "bfloat16", "micro_batch": 1, "text_cache": "cache"}
    keys = [f"{key}={value}" for key, value in counted.items() if values.get(key) != value]
    if not several:
        return " ".join(["imagereward tune", recipe, *keys, *data])
    sharded = ["sharding=MODE", "gradient.shared_by=N"]  # processes with shards take the same steps
    return " ".join(["torchrun --nproc-per-node N", script, recipe, *sharded, *keys, *data])


def _fewest(row: dict, numbers: list[str], free: float) -> str:
    if row["none"] <= free:
        return "1"
    for n in numbers:
        for mode in ("zero2", "full"):
            if row[mode][n] <= free:
                return f"{n}, {mode}"
    return f"more than {numbers[-1]}"
