"""HPSv3's template: its long instruction is read from the published package, and checked by its hash."""

import ast
import hashlib
import zipfile
from importlib.util import find_spec
from pathlib import Path

from imagereward.errors import InputError
from imagereward.models.vlm.asking.templates import Template

PACKAGE = "hpsv3"
SOURCE = f"{PACKAGE}/dataset/data_collator_qwen.py"
# The texts in SOURCE of hpsv3 1.0.0 on PyPI, and the SHA-256 of both in this order.
NAMES = ("INSTRUCTION", "prompt_with_special_token")
SHA256 = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
PLACE, TOKEN = "{text_prompt}", "<|Reward|>"
MOST_BYTES = 2**20


def hpsv3_template(path: Path | None = None) -> Template:
    """HPSv3's template, with the instruction of the published package.

    path  the package's data_collator_qwen.py, its wheel, or a directory that has it; default: the package
          `hpsv3`, if it is installed. Nothing of it is run: its texts are read from the source

    Raises InputError if it is not found, or if the texts are not those of version 1.0.0.
    """
    texts = _texts(_source(path), path or PACKAGE)
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    if digest != SHA256:
        raise InputError(
            f"the instruction in {path or PACKAGE} is not that of hpsv3 1.0.0: its sha256 is {digest}, "
            f"expected {SHA256}; to use it nevertheless, write it into a template file and pass template="
        )
    return Template(
        "hpsv3",
        "{image}" + "".join(texts).replace(PLACE, "{prompt}"),
        token=TOKEN,
        source="the package hpsv3 1.0.0, MIT licence",
    )


def _source(path: Path | None) -> str:
    if path is None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise InputError(
                "HPSv3 needs its published instruction, which is not part of this package: run python -m "
                "pip download "
                "hpsv3==1.0.0 --no-deps and pass the wheel as template=, or install that package"
            )
        path = Path(spec.origin).parents[1]
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel, wheel.open(SOURCE) as stream:
                data = stream.read(MOST_BYTES)
        else:
            file = path if path.suffix == ".py" else path / SOURCE
            with open(file, "rb") as opened:
                data = opened.read(MOST_BYTES)
        return data.decode("utf-8")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"HPSv3's instruction cannot be read from {path}: {error}") from error


def _texts(source: str, path: object) -> list[str]:
    """The texts of `NAMES` among the source's assignments."""
    try:
        nodes = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path} is no Python source: {error}") from error
    found = {
        node.targets[0].id: node.value.value
        for node in nodes
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }
    if missing := [name for name in NAMES if name not in found]:
        raise InputError(f"{path} has no text {', '.join(missing)}; expected {SOURCE} of hpsv3 1.0.0")
    return [found[name] for name in NAMES]
