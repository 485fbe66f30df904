"""The subcommands shapes, tune and compare."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from imagereward.cli.app import app
from imagereward.cli.common import print_rows, say_note
from imagereward.cli.options import (
    Device,
    Dtype,
    Encoding,
    Format,
    Models,
    Overwrite,
)


@app.command(
    examples="""
    imagereward shapes --out shapes
    imagereward shapes --out shapes --prompts 600 --images 4 --seed 7
    """
)
def shapes(
    out: Annotated[Path, typer.Option(help="The directory to write, new or empty.")],
    prompts: Annotated[int, typer.Option(min=3, help="Prompts, in all three splits together.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the data set; equal seeds write equal files.")
    ] = 0,
    images: Annotated[int, typer.Option(min=2, help="Images for each prompt.")] = 6,
    size: Annotated[int, typer.Option(min=16, help="Width and height of the images in pixels.")] = 64,
    noise: Annotated[
        float, typer.Option(min=0, help="Standard deviation of the annotator's noise, in units of utility.")
    ] = 0.25,
    faithfulness: Annotated[
        float, typer.Option(help="Utility that the annotator subtracts for each mistake in an image.")
    ] = 1.0,
    quality: Annotated[
        float, typer.Option(help="Utility that the annotator subtracts for each level of damage.")
    ] = 0.75,
    overwrite: Overwrite = False,
) -> None:
    """Draw a data set of rankings whose truth is known.

    Prompts, images and rankings in ImageRewardDB's layout, as `imagereward tune` reads them.
    """
    from imagereward.shapes import Annotator, write

    annotator = Annotator(noise, (faithfulness, quality))
    counts = write(out, prompts, seed, images=images, size=size, annotator=annotator, overwrite=overwrite)
    print(f"{out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()) + " prompts")


@app.command(
    add_help_option=False,
    examples="""
    imagereward tune --list
    imagereward tune sd15/refl_lora --explain
    imagereward tune tiny/quick data=shapes output=my-reward
    imagereward tune tiny/quick_refl model=benchmarks/toy_models/tiny-sd prompts=train.json output=tuned
    imagereward tune sd15/refl_lora prompts=prompts.txt output=tuned lora.rank=8
    imagereward tune sd15/refl_lora prompts=prompts.txt output=tuned lora.rank=8 --resume latest
    """,
)
def tune(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name (--list shows them) or a TOML file.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value …",
            help="Values that replace the recipe's, with dots for nested keys: lora.rank=8.  [default: none]",
        ),
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes in the package.")] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Print every key of the recipe: value, the recipe it comes from, and meaning."
        ),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            help="latest: go on from the last checkpoint; the same as resume=true.  [default: a new run]"
        ),
    ] = None,
    show_help: Annotated[
        bool, typer.Option("--help", "-h", help="Show this text; after a recipe's name, its header and keys.")
    ] = False,
) -> None:
    """Train a reward model or fine-tune an image generator.

    The recipe says which, from what and for how long. The recipes tiny/quick and tiny/quick_refl take two
    minutes each on two cores; the second needs a clone, and the data of both comes from
    `imagereward shapes --out shapes --prompts 600`.
    """
    if show_help and not recipe:
        print(context.get_help())
        return
    from imagereward.errors import InputError, missing_extra

    try:
        from imagereward import tuning
        from imagereward.tuning.recipe import read_recipe, recipe_names
    except ImportError as error:
        raise missing_extra("training", "train", error) from error
    if list_recipes:
        print(_recipes())
        return
    if not recipe:
        raise InputError(
            f"which recipe? known: {', '.join(recipe_names())}; `imagereward tune --list` describes them, "
            "and tiny/quick takes two minutes"
        )
    if explain or show_help:
        try:
            print(_explained(recipe, overrides or []))
        except ImportError as error:
            raise missing_extra("training", "train", error) from error
        return
    if resume not in (None, "latest"):
        raise InputError(f"--resume {resume}: expected latest")
    changes = [*(overrides or []), *(["resume=true"] if resume else [])]
    try:
        tuning.run_recipe(recipe, changes)
    except KeyboardInterrupt:
        output = Path(str(read_recipe(recipe, changes).get("output", ""))).expanduser()
        if (output / "run.json").is_file():
            print(f"imagereward: {output}: the same command with --resume latest goes on", file=sys.stderr)
        raise


def _recipes() -> str:
    """A line for each recipe in the package: its name, and the first sentence of its header."""
    from imagereward.tuning.recipe import recipe_names, recipe_summary

    names = recipe_names()
    width = max(map(len, names))
    return "\n".join(f"{name.ljust(width)}  {recipe_summary(name)}" for name in names)


def _explained(recipe: str, overrides: list[str]) -> str:
    """A recipe's header, every key, and what is wrong with the values or missing."""
    from imagereward.errors import InputError
    from imagereward.tuning.config import build
    from imagereward.tuning.explain import as_text, config_of, explain
    from imagereward.tuning.recipe import read_recipe, recipe_header

    values = read_recipe(recipe, overrides)
    text = f"{recipe_header(recipe)}\n\n{as_text(explain(recipe, overrides))}".strip()
    try:
        build(config_of(values.get("objective", ""), recipe), values, "before it can start")
    except InputError as error:
        text += f"\n\n{error}"
    return text


