"""The subcommand evaluate, which measures an adapter on choices."""

from pathlib import Path
from typing import Annotated

import typer

from imagereward.cli.app import app
from imagereward.cli.common import DEFAULT_MODEL, adapted, allow_pixels, load_scorer, print_rows
from imagereward.cli.options import (
    AdapterPaths,
    BatchSize,
    Device,
    Dtype,
    Encoding,
    Format,
    MaxPixels,
    Model,
    Offline,
    OutputFormat,
    Root,
)
from imagereward.cli.output import as_json


@app.command(
    examples="""
    imagereward evaluate more/choices.jsonl --model ImageReward-v1.0+my-taste
    imagereward evaluate choices.csv --model ImageReward-tiny --adapter my-taste --format json
    """
)
def evaluate(
    choices: Annotated[
        Path, typer.Argument(help="A table of choices that the adapter did not learn from, as choose writes.")
    ],
    model: Model = None,
    adapter: AdapterPaths = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Directory that relative image paths start at.  [default: the table's directory]"),
    ] = None,
    encoding: Encoding = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    max_pixels: MaxPixels = None,
    download_root: Root = None,
    offline: Offline = False,
    format: OutputFormat = Format.table,
) -> None:
    """Measure an adapter on further choices.

    Prints how often the scorer with the adapter agrees with the choices, how often without it, and the
    difference, each with a 95 % interval.
    """
    from imagereward.errors import missing_extra

    try:
        from imagereward.tuning.personal.choices import read_choices
        from imagereward.tuning.personal.summary import evaluate as measure
    except ImportError as error:
        raise missing_extra("imagereward evaluate", "train", error) from error
    allow_pixels(max_pixels)
    read = read_choices(choices, images, encoding)
    (name,) = adapted([model or DEFAULT_MODEL], adapter, offline)
    found = measure(load_scorer(name, None, device, dtype, download_root, offline), read, batch_size)
    if format == Format.table:
        print(found)
    elif format == Format.json:
        print(as_json(found.to_dict()))
    else:
        print_rows(found.rows(), format)
