"""The subcommands score-table and report."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from imagereward.cli.app import app
from imagereward.cli.common import adapted, allow_pixels, say_note
from imagereward.cli.options import (
    AdapterPaths,
    BatchSize,
    Encoding,
    ExifRotation,
    MaxPixels,
    Models,
    Offline,
    Overwrite,
    Root,
)

SOME_ROWS_FAILED = 3  # 2 is a wrong command line


@app.command(
    "score-table",
    examples="""
    imagereward score-table images.jsonl --out scores.parquet
    imagereward score-table pictures/ --out scores.csv -m ImageReward-v1.0 -m Aesthetic
    imagereward score-table 'shards/*.tar' --out scores.parquet --device cuda:0 --device cuda:1
    """,
)
def score_table(
    input: Annotated[
        str,
        typer.Argument(
            help="A .jsonl, .csv, .tsv, .parquet, .json or .tar file, a quoted glob, or a directory."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The table to write: a .parquet, .jsonl or .csv file.")],
    model: Models = None,
    adapter: AdapterPaths = None,
    prompt: Annotated[
        str | None, typer.Option(help="One prompt for all rows.  [default: each row's own]")
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option(help="The column of prompts.  [default: the first of prompt, text, caption …]"),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(help="The column of images.  [default: the first of image, image_path, path …]"),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="The column of identifiers.  [default: id or key, if there is one]")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A column to copy to the output; repeatable.  [default: none]")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Directory that relative image paths start at.  [default: each table's directory]"),
    ] = None,
    encoding: Encoding = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda, cuda:1 …; repeatable: a process for each.  "
            "[default: the first CUDA GPU if there is one, else cpu]"
        ),
    ] = None,
    markup: Annotated[
        str, typer.Option(help="strip or keep weights and LoRA tags in prompts that web UIs wrote.")
    ] = "strip",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    batch_size: BatchSize = None,
    max_pixels: MaxPixels = None,
    exif_rotation: ExifRotation = False,
    part_rows: Annotated[
        int, typer.Option(help="Rows that are scored and written together, 1 to 65536.")
    ] = 256,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Decoding processes per device; 0 decodes in a thread.  [default: by the number of CPUs]"
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="A directory for a cache of image features.  [default: no cache]")
    ] = None,
    cache_budget: Annotated[
        float | None,
        typer.Option(help="Size of the cache in GB; required with --cache.  [default: none]"),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: on this machine; ray: on this machine or a Ray cluster.")
    ] = "local",
    actors: Annotated[
        int | None, typer.Option(help="Scorers, with --engine ray alone.  [default: one per GPU, or per CPU]")
    ] = None,
    overwrite: Overwrite = False,
    download_root: Root = None,
    offline: Offline = False,
) -> None:
    """Score a table, a folder or shards of images, row by row.

    After an interruption, the same command continues after the last finished part.

    With rewards of a region as models, such as boundary or "inside(CLIP)", the rows need a mask (and for some
    an original) beside the painted image, and are scored one by one, on one device, in this process.

    Exit code 0: every row has scores. 3: finished, but some rows have an error instead. 1: not finished.
    """
    from imagereward import bulk
    from imagereward.bulk.masked import reads_masks, score_masked_table

    allow_pixels(max_pixels)
    names = adapted(model or ["ImageReward-v1.0"], adapter, offline)
    for name in names:
        say_note(name)
    both: dict[str, Any] = {
        "prompt": prompt,
        "prompt_column": prompt_column,
        "image_column": image_column,
        "id_column": id_column,
        "keep": keep or (),
        "images": images,
        "encoding": encoding,
        "dtype": dtype,
        "part_rows": part_rows,
        "overwrite": overwrite,
        "download_root": download_root,
        "local_files_only": offline,
    }
    of_regions = list(filter(reads_masks, names))
    if of_regions:
        _refuse_beside_masks(
            of_regions[0],
            {
                "a second --device": len(device or ()) > 1,
                "--markup": markup != "strip",
                "--batch-size": batch_size is not None,
                "--exif-rotation": exif_rotation,
                "--workers": workers is not None,
                "--cache": cache is not None,
                "--cache-budget": cache_budget is not None,
                "--engine": engine != "local",
                "--actors": actors is not None,
            },
        )
    try:
        if of_regions:
            summary = score_masked_table(input, out, names, device=device[0] if device else None, **both)
        else:
            summary = bulk.score_table(
                input,
                out,
                names,
                markup=markup,  # type: ignore[arg-type]
                device=device,
                batch_size=batch_size,
                apply_exif_rotation=exif_rotation or None,
                workers=workers,
                cache=cache,
                cache_budget=cache_budget,
                engine=engine,
                actors=actors,
                **both,
            )
    except KeyboardInterrupt:
        print(
            f"imagereward: finished parts are kept in {out}.parts; the same command goes on from there",
            file=sys.stderr,
        )
        raise
    print(summary)
    raise typer.Exit(SOME_ROWS_FAILED if summary.failed or summary.partly else 0)


def _refuse_beside_masks(name: str, given: dict[str, bool]) -> None:
    """InputError naming the options that were given and have no effect on rows with masks."""
    from imagereward.errors import InputError, listing

    if extra := [option for option, is_given in given.items() if is_given]:
        raise InputError(
            f"{name} scores rows with masks, upright and one by one, on one device, in this process: leave "
            f"out {listing(extra, 10)}"
        )


@app.command(
    examples="""
    imagereward report scores.parquet
    imagereward report scores.csv --out page.html --generator model --by Aesthetic
    """
)
def report(
    scores: Annotated[Path, typer.Argument(help="What score-table wrote: .parquet, .jsonl or .csv.")],
    out: Annotated[Path, typer.Option(help="The page to write, a .html file.")] = Path("report.html"),
    generator: Annotated[
        str | None,
        typer.Option(
            help="The column with the generators' names.  "
            "[default: the column generator if there is one, else the images' folders]"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="The scorer that decides which images are best and worst.  [default: the first]"),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Directory that relative image paths start at.  [default: the table's directory]"),
    ] = None,
    prompts: Annotated[int, typer.Option(min=0, max=40, help="Number of prompts to show images of.")] = 6,
    max_pixels: MaxPixels = None,
    overwrite: Overwrite = False,
) -> None:
    """Make an HTML page of a table of scores.

    It shows distributions, win rates, agreement of scorers, best and worst images, and errors.
    """
    from imagereward.report import write_report

    allow_pixels(max_pixels)
    print(
        write_report(
            scores, out, generator=generator, by=by, images=images, prompts=prompts, overwrite=overwrite
        )
    )