@app.command(
    examples="""
    imagereward compare benchmarks/toy_models/tiny-sd tuned --prompts shapes/test.json -m ImageReward-tiny
    imagereward compare stable-diffusion-v1-5/stable-diffusion-v1-5 tuned --prompts other.txt -m CLIP
    """
)
def compare(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline: a directory or a hub id.")],
    tuned: Annotated[str, typer.Argument(help="A second pipeline, or LoRA weights for the base.")],
    prompts: Annotated[
        Path,
        typer.Option(
            help="Prompts: a .txt, .jsonl, .json, .csv, .tsv or .parquet file, or a folder of masked rows."
        ),
    ],
    model: Models = None,
    out: Annotated[Path, typer.Option(help="The page to write, a .html file.")] = Path("comparison.html"),
    seeds: Annotated[int, typer.Option(min=1, help="Images that each model draws for a prompt.")] = 2,
    most: Annotated[
        int, typer.Option(min=1, help="Number of prompts to use, from the beginning of the file.")
    ] = 100,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps.  [default: the pipeline's own]")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="Guidance scale; 1 and below is none.  [default: the pipeline's own]"),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS",
            help="Size of the images: 512 for a square, 768x1152 for height x width.  "
            "[default: the pipeline's own]",
        ),
    ] = None,
    tuned_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the steps that the tuned model takes, from the first; the base the rest.",
        ),
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at once.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all initial noise.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    prompt_column: Annotated[
        str | None,
        typer.Option(help="Column of a table of prompts.  [default: prompt, text, caption or txt]"),
    ] = None,
    encoding: Encoding = None,
    family: Annotated[
        str | None,
        typer.Option(help="module:name of a Denoiser of your own.  [default: decided by the pipeline]"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two generators by their rewards.

    Both draw the same prompts from the same noise; prints which is rewarded more, and writes a page of pairs.
    """
    from imagereward.errors import missing_extra
    from imagereward.precision import resolve_dtype
    from imagereward.writing import check_free, write_text

    precision = resolve_dtype(dtype or "float32")
    out = check_free(out, overwrite)
    try:
        from imagereward.tuning.evaluation.compare import compare as run
        from imagereward.tuning.evaluation.comparison_page import page
    except ImportError as error:
        raise missing_extra("compare", "train", error) from error
    names = model or ["ImageReward-v1.0"]
    for name in names:
        say_note(name)
    found = run(
        base,
        tuned,
        prompts,
        dict.fromkeys(names, 1.0),
        most=most,
        seeds=seeds,
        steps=steps,
        guidance=guidance,
        resolution=resolution,
        tuned_share=tuned_share,
        batch_size=batch_size,
        seed=seed,
        device=device,
        dtype=precision,
        family=family,
        prompt_column=prompt_column,
        encoding=encoding,
    )
    print_rows(found.rows(), Format.table)
    if found.diversity:
        print(f"diversity: {found.diversity[0]:.4f} base, {found.diversity[1]:.4f} tuned")
    write_text(out, page(found, (base, tuned)))
    print(f"the pictures, side by side: {out}")
