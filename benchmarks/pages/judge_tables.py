"""Markdown tables of the costs of judging images by vision-language models."""

from benchmarks.lib import record


def judges(result: dict) -> str:
    """A table of results/judges-*.json: CPU seconds of ten prompts an image, of one, and of a plain loop."""
    rows = [
        f"| {name} | {row['one_prompt_cpu_s']:.3g} | {row['ten_prompts_cpu_s']:.3g} "
        f"| {row['ten_over_one']:.1f} | {row['plain_loop_ten_prompts_cpu_s']:.3g} |"
        for name, row in result["models"].items()
    ]
    heads = "| model | one prompt | ten prompts | ten / one | plain loop, ten prompts |"
    return "\n".join([f"{record.machine(result)}.", "", heads, "|---|---|---|---|---|", *rows])


def judge_costs(result: dict) -> str:
    """A table of results/judge-costs.json: tokens and operations of judging a thousand images."""
    rows = [
        f"| `{row['template']}` | {_limit(row['most_pixels'])} | {row['tokens_of_the_image']:,} "
        f"| {row['tokens_read']:,} | {row['tokens_written_at_most']:,} | {row['petaflop_2b']:.1f} "
        f"| {row['petaflop_8b']:.1f} | {row['petaflop_32b']:.1f} |"
        for row in result["rows"]
    ]
    heads = (
        "| template | image at most | tokens of an image | tokens read | written at most "
        "| 2B, 10^15 operations | 8B | 32B |"
    )
    return "\n".join([heads, "|---|---|---|---|---|---|---|---|", *rows])


def _limit(pixels: int) -> str:
    return "the model's own limit" if pixels > 10**6 else f"{pixels:,} pixels"
