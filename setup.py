"""Packaging: what is installed, what it needs, and what the extras add. Floors, no pins."""

import re
from itertools import chain
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "imagereward/version.py").read_text()).group(1)

CORE = [
    "torch>=2.4",
    "torchvision>=0.19",
    "timm>=1.0.21",
    "open_clip_torch>=2.26",
    "transformers>=4.45",
    "tokenizers>=0.20",
    "huggingface_hub>=0.25",
    "safetensors>=0.4.5",
    "Pillow>=10.3",
    "numpy>=1.26",
    "scipy>=1.11",
    "jinja2>=3.1",
    "typer>=0.17.3",
    "tqdm>=4.66",
]
# Optional parts. A floor is a version that has what the code uses.
EXTRAS = {
    "train": [
        "accelerate>=0.34",
        "diffusers>=0.40",
        "fairscale>=0.4.13",
        "peft>=0.17",
        "pydantic>=2.7",
        "tensorboard>=2.18",
    ],
    "serve": [
        "fastapi>=0.115",
        "uvicorn>=0.30",
        "pydantic>=2.9",
        "python-multipart>=0.0.27",
        "prometheus-client>=0.20",
        "httpx2>=2.0",
    ],
    "scale": ["filelock>=3.32", "pyarrow>=17", "ray[data,serve]>=2.57"],
    "report": ["pyarrow>=17"],
    # Vision-language scorers: the first version that they are tested at. SmolVLM's processor needs num2words.
    "judges": ["transformers>=5.24", "num2words>=0.5.14"],
    "integrations": ["torchmetrics>=1.4"],
    # The documentation site, and the notebooks of docs/notebooks.
    "docs": [
        "mkdocs>=1.6.1",
        "mkdocs-material>=9.6.23",
        "mkdocstrings[python]>=1.0",
        "griffelib>=2.0",
        "nbformat>=5.10",
        "nbclient>=0.10",
        "ipykernel>=6.30",
    ],
}
TEST = [
    *EXTRAS["train"],
    *EXTRAS["serve"],
    "hypothesis>=6.100",
    "matplotlib>=3.9",
    "playwright>=1.45",
    *EXTRAS["scale"],
    *EXTRAS["integrations"],
    *EXTRAS["docs"],
    *EXTRAS["judges"],
    "dashscope>=1.20",  # has Qwen's vocabulary
    "openai>=1.60",  # for `transformers serve`
    "bitsandbytes>=0.46",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-xdist>=3.7",
    "ruff>=0.12",
    "mypy>=1.11",
    "setuptools>=77",
    "wheel>=0.43",
]

setup(
    name="imagereward",
    version=VERSION,
    description="Reward models for text-to-image: load one, score images, rank them",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # This package has no page of its own yet; these are the work that it gives the scores of.
    project_urls={
        "Original implementation": "https://github.com/THUDM/ImageReward",
        "Paper": "https://arxiv.org/abs/2304.05977",
    },
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=find_packages(include=["imagereward", "imagereward.*"]),
    package_data={
        "imagereward": [
            "py.typed",
            "assets/*",
            "assets/*/*",
            "tuning/recipes/*/*.toml",
            "choosing/page.html",
            "pages/templates/*",
        ]
    },
    install_requires=CORE,
    extras_require={**EXTRAS, "test": TEST, "all": sorted({*chain(*EXTRAS.values()), *TEST})},
    entry_points={"console_scripts": ["imagereward = imagereward.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
