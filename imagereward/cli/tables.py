"""Tables of scores: score-table, report."""

from pathlib import Path
from typing import Annotated

import typer

from imagereward.cli.app import app
from imagereward.cli.common import say_note
from imagereward.cli.options import (
    BatchSize,
    Offline,
    Root,
)

SOME_ROWS_FAILED = 3  # 2 is a wrong command line


@app.command("score-table")
def score_table(
    input: Annotated[
        str,
        typer.Argument(
            help="A .jsonl, .csv, .tsv, .parquet, .json or .tar file, a quoted glob, or a directory."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .parquet, .jsonl or .csv file.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="As elsewhere; repeatable.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt for all rows.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Default: prompt, text, caption …")] = None,
    image_column: Annotated[str | None, typer.Option(help="Default: image, image_path, path …")] = None,
    id_column: Annotated[str | None, typer.Option(help="Default: id, key …")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A column to copy; repeatable.")] = None,
    images: Annotated[Path | None, typer.Option(help="Where relative paths of images begin.")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of tables of text; default: UTF-8, or as marked.")
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="Repeatable: a process for each.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    batch_size: BatchSize = None,
    part_rows: Annotated[int, typer.Option(help="Rows that are scored and written together.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Decoding processes per device.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A directory to keep image features in.")] = None,
    cache_budget: Annotated[float | None, typer.Option(help="How many GB of them.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on many machines.")] = "local",
    actors: Annotated[
        int | None, typer.Option(help="Scorers on Ray; default: one per GPU, or per CPU.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,
    download_root: Root = None,
    offline: Offline = False,
) -> None:
    """Score a table, a folder or shards of images, row by row; goes on where a killed run stopped.

    Exit code 0: every row has scores. 3: finished, but some rows have an error instead. 1: not finished.
    """
    from imagereward import bulk

    names = model or ["ImageReward-v1.0"]
    for name in names:
        say_note(name)
    summary = bulk.score_table(
        input,
        out,
        names,
        prompt=prompt,
        prompt_column=prompt_column,
        image_column=image_column,
        id_column=id_column,
        keep=keep or (),
        images=images,
        encoding=encoding,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        part_rows=part_rows,
        workers=workers,
        cache=cache,
        cache_budget=cache_budget,
        engine=engine,
        actors=actors,
        overwrite=overwrite,
        download_root=download_root,
        local_files_only=offline,
    )
    print(summary)
    raise typer.Exit(SOME_ROWS_FAILED if summary.failed else 0)


@app.command()
def report(
    scores: Annotated[Path, typer.Argument(help="What score-table wrote: .parquet, .jsonl or .csv.")],
    out: Annotated[Path, typer.Option(help="The page, a .html file.")] = Path("report.html"),
    generator: Annotated[
        str | None,
        typer.Option(help="The column that tells generators apart; default: generator, or folders."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="The scorer that best and worst are by; default: the first.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Where relative paths of images begin.")] = None,
    prompts: Annotated[int, typer.Option(min=0, max=40, help="Prompts to show the images of.")] = 6,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
) -> None:
    """Make one HTML file of a table of scores: distributions, win rates, agreement, best and worst images."""
    from imagereward.report import write_report

    print(
        write_report(
            scores, out, generator=generator, by=by, images=images, prompts=prompts, overwrite=overwrite
        )
    )
