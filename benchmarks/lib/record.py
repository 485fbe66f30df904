"""What every results file says about where and on what it was measured."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.lib.paths import RESULTS, ROOT


def environment(device: torch.device) -> dict:
    """Device, versions and commit of this run."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    packages = ("torch", "torchvision", "timm", "open_clip_torch", "transformers", "Pillow")
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    notable = [flag for flag in ("avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(notable)})"


def write(name: str, result: dict) -> Path:
    """Write one results file, rounded to four significant digits."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(_rounded(result), indent=2) + "\n")
    return path


def so_far(name: str, device: torch.device) -> dict:
    """A results file to which measures are added. Exits if it was measured on or with something else."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    before, now = found["environment"], environment(device)
    differing = [key for key in now if key not in ("commit", "date") and now[key] != before[key]]
    if differing:
        facts = "; ".join(f"{key} {before[key]}, now {now[key]}" for key in differing)
        raise SystemExit(f"{path} was measured elsewhere ({facts}): run all measures, not some")
    return found


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def machine(result: dict) -> str:
    """What it was measured on."""
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['device']}, {environment['threads']} threads; {versions}; "
        f"commit {environment['commit']}, {environment['date']}"
    )
