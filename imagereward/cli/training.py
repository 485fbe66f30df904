"""Training: shapes, tune, compare."""

from pathlib import Path
from typing import Annotated

import typer

from imagereward.cli.app import app
from imagereward.cli.common import print_rows, say_note
from imagereward.cli.options import (
    Device,
    Dtype,
    Format,
    Overwrite,
)


@app.command()
def shapes(
    out: Annotated[Path, typer.Option(help="A new or empty directory.")],
    prompts: Annotated[int, typer.Option(min=3, help="In all three splits together.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same files.")] = 0,
    images: Annotated[int, typer.Option(min=2, help="Images a prompt.")] = 6,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side.")] = 64,
    noise: Annotated[float, typer.Option(min=0, help="The annotator's, in units of utility.")] = 0.25,
    faithfulness: Annotated[float, typer.Option(help="The annotator's weight of a wrong attribute.")] = 1.0,
    quality: Annotated[float, typer.Option(help="The annotator's weight of a level of damage.")] = 0.75,
    overwrite: Overwrite = False,
) -> None:
    """Draw a data set of rankings whose truth is known.

    Prompts, images and rankings in ImageRewardDB's layout, as `imagereward tune` reads them.
    """
    from imagereward.shapes import Annotator, write

    annotator = Annotator(noise, (faithfulness, quality))
    counts = write(out, prompts, seed, images=images, size=size, annotator=annotator, overwrite=overwrite)
    print(f"{out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()) + " prompts")


@app.command()
def tune(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (--list shows them) or a TOML file.")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value …")] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="The recipes in the package.")] = False,
    resume: Annotated[
        str | None, typer.Option(help="latest: go on from the last checkpoint; the same as resume=true.")
    ] = None,
) -> None:
    """Train as a recipe says: `imagereward tune tiny/preference data=shapes output=mine epochs=2`."""
    from imagereward.errors import ImageRewardError, InputError

    try:
        from imagereward import tuning
        from imagereward.tuning.config import recipe_names
    except ImportError as error:
        raise ImageRewardError(
            f"training needs more: python -m pip install 'imagereward[train]' ({error})"
        ) from error
    if list_recipes:
        print("\n".join(recipe_names()))
        return
    if not recipe:
        raise InputError(f"which recipe? known: {', '.join(recipe_names())}")
    if resume not in (None, "latest"):
        raise InputError(f"--resume {resume}: expected latest")
    tuning.run_recipe(recipe, [*(overrides or []), *(["resume=true"] if resume else [])])


@app.command()
def compare(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline: a directory or a hub id.")],
    tuned: Annotated[str, typer.Argument(help="Another, or LoRA weights for the base.")],
    prompts: Annotated[
        Path, typer.Option(help="A file of prompts: .jsonl, .json, .csv, .tsv, .parquet or .txt.")
    ],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A scorer; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("comparison.html"),
    seeds: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 2,
    most: Annotated[int, typer.Option(min=1, help="Prompts, from the first.")] = 100,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; default: the pipeline's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="1 is none; default: the pipeline's.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    prompt_column: Annotated[str | None, typer.Option(help="Default: prompt, text, caption …")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of the prompts; default: UTF-8, or as marked.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="module:name, for a family of your own.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare two generators by their rewards.

    Both draw the same prompts from the same noise; prints which is rewarded more, and writes a page of pairs.
    """
    from imagereward.precision import resolve_dtype
    from imagereward.tuning.compare import compare as run
    from imagereward.tuning.compare import page
    from imagereward.writing import check_free, write_text

    precision = resolve_dtype(dtype)
    out = check_free(out, overwrite)
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
