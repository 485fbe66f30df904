"""Results files: writing them, and the machine, versions, command and commit that every one of them names."""

import argparse
import json
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.lib.paths import RESULTS, ROOT

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "transformers",
    "diffusers",
    "accelerate",
    "peft",
    "Pillow",
)
# The files that a measured number can depend on, as git's pathspecs: no results, pages or pictures.
CODE = ("imagereward", "benchmarks", "train", "setup.py", ":!benchmarks/results", ":!*.md")
# Keys of `environment` that may differ between the measures of one results file.
OF_A_RUN = ("command", "commit", "changed_files", "date")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--allow-changes`, whose value `refuse_changes` takes."""
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="measure although code differs from the commit; the results file then lists these files",
    )


def refuse_changes(allowed: bool) -> None:
    """Exit, before anything is measured, if code differs from the commit that the results file will name."""
    if (changed := changed_files()) and not allowed:
        raise SystemExit(
            f"{len(changed)} files differ from the commit that the results file would name, such as "
            f"{changed[0]}; commit or stash them, or measure all the same with --allow-changes"
        )


def changed_files(root: Path = ROOT) -> list[str]:
    """The files of `CODE` below `root` that differ from the commit, untracked ones included; sorted."""
    lines = _git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *CODE)
    return sorted(line[3:] for line in lines.split("\0") if line)


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout


def environment(device: torch.device) -> dict:
    """Device, versions, command and commit of this run.

    versions       of those of `PACKAGES` that are installed
    command        the command line, as a shell takes it
    commit         abbreviated; ends with + where `changed_files` has any
    changed_files  there only if code differs from the commit
    """
    changed = changed_files()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": _versions(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": _git(ROOT, "rev-parse", "--short", "HEAD").strip() + ("+" if changed else ""),
        **({"changed_files": changed} if changed else {}),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    notable = [flag for flag in ("avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(notable)})" if notable else name


def write(name: str, result: dict) -> Path:
    """Write one results file, rounded to four significant digits."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=2) + "\n")
    return path


def so_far(name: str, device: torch.device) -> dict:
    """A results file to add measures to, or {}. Exits if its device or versions are not today's."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    before, now = found["environment"], environment(device)
    differing = [key for key in now if key not in OF_A_RUN and now[key] != before.get(key)]
    if differing:
        facts = "; ".join(f"{key} {before.get(key)}, now {now[key]}" for key in differing)
        raise SystemExit(f"{path} was measured elsewhere ({facts}): run all measures, not some")
    return found


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def machine(result: dict) -> str:
    """One line: device, threads, versions, commit and date of a results file."""
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    threads = environment["threads"]
    return (
        f"{environment['device']}, {threads} {'thread' if threads == 1 else 'threads'}; {versions}; "
        f"commit {environment['commit']}, {environment['date']}"
    )
