"""Scoring: models, score, rank, verify, bench, demo."""

import glob
import json
from pathlib import Path
from typing import Annotated

import typer

from imagereward.cli.app import app
from imagereward.cli.common import load_scorer, print_rows, say_note
from imagereward.cli.options import (
    BatchSize,
    CheckpointFile,
    Device,
    Dtype,
    Format,
    Images,
    Model,
    Offline,
    OutputFormat,
    Prompt,
    Root,
)


@app.command()
def models(format: OutputFormat = Format.table) -> None:
    """The scorers that can be loaded by name."""
    from imagereward.registry import REGISTRY

    rows = [
        {
            "name": name,
            "scores": entry.scores,
            "tokens": entry.config.max_length,
            "pixels": entry.config.preprocess.size,
            "licence": entry.licence,
            "source": _source(entry.files[-1]),
            "paper": entry.paper,
        }
        for name, entry in REGISTRY.items()
    ]
    print_rows(rows, format)


@app.command()
def score(
    prompt: Prompt,
    images: Images,
    model: Model = None,
    checkpoint: CheckpointFile = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    download_root: Root = None,
    offline: Offline = False,
    format: OutputFormat = Format.table,
) -> None:
    """Score images against a prompt, in the order they are given."""
    paths = _expand(images)
    scorer = load_scorer(model, checkpoint, device, dtype, download_root, offline)
    scores = scorer.score(prompt, paths, batch_size=batch_size)
    print_rows([{"score": value, "image": path} for value, path in zip(scores, paths)], format)


@app.command()
def rank(
    prompt: Prompt,
    images: Images,
    model: Model = None,
    checkpoint: CheckpointFile = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    download_root: Root = None,
    offline: Offline = False,
    format: OutputFormat = Format.table,
) -> None:
    """Rank images by how well they answer a prompt, best first."""
    paths = _expand(images)
    scorer = load_scorer(model, checkpoint, device, dtype, download_root, offline)
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
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    print_rows(ranking.rows(), format)


@app.command()
def verify(
    checkpoint: CheckpointFile = None,
    images: Annotated[
        Path | None, typer.Option(help="Directory with the four published samples, 1.webp to 4.webp.")
    ] = None,
    device: Device = None,
    download_root: Root = None,
) -> None:
    """Score the four published sample images with the released weights; print published beside measured."""
    from imagereward.verify import verify as run

    rows, agrees = run(checkpoint, images, device, download_root)
    print_rows(rows, Format.table)
    print("agrees with the published scores" if agrees else "DOES NOT agree with the published scores")
    raise typer.Exit(0 if agrees else 1)


@app.command()
def bench(
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name from `imagereward models`.")
    ] = "ImageReward-v1.0",
    device: Device = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Repeatable; default float32 and bfloat16.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Repeatable; default 1 and 8.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to time each setting.")] = 5.0,
    format: OutputFormat = Format.table,
) -> None:
    """Images per second of this machine, by dtype and batch size (random weights: nothing is downloaded)."""
    from imagereward.bench import throughput

    rows = throughput(model, device, dtype or ["float32", "bfloat16"], batch_size or [1, 8], seconds)
    print_rows(rows, format)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("imagereward-demo.html"),
    prompts: Annotated[int, typer.Option(min=1, max=200, help="How many prompts.")] = 4,
    images: Annotated[int, typer.Option(min=2, max=50, help="Candidates a prompt.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other pictures.")] = 0,
    device: Device = None,
) -> None:
    """Rank freshly drawn pictures with the model in the package, beside the truth. Needs no network."""
    from imagereward.demo import MODEL, judge, write_page

    say_note(MODEL)
    judged = judge(prompts, images, seed, device)
    for each in judged:
        print(f"{each.ranking.prompt}")
        print_rows(each.rows(), Format.table)
        print()
    right = [pair for each in judged for pair in each.clear_pairs]
    print(f"{sum(right)} of {len(right)} pairs in which one picture is clearly better are ranked right")
    print(f"the pictures, in this order: {write_page(judged, out)}")


def _source(file) -> str:
    if file.packaged:
        return "in the package"
    return file.hub[0] if file.hub else "web"


def _expand(patterns: list[str]) -> list[str]:
    """Globs that the shell did not expand, sorted; every other argument as it is; all of them images.

    Checked here, so that a wrong path costs no loading (and no download) of a model.
    """
    from imagereward.errors import ImageNotFound
    from imagereward.images import check_image

    paths: list[str] = []
    for pattern in patterns:
        found = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
            if not found:
                raise ImageNotFound(f"no file matches {pattern!r}")
        paths += found
    for index, path in enumerate(paths):
        check_image(path, index)
    return paths
