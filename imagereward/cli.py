"""The `imagereward` command. Nothing heavy is imported until a command runs, so --help is instant."""

import csv
import glob
import json
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from imagereward.version import __version__

app = typer.Typer(
    help="Score, rank and compare generated images with reward models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: it answers twice as fast
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


SOME_ROWS_FAILED = 3  # 2 is a wrong command line


class Format(StrEnum):
    """How a command prints its rows."""

    table = "table"
    json = "json"
    csv = "csv"


class Engine(StrEnum):
    """What runs a server."""

    local = "local"
    ray = "ray"


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


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


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
    _print(rows, format)


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
    scorer = _load(model, checkpoint, device, dtype, download_root, offline)
    scores = scorer.score(prompt, paths, batch_size=batch_size)
    _print([{"score": value, "image": path} for value, path in zip(scores, paths)], format)


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
    scorer = _load(model, checkpoint, device, dtype, download_root, offline)
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
    _print(ranking.rows(), format)


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
    _print(rows, Format.table)
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
    _print(rows, format)


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

    _say_note(MODEL)
    judged = judge(prompts, images, seed, device)
    for each in judged:
        print(f"{each.ranking.prompt}")
        _print(each.rows(), Format.table)
        print()
    right = [pair for each in judged for pair in each.clear_pairs]
    print(f"{sum(right)} of {len(right)} pairs in which one picture is clearly better are ranked right")
    print(f"the pictures, in this order: {write_page(judged, out)}")


@app.command()
def shapes(
    out: Annotated[Path, typer.Option(help="A new or empty directory.")],
    prompts: Annotated[int, typer.Option(min=3, help="In all three splits together.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same files.")] = 0,
    images: Annotated[int, typer.Option(min=2, help="Images a prompt.")] = 6,
    size: Annotated[int, typer.Option(min=16, help="Pixels a side.")] = 64,
    noise: Annotated[float, typer.Option(min=0, help="The annotator's, in units of utility.")] = 0.25,
    faithfulness: Annotated[float, typer.Option(help="The annotator's weight of a wrong attribute.")] = 1.0,
    quality: Annotated[float, typer.Option(help="The annotator's weight of a level of damage.")] = 0.75,
) -> None:
    """Draw a data set of prompts, images and rankings with known truth, in ImageRewardDB's layout."""
    from imagereward.shapes import Annotator, write

    counts = write(
        out, prompts, seed, images=images, size=size, annotator=Annotator(noise, (faithfulness, quality))
    )
    print(f"{out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()) + " prompts")


@app.command("score-table")
def score_table(
    input: Annotated[
        str,
        typer.Argument(help="A .jsonl, .csv, .parquet, .json or .tar file, a quoted glob, or a directory."),
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
        _say_note(name)
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
def tune(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (--list shows them) or a TOML file.")] = "",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="key=value …")] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="The recipes in the package.")] = False,
) -> None:
    """Train as a recipe says: `imagereward tune tiny/preference data=shapes output=mine epochs=2`."""
    from imagereward.errors import ImageRewardError, InputError

    try:
        from imagereward import tuning
        from imagereward.tuning.config import recipe_names
    except ImportError as error:
        raise ImageRewardError(
            f"training needs more: python -m pip install 'imagereward[train]' ({error})"
        ) from error
    if list_recipes:
        print("\n".join(recipe_names()))
        return
    if not recipe:
        raise InputError(f"which recipe? known: {', '.join(recipe_names())}")
    tuning.run_recipe(recipe, overrides or [])


@app.command()
def compare(
    base: Annotated[str, typer.Argument(help="A diffusers pipeline: a directory or a hub id.")],
    tuned: Annotated[str, typer.Argument(help="Another, or LoRA weights for the base.")],
    prompts: Annotated[Path, typer.Option(help="A file of prompts: .json, .jsonl or text.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="A scorer; may be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("comparison.html"),
    seeds: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 2,
    most: Annotated[int, typer.Option(min=1, help="Prompts, from the first.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 40,
    guidance: Annotated[float, typer.Option(min=0, help="1 is none.")] = 7.5,
    resolution: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Draw the same prompts from the same noise with two generators, and say which is rewarded more."""
    from imagereward.errors import InputError
    from imagereward.loading import DTYPES
    from imagereward.tuning.compare import compare as run
    from imagereward.tuning.compare import page
    from imagereward.tuning.prompts import read_prompts

    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: expected {', '.join(DTYPES)}")
    if out.exists():
        raise InputError(f"{out} exists; choose another --out, or remove it")
    names = model or ["ImageReward-v1.0"]
    for name in names:
        _say_note(name)
    found = run(
        base,
        tuned,
        read_prompts(prompts)[:most],
        dict.fromkeys(names, 1.0),
        seeds=seeds,
        steps=steps,
        guidance=guidance,
        resolution=resolution,
        batch_size=batch_size,
        seed=seed,
        device=device,
        dtype=DTYPES[dtype],
    )
    _print(found.rows(), Format.table)
    if found.diversity:
        print(f"diversity: {found.diversity[0]:.4f} base, {found.diversity[1]:.4f} tuned")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(found, (base, tuned)), encoding="utf-8")
    print(f"the pictures, side by side: {out}")


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Repeatable; a name, file, directory or hub id. The first is default."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets other machines in: then use a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Clients must send the token in this file; or set IMAGEREWARD_TOKEN."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    window: Annotated[float, typer.Option(min=0, help="Milliseconds a request may wait for others.")] = 5.0,
    queue: Annotated[int, typer.Option(min=1, help="Images that may wait; beyond, requests get 429.")] = 1024,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of one request.")] = 64,
    max_images: Annotated[int, typer.Option(min=1, help="Images of one request.")] = 256,
    max_pixels: Annotated[int, typer.Option(min=1, help="Millions of pixels of one image.")] = 64,
    engine: Annotated[Engine, typer.Option(help="ray: on a cluster, with replicas.")] = Engine.local,
    replicas: Annotated[int, typer.Option(min=1, help="With --engine ray: at most so many.")] = 1,
    download_root: Root = None,
    offline: Offline = False,
) -> None:
    """Answer HTTP requests for scores, until SIGTERM: then finish what was asked, and stop."""
    from imagereward.errors import ImageRewardError

    try:
        from imagereward.serve import Limits
        from imagereward.serve.run import read_token, run
    except ImportError as error:
        raise ImageRewardError(
            f"serving needs more: python -m pip install 'imagereward[serve]' ({error})"
        ) from error
    limits = Limits(body=max_body * 2**20, images=max_images, image_pixels=max_pixels * 10**6, queue=queue)
    options: dict[str, Any] = {
        "limits": limits,
        "batch_size": batch_size,
        "window": window / 1000,
        "token": read_token(token_file),
    }
    names = model or ["ImageReward-v1.0"]

    def load() -> list:
        return [_load(name, None, device, dtype, download_root, offline) for name in names]

    if engine == Engine.ray:
        from imagereward.serve.on_ray import deploy

        deploy(load, host, port, replicas, int(str(device).startswith("cuda")), **options)
    else:
        run(load(), host, port, **options)


def main() -> None:
    """The console entry point: errors of this package become one line on stderr and exit code 1."""
    from imagereward.errors import ImageRewardError

    # One line for a user, instead of the place in the code that a developer would want.
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except ImageRewardError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _load(model, checkpoint, device, dtype, download_root, offline):
    import imagereward
    from imagereward.errors import CheckpointError

    if checkpoint is not None:
        if not checkpoint.is_file():
            found = "is a directory: pass it as --model" if checkpoint.is_dir() else "does not exist"
            raise CheckpointError(f"checkpoint {checkpoint} {found}")
        return imagereward.load(
            checkpoint, device, download_root, kind=model, dtype=dtype, local_files_only=offline
        )
    name = model or "ImageReward-v1.0"
    _say_note(name)
    return imagereward.load(name, device, download_root, dtype=dtype, local_files_only=offline)


def _say_note(name: str) -> None:
    """What people must know before they believe this scorer, on stderr."""
    from imagereward.registry import REGISTRY

    if name in REGISTRY and REGISTRY[name].note:
        print(f"note: {REGISTRY[name].note}", file=sys.stderr)


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


def _print(rows: list[dict[str, Any]], format: Format) -> None:
    if format == Format.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif format == Format.csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        from imagereward.table import table

        print(table(rows))
