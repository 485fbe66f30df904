"""Names of judges, vision-language models that are asked: "vqa:MODEL", "judge:MODEL", "compare:MODEL"."""

from pathlib import Path

from imagereward.models.vlm.catalogue import JUDGES as JUDGES

JUDGE_FILE = "judge.json"
JUDGE_SUFFIX = ".toml"  # of a file with the settings of a judge
# "vqa:MODEL" and so on: the read-out and template of a model that has none of its own.
SCHEMES = {
    "vqa": {"readout": "answer", "template": "shows"},
    "judge": {"readout": "verdict", "template": "rubric"},
    "compare": {"readout": "answer", "template": "compare"},
}


def is_judge(name: str) -> bool:
    """Whether `load` opens the name as a judge: known, "vqa:MODEL", a .toml file or a directory."""
    if name in JUDGES:
        return True
    scheme, colon, rest = name.partition(":")
    if colon and rest and scheme in SCHEMES:
        return True
    try:
        path = Path(name).expanduser()
        return (path.suffix == JUDGE_SUFFIX and path.is_file()) or (path / JUDGE_FILE).is_file()
    except (OSError, RuntimeError, ValueError):  # no path: too long, unknown home, or a null byte
        return False
