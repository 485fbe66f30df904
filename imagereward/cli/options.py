"""Options that several commands have. Each help text ends with the default, where typer does not add it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How a command prints its rows."""

    table = "table"
    json = "json"
    csv = "csv"


NAMES = "A name from `imagereward models`, a checkpoint file, a directory or a hub id"
Model = Annotated[str | None, typer.Option("--model", "-m", help=f"{NAMES}.  [default: ImageReward-v1.0]")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help=f"{NAMES}; repeatable.  [default: ImageReward-v1.0]"),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        help="Weights on disk (.pt, .pth, .safetensors). --model then names the registry entry that says how "
        "they score, where their keys do not tell.  [default: the released weights of --model]"
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps …  [default: the first GPU if there is one, else cpu]"),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.  [default: float32]")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Images in one pass of the model.  [default: 8 on a CPU, 64 on a GPU]"),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never touch the network: use files that are on this machine.")
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--download-root",
        help="Directory where released files are looked for and put.  "
        "[default: ~/.cache/ImageReward, then the hub cache]",
    ),
]
MaxPixels = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Millions of pixels up to which a picture is decoded; a larger one is an error.  [default: 179]",
    ),
]
ExifRotation = Annotated[
    bool,
    typer.Option(
        "--exif-rotation",
        help="Turn photos as their EXIF orientation says before they are scored. Without it they are scored "
        "as they are stored, like the originals do.",
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help="Encoding of tables of text: utf-8, utf-16, cp1252, gb18030 …  "
        "[default: what a byte order mark says, else UTF-8]"
    ),
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the rows.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the output if it exists; without it that is an error."),
]
Prompt = Annotated[str, typer.Argument(help="What the images should show, as one quoted text.")]
Images = Annotated[list[str], typer.Argument(help="Image files, or quoted globs such as 'pictures/*.png'.")]
