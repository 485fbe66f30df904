"""The subcommand serve, which runs the reward server."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from imagereward.cli.app import app
from imagereward.cli.common import adapted, load_scorer
from imagereward.cli.options import (
    NAMES,
    AdapterPaths,
    BatchSize,
    Device,
    Dtype,
    ExifRotation,
    Offline,
    Root,
)


class Engine(StrEnum):
    """Where the server runs: in this process, or on a Ray cluster."""

    local = "local"
    ray = "ray"


@app.command(
    examples="""
    imagereward serve --model ImageReward-v1.0 --port 8000
    imagereward serve -m ImageReward-v1.0 -m Aesthetic --host 0.0.0.0 --token-file token.txt
    """
)
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help=f"{NAMES}; repeatable. Requests that name no model get the first.  "
            "[default: ImageReward-v1.0]",
        ),
    ] = None,
    adapter: AdapterPaths = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 admits other machines: then use a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free one.")
    ] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with the token that clients must send.  "
            "[default: the variable IMAGEREWARD_TOKEN, if set]"
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    window: Annotated[
        float, typer.Option(min=0, help="Milliseconds that a request may wait for others to join its batch.")
    ] = 5.0,
    queue: Annotated[
        int, typer.Option(min=1, help="Images that may wait; further requests are answered 429.")
    ] = 1024,
    max_body: Annotated[int, typer.Option(min=1, help="Most MiB of one request.")] = 64,
    max_images: Annotated[int, typer.Option(min=1, help="Most images of one request.")] = 256,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most millions of pixels of one image.")] = 64,
    exif_rotation: ExifRotation = False,
    engine: Annotated[
        Engine, typer.Option(help="local: one process here; ray: replicas on a cluster.")
    ] = Engine.local,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Most replicas; with --engine ray alone.  [default: 1]")
    ] = None,
    download_root: Root = None,
    offline: Offline = False,
) -> None:
    """Answer HTTP requests for scores.

    Runs until SIGTERM or Ctrl-C, then finishes the requests in progress and stops.
    """
    from imagereward.errors import InputError, missing_extra
    from imagereward.images import encoded

    try:
        from imagereward.serve import Limits
        from imagereward.serve.memory import share_one_arena
        from imagereward.serve.run import read_token, run
    except ImportError as error:
        raise missing_extra("imagereward serve", "serve", error) from error
    if replicas is not None and engine != Engine.ray:
        raise InputError(f"--replicas {replicas} needs --engine ray: without Ray, the server is one process")
    pixels = max_pixels * 10**6
    if pixels > encoded.max_pixels():
        encoded.set_max_pixels(pixels)
    limits = Limits(
        body=max_body * 2**20,
        images=max_images,
        image_pixels=pixels,
        request_pixels=max(Limits.request_pixels, pixels),
        queue=queue,
    )
    options: dict[str, Any] = {
        "limits": limits,
        "batch_size": batch_size,
        "window": window / 1000,
        "token": read_token(token_file),
    }
    names = adapted(model or ["ImageReward-v1.0"], adapter, offline)
    share_one_arena()

    def load(where: str | None) -> list:
        return [
            load_scorer(name, None, where, dtype, download_root, offline, exif_rotation) for name in names
        ]

    if engine == Engine.ray:
        from imagereward.serve.on_ray import deploy

        deploy(load, host, port, replicas or 1, device, **options)
    else:
        run(load(device), host, port, **options)
