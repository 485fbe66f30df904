"""Directories of the repository that benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
TINY_SD = ROOT / "benchmarks" / "toy_models" / "tiny-sd"
TINY_FLOW = ROOT / "benchmarks" / "toy_models" / "tiny-flow"
TINY_INPAINT = ROOT / "benchmarks" / "toy_models" / "tiny-inpaint"
TINY_VLM = ROOT / "benchmarks" / "toy_models" / "tiny-vlm"
