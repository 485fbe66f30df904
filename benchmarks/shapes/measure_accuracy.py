"""Accuracy of `shapes.measure` on images with known truth: for each attribute, and clean against damaged.

    python -m benchmarks.shapes.measure_accuracy [--images 2000] [--seed 2023]

Images are drawn without or with one mistake, in four conditions: clean, noise at level 1, blur at level 1,
and like an autoencoder's output (blur of 0.9, then noise of 0.03, at 64 pixels). The mistake determines which
attributes are wrong. No mistake changes size, position or background, so these are also measured against a
prompt that asks for another one.
Writes results/shapes-measure.json.
"""

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from scipy import ndimage

from benchmarks.lib import record
from imagereward.shapes import (
    DAMAGES,
    LEVELS,
    MISTAKES,
    Scene,
    SceneRequest,
    arrange,
    ask,
    draw,
    measure,
    to_image,
)
from imagereward.shapes.corrupt import damaged, misread, possible_mistakes
from imagereward.shapes.scene import BACKGROUNDS, POSITIONS, SIZES
from imagereward.table import table

CONDITIONS = ("clean", "noise 1", "blur 1", "autoencoder")
# What each mistake makes wrong. A missing thing takes its shape along unless another has the same.
WRONG = {
    "colour": {"colour", "thing"},
    "shape": {"shape", "thing"},
    "count": {"count"},
    "relation": {"relation"},
    "missing": {"colour", "shape", "thing", "count", "relation"},
    "extra": {"count"},
}
ATTRIBUTES = ("colour", "shape", "thing", "count", "relation", "size", "position", "background")


def shown(scene: Scene, condition: str, rng: np.random.Generator):
    """A drawing of the scene in one of `CONDITIONS`."""
    if condition == "clean":
        return to_image(draw(scene, rng))
    if condition == "autoencoder":
        pixels = ndimage.gaussian_filter(draw(scene, rng), (0.9, 0.9, 0), mode="nearest")
        return to_image((pixels + 0.03 * rng.standard_normal(pixels.shape)).clip(0, 1))
    damage, level = condition.split()
    return to_image(damaged(scene, damage, int(level), rng))


def case(mistake: str | None, rng: np.random.Generator) -> tuple[SceneRequest, SceneRequest]:
    """(requested scene, drawn scene), which differ by `mistake`; None: equal."""
    while True:
        request = ask(rng)
        if mistake is None:
            return request, request
        if mistake in possible_mistakes(request):
            return request, misread(request, mistake, rng)


def truth(request: SceneRequest, drawn: SceneRequest, mistake: str | None) -> dict[str, bool]:
    """{attribute: whether it is right}, without attributes that the mistake may or may not affect."""
    asked = {"colour", "shape", "thing", "count"}
    asked |= {name for name in ("relation", "position", "background") if getattr(request, name)}
    asked |= {"size"} if any(group.size for group in request.groups) else set()
    right = {name: name not in WRONG.get(mistake or "", ()) for name in asked}
    if mistake == "missing" and {g.shape for g in request.groups} == {g.shape for g in drawn.groups}:
        del right["shape"]
    return right


def otherwise(request: SceneRequest, rng: np.random.Generator) -> dict[str, SceneRequest]:
    """The same request with another size, position or background, where it asks for one."""
    others = {}
    if request.groups[0].size:
        (size,) = set(SIZES) - {request.groups[0].size}
        others["size"] = replace(request, groups=(replace(request.groups[0], size=size),))
    for name, values in (("position", POSITIONS), ("background", BACKGROUNDS)):
        if getattr(request, name):
            value = str(rng.choice([value for value in values if value != getattr(request, name)]))
            others[name] = replace(request, **{name: value})
    return others


def attributes(images: int, seed: int) -> list[dict]:
    """For each condition and attribute: the share of right ones measured as right, of wrong ones as wrong."""
    agreed: dict[tuple, list[bool]] = defaultdict(list)
    for place, condition in enumerate(CONDITIONS):
        for mistake in (None, *MISTAKES):
            rng = np.random.default_rng([seed, 0, place, (None, *MISTAKES).index(mistake)])
            for _ in range(images):
                request, drawn = case(mistake, rng)
                image = shown(arrange(drawn, rng), condition, rng)
                seen = measure(image, request)
                for name, right in truth(request, drawn, mistake).items():
                    agreed[condition, name, right].append((seen.attributes[name] == 1) == right)
                agreed[condition, "faithful", mistake is None].append(seen.faithful == (mistake is None))
                # One thing more of the same may lie where another prompt wants it.
                for name, other in otherwise(request, rng).items() if mistake != "count" else ():
                    agreed[condition, name, False].append(measure(image, other).attributes[name] < 1)
            print(f"  {condition}: {mistake or 'faithful'} done", file=sys.stderr)
    rows = []
    for condition in CONDITIONS:
        for name in (*ATTRIBUTES, "faithful"):
            right, wrong = agreed[condition, name, True], agreed[condition, name, False]
            rows.append(
                {
                    "condition": condition,
                    "attribute": name,
                    "agreement": _share(right + wrong),
                    "right_as_right": _share(right),
                    "wrong_as_wrong": _share(wrong),
                    "right": len(right),
                    "wrong": len(wrong),
                }
            )
    return rows


def _share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def cleanliness(images: int, seed: int) -> list[dict]:
    """For each damage and level, the share of scenes whose clean drawing measures cleaner."""
    rng = np.random.default_rng([seed, 1])
    clean, rows = [], defaultdict(list)
    for _ in range(images):
        request = ask(rng)
        scene = arrange(request, rng)
        clean.append(measure(to_image(draw(scene, rng)), request).cleanliness)
        for damage in DAMAGES:
            for level in range(1, LEVELS + 1):
                image = to_image(damaged(scene, damage, level, rng))
                rows[damage, level].append(measure(image, request).cleanliness)
    print("  cleanliness done", file=sys.stderr)
    undamaged = {"damage": "none", "level": 0, "ordered": 1.0, "median": median(clean)}
    return [
        undamaged,
        *(
            {
                "damage": damage,
                "level": level,
                "ordered": float(np.mean(np.array(values) < clean)),
                "median": median(values),
            }
            for (damage, level), values in rows.items()
        ),
    ]


def milliseconds(seed: int, images: int = 200) -> dict[str, float]:
    """Median time of one measurement at two sizes, on one thread."""
    torch.set_num_threads(1)
    medians = {}
    for size in (64, 512):
        rng = np.random.default_rng([seed, 2])
        times = []
        for _ in range(images):
            request = ask(rng)
            image = to_image(draw(arrange(request, rng), rng, size))
            start = time.perf_counter()
            measure(image, request)
            times.append(1000 * (time.perf_counter() - start))
        medians[str(size)] = median(times)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="a condition, and a mistake in it")
    parser.add_argument("--seed", type=int, default=2023)
    record.add_option(parser)
    arguments = parser.parse_args()
    record.refuse_changes(arguments.allow_changes)
    result = {
        "environment": record.environment(torch.device("cpu")),
        "images": arguments.images,
        "seed": arguments.seed,
        "milliseconds": milliseconds(arguments.seed),
        "attributes": attributes(arguments.images, arguments.seed),
        "cleanliness": cleanliness(arguments.images, arguments.seed),
    }
    path = record.write("shapes-measure", result)
    print(f"{table(result['attributes'])}\n\n{table(result['cleanliness'])}\n\nwrote {path}")


if __name__ == "__main__":
    main()
