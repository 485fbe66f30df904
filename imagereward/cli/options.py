"""Options that several commands have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a command prints its rows."""

    table = "table"
    json = "json"
    csv = "csv"


Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name from `imagereward models`, a directory or a hub id."),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        help="Weights on disk (.pt, .pth, .safetensors); --model then says how they score, if needed."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
BatchSize = Annotated[int | None, typer.Option(help="Images in one pass of the model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
Root = Annotated[Path | None, typer.Option("--download-root", help="Where released files are, or go.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print.")]
Prompt = Annotated[str, typer.Argument(help="What the images should show.")]
Images = Annotated[list[str], typer.Argument(help="Image files, or quoted globs.")]
