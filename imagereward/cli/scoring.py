"""The subcommands models, score, rank, verify, bench and demo."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imagereward.cli.app import app
from imagereward.cli.common import (
    DEFAULT_MODEL,
    adapted,
    allow_pixels,
    check_prompt,
    image_paths,
    load_scorer,
    print_rows,
    say_note,
)
from imagereward.cli.options import (
    AdapterPaths,
    BatchSize,
    CheckpointFile,
    Device,
    Dtype,
    ExifRotation,
    Format,
    Images,
    MaxPixels,
    Model,
    Models,
    Offline,
    OutputFormat,
    Overwrite,
    Prompt,
    Root,
)
from imagereward.cli.output import as_json


@app.command(examples="imagereward models\nimagereward models --format json")
def models(
    format: OutputFormat = Format.table,
    judges: Annotated[
        bool, typer.Option("--judges", help="List the vision-language models that have a name.")
    ] = False,
    templates: Annotated[
        bool, typer.Option("--templates", help="Print the questions that judges are asked.")
    ] = False,
) -> None:
    """List the scorers that can be loaded by name."""
    from imagereward.checkpoints.registry import REGISTRY

    if judges and templates:
        raise typer.BadParameter("--judges and --templates print different tables: give one of them")
    if judges or templates:
        from imagereward.cli.judges import judge_rows, template_rows

        print_rows(template_rows() if templates else judge_rows(), format)
        return
    rows = [
        {
            "name": name,
            "scores": entry.scores,
            "tokens": entry.config.max_length,
            "pixels": entry.config.preprocess.size,
            "checked": entry.checked,
            "licence": entry.licence,
            "source": _source(entry.files[-1]),
            "paper": entry.paper,
        }
        for name, entry in REGISTRY.items()
    ]
    print_rows(rows, format)


@app.command(
    examples="""
    imagereward score 'a red bicycle' a.png b.png
    imagereward score 'a red bicycle' 'pictures/*.png' -m ImageReward-v1.0 -m Aesthetic --format csv
    """
)
def score(
    prompt: Prompt,
    images: Images,
    model: Models = None,
    adapter: AdapterPaths = None,
    checkpoint: CheckpointFile = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    max_pixels: MaxPixels = None,
    exif_rotation: ExifRotation = False,
    download_root: Root = None,
    offline: Offline = False,
    format: OutputFormat = Format.table,
) -> None:
    """Score images against a prompt, in the order given.

    With one --model the column is called score; with several, each has a column score:NAME.
    """
    allow_pixels(max_pixels)
    check_prompt(prompt, "score")
    paths = image_paths(images)
    names = adapted(model or [DEFAULT_MODEL], adapter, offline) if adapter else model or []
    if len(names) > 1:
        columns = _columns(
            names,
            checkpoint,
            prompt,
            paths,
            batch_size,
            (device, dtype, download_root, offline, exif_rotation),
        )
    else:
        name = names[0] if names else None
        scorer = load_scorer(name, checkpoint, device, dtype, download_root, offline, exif_rotation)
        columns = {"score": scorer.score(prompt, paths, batch_size=batch_size)}
    rows = [dict(zip([*columns, "image"], row)) for row in zip(*columns.values(), paths)]
    print_rows(rows, format)


@app.command(
    examples="""
    imagereward rank 'a red bicycle' a.png b.png
    imagereward rank 'a red bicycle' 'pictures/*.png' --model HPSv2.1 --format json
    """
)
def rank(
    prompt: Prompt,
    images: Images,
    model: Model = None,
    adapter: AdapterPaths = None,
    checkpoint: CheckpointFile = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    max_pixels: MaxPixels = None,
    exif_rotation: ExifRotation = False,
    download_root: Root = None,
    offline: Offline = False,
    format: OutputFormat = Format.table,
) -> None:
    """Rank images by how well they fit a prompt, best first."""
    allow_pixels(max_pixels)
    check_prompt(prompt, "rank")
    paths = image_paths(images)
    if adapter:
        (model,) = adapted([model or DEFAULT_MODEL], adapter, offline)
    scorer = load_scorer(model, checkpoint, device, dtype, download_root, offline, exif_rotation)
    ranking = scorer.rank(prompt, paths, batch_size=batch_size)
    if format == Format.table:
        print(ranking)
        return
    if format == Format.json:
        result = {
            "model": ranking.model,
            "prompt": prompt,
            "tokens": ranking.tokens,
            "truncated": ranking.truncated,
            "ranking": ranking.rows(),
        }
        print(as_json(result))
        return
    print_rows(ranking.rows(), format)


@app.command(
    examples="""
    imagereward verify
    imagereward verify --checkpoint ImageReward.pt --images samples
    """
)
def verify(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="ImageReward's weights on disk.  [default: the released file, downloaded if missing]"
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Directory with the four published samples, 1.webp to 4.webp.  "
            "[default: DOWNLOAD_ROOT/samples, downloaded if missing]"
        ),
    ] = None,
    device: Device = None,
    download_root: Root = None,
) -> None:
    """Check that this machine reproduces the published scores.

    Scores the four published sample images with the released weights and prints published beside measured.
    Exit code 0: all agree within 0.001. 1: they differ, or a file is missing.
    """
    from imagereward.checkpoints.verify import verify as run

    rows, agrees = run(checkpoint, images, device, download_root)
    print_rows(rows, Format.table)
    print("agrees with the published scores" if agrees else "DOES NOT agree with the published scores")
    raise typer.Exit(0 if agrees else 1)


@app.command(
    examples="""
    imagereward bench --model ImageReward-tiny --seconds 1
    imagereward bench --device cuda --dtype float16 --batch-size 64
    """
)
def bench(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name from `imagereward models`.")
    ] = DEFAULT_MODEL,
    device: Device = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="A precision to measure; repeatable.  [default: float32 and bfloat16]"),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="A batch size to measure; repeatable.  [default: 1 and 8]")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Least time to measure each setting.")] = 5.0,
    format: OutputFormat = Format.table,
) -> None:
    """Measure images per second by dtype and batch size.

    Uses random weights, so nothing is downloaded. ImageReward-v1.0 takes 2 GB of memory.
    """
    from imagereward.throughput import throughput

    rows = throughput(model, device, dtype or ["float32", "bfloat16"], batch_size or [1, 8], seconds)
    print_rows(rows, format)


@app.command(
    examples="""
    imagereward demo
    imagereward demo --prompts 10 --seed 1 --out more.html
    """
)
def demo(
    out: Annotated[Path, typer.Option(help="The page to write, a .html file.")] = Path(
        "imagereward-demo.html"
    ),
    prompts: Annotated[int, typer.Option(min=1, max=200, help="Number of prompts.")] = 4,
    images: Annotated[int, typer.Option(min=2, max=50, help="Candidate images for each prompt.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawings.")] = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Rank newly drawn pictures with the model in the package.

    Prints the ranking beside the true utility of each picture, and writes a page with the pictures. Needs no
    network.
    """
    from imagereward.writing import check_free

    check_free(out, overwrite)
    from imagereward.demo import MODEL, judge, write_page

    say_note(MODEL)
    judged = judge(prompts, images, seed, device)
    for each in judged:
        print(f"{each.ranking.prompt}")
        print_rows(each.rows(), Format.table)
        print()
    right = [pair for each in judged for pair in each.clear_pairs]
    print(f"{sum(right)} of {len(right)} pairs in which one picture is clearly better are ranked right")
    print(f"the pictures, in this order: {write_page(judged, out, overwrite)}")


def _columns(names, checkpoint, prompt, paths, batch_size, how: tuple) -> dict[str, list[float]]:
    """{"score:NAME": scores} of several models, named like the columns of score-table."""
    import imagereward
    from imagereward.errors import InputError

    if checkpoint is not None:
        raise InputError("--checkpoint goes with one --model; pass the file itself as another --model")
    if len(set(names)) < len(names):
        raise InputError(f"--model names one scorer twice: {', '.join(names)}")
    device, dtype, download_root, offline, exif_rotation = how
    for name in names:
        say_note(name)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "download_root": download_root}
    options["apply_exif_rotation"] = exif_rotation or None
    both = imagereward.ensemble(dict.fromkeys(names, 1.0), local_files_only=offline, **options)
    scores = both.score_components(prompt, paths, batch_size=batch_size)
    return {f"score:{name}": column for name, column in scores.items()}


def _source(file) -> str:
    if file.packaged:
        return "in the package"
    return file.hub[0] if file.hub else "web"
