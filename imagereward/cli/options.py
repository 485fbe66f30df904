"""Options that several commands share. Each help text ends with the default if typer does not add it."""

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
AdapterPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="An adapter to put on its scorer: a directory or a hub id; repeatable with several --model. "
        "--model NAME+ADAPTER says the same.  [default: none]",
    ),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        help="Weights on disk (.pt, .pth, .safetensors). --model then names the scorer that they belong to, "
        "if their keys do not show it.  [default: the released weights of --model]"
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, mps …  [default: the first CUDA GPU if there is one, else cpu]"),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.  [default: float32]")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Images in one forward pass.  [default: 8 on a CPU, 64 on a GPU]"),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never touch the network: use files that are on this machine.")
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--download-root",
        help="Directory to read released files from and to download them to.  "
        "[default: ~/.cache/ImageReward, then the hub cache]",
    ),
]
MaxPixels = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Millions of pixels of the largest image that is decoded; larger images are errors.  "
        "[default: 179]",
    ),
]
ExifRotation = Annotated[
    bool,
    typer.Option(
        "--exif-rotation",
        help="Rotate photos by their EXIF orientation before they are scored. By default they are scored as "
        "stored, as the original implementations do.",
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help="Encoding of tables of text: utf-8, utf-16, cp1252, gb18030 …  "
        "[default: by the byte order mark, else UTF-8]"
    ),
]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print the rows.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an existing output, which is otherwise an error."),
]
Prompt = Annotated[str, typer.Argument(help="What the images should show, as one quoted text.")]
Images = Annotated[list[str], typer.Argument(help="Image files, or quoted globs such as 'pictures/*.png'.")]
