"""Choices for tests of personal adapters: small pictures, of which a person prefers the redder ones."""

import json
from pathlib import Path

import numpy as np
import PIL.Image

WORDS = ("cat", "dog", "house", "tree", "boat", "lamp", "road", "cup", "hat", "bird", "fish", "star")


def picture(red: float, rng: np.random.Generator, side: int = 32) -> PIL.Image.Image:
    """A picture whose red is `red` in 0..1 and whose green and blue are random."""
    pixels = rng.uniform(0, 0.6, (side, side, 3))
    pixels[..., 0] = red
    return PIL.Image.fromarray((pixels * 255).astype(np.uint8))


def rankings(count: int, images: int = 3, seed: int = 0, shuffled: bool = False) -> list[dict]:
    """Records {prompt, images, ranking}, the redder the better; `shuffled` ranks at random."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        reds = rng.uniform(0, 1, images)
        order = rng.permutation(images) if shuffled else np.argsort(-reds)
        ranking = np.empty(images, int)
        ranking[order] = np.arange(1, images + 1)
        prompt = f"a {WORDS[index % len(WORDS)]} and a {WORDS[(index * 5 + index // 12) % len(WORDS)]}"
        records.append(
            {"prompt": prompt, "images": [picture(red, rng) for red in reds], "ranking": ranking.tolist()}
        )
    return records


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Records {prompt, chosen, rejected, margin}."""
    found = rankings(count, 2, seed)
    return [
        {
            "prompt": each["prompt"],
            "chosen": each["images"][each["ranking"].index(1)],
            "rejected": each["images"][each["ranking"].index(2)],
            "margin": 0.1,
            "subset": "even" if index % 2 == 0 else "odd",
        }
        for index, each in enumerate(found)
    ]


def ratings(count: int, seed: int = 0) -> list[dict]:
    """Records {prompt, image, rating}: 1 to 5 by redness."""
    rng = np.random.default_rng(seed)
    reds = rng.uniform(0, 1, count)
    return [
        {"prompt": f"a {WORDS[i % len(WORDS)]}", "image": picture(red, rng), "rating": round(1 + 4 * red, 1)}
        for i, red in enumerate(reds)
    ]


def labels(count: int, seed: int = 0) -> list[dict]:
    """Records {prompt, image, good}: good is red."""
    return [
        {"prompt": each["prompt"], "image": each["image"], "good": each["rating"] > 3}
        for each in ratings(count, seed)
    ]


def written(records: list[dict], folder: Path, name: str = "choices.jsonl") -> Path:
    """The records as a table in the folder, with their images as files beside it."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for row, record in enumerate(records):
        values = dict(record)
        for key, value in record.items():
            if isinstance(value, PIL.Image.Image):
                values[key] = f"images/{row}-{key}.png"
                value.save(folder / values[key])
            elif key == "images":
                values[key] = [f"images/{row}-{place}.png" for place in range(len(value))]
                for path, image in zip(values[key], value):
                    image.save(folder / path)
        lines.append(json.dumps(values) + "\n")
    path = folder / name
    path.write_text("".join(lines))
    return path
