"""The subcommands masks and preprocess, for the data of inpainting."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from imagereward.cli.app import app
from imagereward.cli.options import Overwrite


class MaskKind(StrEnum):
    """Kinds of masks; brush and object are those of Shapes, whose things are known."""

    box = "box"
    strokes = "strokes"
    brush = "brush"
    object = "object"


@app.command(
    examples="""
    imagereward masks --out painted --source photos.jsonl --kind strokes --share 0.2
    imagereward masks --out painted --source shapes --count 200
    """
)
def masks(
    out: Annotated[Path, typer.Option(help="The directory to write, new or empty.")],
    source: Annotated[
        str,
        typer.Option(
            help="A table of prompts and images, a folder with originals/ and prompts/, or shapes, which are "
            "drawn."
        ),
    ],
    kind: Annotated[
        MaskKind, typer.Option(help="box or strokes; of shapes: box, brush or object.")
    ] = MaskKind.box,
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of the area that a mask covers, above 0 and below 1; not of shapes.  [default: 0.25]"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the masks; equal arguments write equal files.")
    ] = 0,
    count: Annotated[int, typer.Option(min=1, help="Most rows; of shapes: how many.")] = 100,
    split: Annotated[
        str | None, typer.Option(help="Of shapes: train, valid or test.  [default: train]")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make masks for images, for inpainting.

    Writes a data set: originals/, masks/ and prompts/, rows.jsonl with a record for each image, and
    contact-sheet.png. White is where to paint anew.
    """
    from imagereward.errors import InputError
    from imagereward.inpainting.writing import ROWS_FILE, SHAPES, write_data

    if share is not None and source == SHAPES:
        raise InputError(f"--share {share} has no effect on shapes, whose masks have the size of a thing")
    if split is not None and source != SHAPES:
        raise InputError(f"--split {split} is of shapes alone, not of {source}")
    sheet = write_data(
        out,
        source,
        kind=kind,
        share=0.25 if share is None else share,
        seed=seed,
        count=count,
        split=split or "train",
        overwrite=overwrite,
    )
    rows = (sheet.parent / ROWS_FILE).read_bytes().count(b"\n")
    print(f"{out}: {rows} rows; look at {sheet}")


@app.command(
    examples="""
    imagereward preprocess sd_inpaint/grpo prompts=rows.jsonl latent_cache=cache text_cache=cache
    imagereward preprocess flux_fill/grpo prompts=rows.jsonl latent_cache=cache --processes 4
    """
)
def preprocess(
    recipe: Annotated[str, typer.Argument(help="The recipe whose data to encode, as for `tune`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value …", help="Values that replace the recipe's.  [default: none]"),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that encode; each takes a GPU in turn, if there are any.")
    ] = 1,
    device: Annotated[
        str | None, typer.Option(help="Where to encode.  [default: the GPUs in turn, else the CPU]")
    ] = None,
) -> None:
    """Encode a training's prompts and pictures ahead.

    Fills the directories text_cache and latent_cache of the recipe, which `tune` with the same settings then
    reads. Goes on where it stopped: rows that are there already are left out.
    """
    from imagereward.errors import missing_extra

    try:
        from imagereward.tuning.preprocessing import preprocess as run
    except ImportError as error:
        raise missing_extra("preprocessing", "train", error) from error
    found = run(recipe, overrides or [], processes=processes, device=device)
    print(f"{found.rows} rows, {found.prompts} prompts; {found.encoded} encoded now: {found.directories}")
