"""Tables of the results about vision-language scorers, as Markdown."""


def _lines(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def judges(result: dict) -> str:
    """CPU seconds of ten prompts an image, of one, and of a plain loop."""
    head = ["model, 256 tokens an image", "one prompt", "ten prompts", "ten / one", "plain loop, ten prompts"]
    names = ("one_prompt_cpu_s", "ten_prompts_cpu_s", "ten_over_one", "plain_loop_ten_prompts_cpu_s")
    return _lines(
        head, [[model, *(f"{row[name]:.3g}" for name in names)] for model, row in result["models"].items()]
    )


def costs(result: dict) -> str:
    """Tokens and operations of a thousand images."""
    head = ["template", "most pixels", "tokens of an image", "tokens read", "written at most"]
    head += ["2B, 10^15 operations", "8B", "32B"]
    counts = ("most_pixels", "tokens_of_the_image", "tokens_read", "tokens_written_at_most")
    sizes = ("petaflop_2b", "petaflop_8b", "petaflop_32b")
    rows = [
        [
            f"`{row['template']}`",
            *(f"{row[name]:,}" for name in counts),
            *(f"{row[name]:.3g}" for name in sizes),
        ]
        for row in result["rows"]
    ]
    return _lines(head, rows)
