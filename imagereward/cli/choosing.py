"""The subcommand choose, a local page that collects choices and learns from them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imagereward.cli.app import app
from imagereward.cli.common import DEFAULT_MODEL, load_scorer
from imagereward.cli.options import Device, Model, Offline, Root


@app.command(
    examples="""
    imagereward choose pictures/
    imagereward choose shapes/ --prompts shapes/train.json --model ImageReward-tiny
    """
)
def choose(
    folder: Annotated[Path, typer.Argument(help="A folder with several images for each of its prompts.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A table with columns of images and prompts; its paths start at the folder.  "
            "[default: the prompts beside or inside the images]"
        ),
    ] = None,
    choices: Annotated[
        Path | None,
        typer.Option(help="The file that gets a line for each choice.  [default: FOLDER/choices.jsonl]"),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="The directory of the adapter that learns.  [default: FOLDER/my-taste]"),
    ] = None,
    model: Model = None,
    kind: Annotated[
        str, typer.Option(help="The adapter: loreft, noreft, consreft, lobireft, direft, nodireft or lora.")
    ] = "loreft",
    shown: Annotated[
        int,
        typer.Option(
            min=2, max=4, help="How many images are shown at once; more than two are put into an order."
        ),
    ] = 2,
    host: Annotated[
        str, typer.Option(help="Address to listen on; on another than this machine's, a token is asked for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")] = 8010,
    seed: Annotated[int, typer.Option(min=0, help="Decides sides and random pairs.")] = 0,
    device: Device = None,
    download_root: Root = None,
    offline: Offline = False,
) -> None:
    """Choose the better images on a local page, and learn a reward.

    Every choice is on the disk at once. The next pair is the one with the closest scores or, once there is an
    adapter, that about which adapters of resampled choices disagree most; every third is a random one, and
    the page says which. Its button teaches the adapter, and says how often it agrees with choices that were
    held out; an adapter that is no better than the scorer is dropped. Ctrl-C ends; started again, it goes on
    with the choices and the adapter.
    """
    from imagereward.errors import missing_extra

    try:
        from imagereward.choosing.run import run
    except ImportError as error:
        raise missing_extra("imagereward choose", "serve", error) from error

    def load() -> Any:
        return load_scorer(model or DEFAULT_MODEL, None, device, None, download_root, offline)

    run(
        load,
        folder,
        prompts,
        choices or folder / "choices.jsonl",
        adapter or folder / "my-taste",
        kind=kind,
        host=host,
        port=port,
        seed=seed,
        shown=shown,
    )
