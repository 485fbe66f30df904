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


def tiny_vlm(result: dict) -> str:
    """A table of results/tiny-vlm.json: accuracy of the tiny judge by kind of pair."""
    rows = [
        f"| {row['pairs']} | {_share(row['accuracy'])} ({_share(row['low'])} to {_share(row['high'])}) "
        f"| {_share(row['prompts shuffled'])} | {row['count']} |"
        for row in result["rows"]
        if row["pairs"].startswith("faithfulness") or row["pairs"] == "quality"
    ]
    held_out = result["held_out"]
    facts = (
        f"{record.machine(result)}. Learning to write prompts and to judge took "
        f"{sum(result['seconds'].values()) / 60:.0f} minutes of CPU time; "
        f"{result['parameters'] / 1e6:.2f} million parameters, {result['megabytes']:.1f} MB. "
        f"{held_out['prompts']} held-out prompts for at most {held_out['things']} things, seed "
        f"{held_out['seed']}; intervals of 95 % over prompts."
    )
    return "\n".join([facts, "", "| clear pairs | right | shuffled | pairs |", "|---|---|---|---|", *rows])


def finetune_judge(result: dict) -> str:
    """A table of results/finetune-judge.json: what ReFL by the tiny judge changed, a row for each run."""
    rows = []
    for row in result["rows"]:
        cells = [
            f"{each['before']:.3f} | {each['gained']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"
            for each in (row["measured"][name] for name in ("judge", "faithfulness", "reward"))
        ]
        rows.append(f"| {row['method']} | {row['run']} | {' | '.join(cells)} | {row['minutes']:.0f} |")
    heads = (
        "| method | run | judge, before | gained | faithfulness, before | gained | ImageReward-tiny, before "
        "| gained | minutes |"
    )
    facts = (
        f"{record.machine(result)}; {result['prompts']} held-out prompts, {result['seeds']} images of each; "
        "intervals of 95 % over prompts."
    )
    return "\n".join([facts, "", heads, "|---|---|---|---|---|---|---|---|---|", *rows])


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _limit(pixels: int) -> str:
    return "the model's own limit" if pixels > 10**6 else f"{pixels:,} pixels"
