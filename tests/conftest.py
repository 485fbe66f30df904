"""Small random scorers of every kind, pictures to score, and switches that keep tests off the network."""

import json
import os
import random
import secrets
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported; tests that download undo it

import numpy as np
import PIL.Image
import pytest
from workers import pytest_cmdline_main as pytest_cmdline_main
from workers import pytest_collection_modifyitems as pytest_collection_modifyitems

import imagereward as RM
from benchmarks.lib.browsing import CHROMIUM, FLAGS
from benchmarks.lib.small_scorers import BLIP as BLIP
from benchmarks.lib.small_scorers import CLIP as CLIP
from benchmarks.lib.small_scorers import CONFIGS, small_scorer
from benchmarks.lib.small_scorers import SIZE as SIZE

TABLE_ROWS = 23
TWO_PROCESSES = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PROMPTS = ["a red bicycle", "", "two cats asleep on a green sofa, oil on canvas", "日本の桜 & café"]


def pictures(count: int, seed: int = 0) -> list[PIL.Image.Image]:
    """Smooth random RGB pictures, some wide, some tall."""
    rng = np.random.default_rng(seed)
    shapes = [(64, 48), (40, 90), (57, 57), (33, 70)]
    return [
        PIL.Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(
            shapes[index % len(shapes)], PIL.Image.Resampling.BICUBIC
        )
        for index in range(count)
    ]


@pytest.fixture(autouse=True)
def fresh_accelerator_state():
    """Resets accelerate's state, which belongs to the process, so that no test decides for the next."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.fixture(scope="session")
def scorers():
    """One small random scorer of each kind, and an ensemble of two of them."""
    made = {kind: small_scorer(kind) for kind in CONFIGS}
    parts = {small_scorer("ImageReward"): 1.0, small_scorer("HPS"): 0.5}
    return {**made, "Ensemble": RM.ensemble(parts)}


@pytest.fixture(params=[*CONFIGS, "Ensemble"])
def scorer(request, scorers):
    return scorers[request.param]


@pytest.fixture
def image_paths(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(5)]
    for path, picture in zip(paths, pictures(5)):
        picture.save(path)
    return paths


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Directories of small scorers, by kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: str(small_scorer(kind, seed=3).save_pretrained(root / kind)) for kind in CONFIGS}


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """A function of an architecture: the directory of its tiny vision-language model, made once."""
    from benchmarks.lib.tiny_vlms import save_tiny_vlm

    made = {}

    def directory(architecture="Qwen2-VL", **options):
        key = (architecture, *sorted(options.items()))
        if key not in made:
            made[key] = save_tiny_vlm(architecture, tmp_path_factory.mktemp("vlm"), **options)
        return made[key]

    return directory


@pytest.fixture
def reds(tmp_path):
    """Rankings in which the redder image is better."""
    source = random.Random(0)
    for split, count in {"train": 40, "valid": 12}.items():
        rows = []
        for index in range(count):
            levels = source.sample(range(0, 256, 16), 3)
            names = [f"{split}-{index}-{place}.png" for place in range(3)]
            for name, level in zip(names, levels):
                colour = (level, source.randrange(256), source.randrange(256))
                PIL.Image.new("RGB", (16, 16), colour).save(tmp_path / name)
            ranks = [sorted(levels, reverse=True).index(level) + 1 for level in levels]
            rows.append({"id": str(index), "prompt": "red", "generations": names, "ranking": ranks})
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def table(tmp_path):
    """A directory with images and `table.jsonl`; some prompts and images are repeated."""
    (tmp_path / "images").mkdir()
    for index, picture in enumerate(pictures(TABLE_ROWS - 5)):
        picture.save(tmp_path / f"images/{index}.png")
    records = [
        {
            "id": f"r{index}",
            "image": f"images/{index % (TABLE_ROWS - 5)}.png",
            "prompt": f"{PROMPTS[index % 4]} {index // 2}",
            "generator": index % 2,
        }
        for index in range(TABLE_ROWS)
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


@pytest.fixture(scope="module")
def ray_alone(tmp_path_factory):
    """Held by a file whose tests start a Ray: two of them on two cores would mostly wait for each other."""
    filelock = pytest.importorskip("filelock")
    with filelock.FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


@pytest.fixture
def chance():
    """Random numbers to choose moments of a kill by; IMAGEREWARD_TEST_SEED repeats those of another run."""
    seed = int(os.environ.get("IMAGEREWARD_TEST_SEED") or secrets.randbits(32))
    print(f"to choose the same moments again: IMAGEREWARD_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def place(tmp_path):
    """A directory with a.png and b.png, 31 and 32 pixels wide, by which they are known again."""
    for name, width in (("a", 31), ("b", 32)):
        PIL.Image.new("RGB", (width, 20), (width, 90, 30)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture(scope="module")  # while it lives, nothing else can run an event loop
def browser():
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install the distribution's package")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
