"""Names of judges, vision-language models that are asked: "vqa:MODEL", "judge:MODEL", and directories of them."""

from pathlib import Path

JUDGE_FILE = "judge.json"
# "vqa:MODEL" and so on: the read-out and template of a model that has none of its own.
SCHEMES = {
    "vqa": {"readout": "answer", "template": "shows"},
    "judge": {"readout": "verdict", "template": "rubric"},
}


def is_judge(name: str) -> bool:
    """Whether `load` opens the name as a judge: "vqa:MODEL", "judge:MODEL", or a directory with judge.json."""
    scheme, colon, rest = name.partition(":")
    return bool(colon and rest and scheme in SCHEMES) or (Path(name).expanduser() / JUDGE_FILE).is_file()
