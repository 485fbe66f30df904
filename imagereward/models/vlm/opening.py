"""open_judge: a vision-language model from the hub or a directory, as a scorer; and its directory on disk."""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from imagereward.config import read_json
from imagereward.errors import (
    CheckpointError,
    DownloadError,
    ImageRewardError,
    InputError,
    did_you_mean,
    missing_extra,
)
from imagereward.models.judge_names import JUDGE_FILE, JUDGE_SUFFIX, SCHEMES
from imagereward.models.vlm.asking.hpsv3 import hpsv3_template
from imagereward.models.vlm.asking.settings import JudgeConfig
from imagereward.models.vlm.asking.templates import TEMPLATES, Template, template_of
from imagereward.models.vlm.catalogue import HPSV3, JUDGES
from imagereward.models.vlm.comparing import PairwiseJudge
from imagereward.models.vlm.hpsv3 import fetch_hpsv3, open_hpsv3
from imagereward.models.vlm.saving import HEAD_FILE, add_saved_adapters, saved_head
from imagereward.models.vlm.scorer import VLMScorer

QUANTIZATIONS = ("4bit", "8bit")
# Options that decide how the model is placed, not what it scores.
PAIRWISE = ("method", "budget")
PLACING = ("device_map", "quantize", "attention")
FLOOR = (5, 24)
NO_CODE = {"trust_remote_code": False}  # options of `from_pretrained`: no code of the hub is run


def open_judge(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    download_root: Path | None = None,
    local_files_only: bool = False,
    options: Mapping[str, Any] | None = None,
) -> VLMScorer | PairwiseJudge:
    """The judge of that name, in eval mode and frozen.

    name              "vqa:MODEL" or "judge:MODEL" with a hub id or a directory of transformers; a .toml file
                      with the keys of `JudgeConfig`; or a directory that `save_pretrained` of a judge wrote
    device, dtype     of the model; the reward head stays float32. Device "meta": the weights of the model are
                      neither read nor in memory, as is enough to describe the judge
    download_root     where files of the hub are looked for, and put if the hub cache does not have them
    local_files_only  never touch the network
    options           fields of `JudgeConfig`, which take the place of the judge's own; `template` also as the
                      name of a built-in one or a file; and device_map, quantize and attention, see
                      `open_model`

    "compare:MODEL" gives a `PairwiseJudge`, with its options `method` and `budget`.

    Raises CheckpointError, DownloadError, InputError, ModelMemoryError.
    """
    values = dict(options or {})
    comparing = name.startswith("compare:")
    pairwise = {key: values.pop(key) for key in PAIRWISE if comparing and key in values}
    placing = {key: values.pop(key) for key in PLACING if key in values}
    where: dict[str, Any] = {**NO_CODE, "local_files_only": local_files_only}
    if name == HPSV3:
        scorer = _hpsv3(values, device, dtype, download_root, where, placing)
    else:
        judge, source = _judge(name, values)
        if judge.template.compares and not comparing:
            raise InputError(f"{name}: its template shows two images; load it as compare:{source}")
        where["cache_dir"] = _cache_of(source, download_root)
        model, processor = open_model(source, device, dtype, where, **placing)
        head, saved = None, (Path(source) / HEAD_FILE).is_file()
        if judge.head is not None and judge.readout == "head" and (saved or "head" not in values):
            head = saved_head(Path(source), model.config.get_text_config().hidden_size, judge.head)
        scorer = VLMScorer(model, processor, judge, head)
        scorer.files |= deciding_files(source, where["cache_dir"])
        add_saved_adapters(scorer, Path(source))
    if scorer.reward_head is not None:
        scorer.reward_head.to(device)
    scorer.name = _short(name)
    scorer.eval().requires_grad_(False)
    return PairwiseJudge(scorer, **pairwise) if comparing else scorer


def _described(path: Path) -> JudgeConfig:
    """The judge of a judge.json, or of a .toml file with the keys of `JudgeConfig`."""
    try:
        if path.suffix == JUDGE_SUFFIX:
            return JudgeConfig.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
        return JudgeConfig.from_dict(read_json(path)["judge"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} does not describe a judge: {error}") from error


def _short(name: str) -> str:
    """The scorer's name: without scheme and folders."""
    scheme, _, source = name.partition(":")
    short = Path(source if scheme in SCHEMES and source else name).name
    return short if name in JUDGES or short else Path(name).resolve().name


def _cache_of(source: str, root: Path | None) -> str | None:
    """The directory of the hub cache to use: `root`, or None, the usual one, if that has the model."""
    if root is None or Path(source).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        known = isinstance(try_to_load_from_cache(source, "config.json"), str)
    except ValueError:  # no hub id, as transformers will say
        return None
    return None if known else str(root.expanduser())


def _hpsv3(
    values: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    root: Path | None,
    where: dict[str, Any],
    placing: dict[str, Any],
) -> VLMScorer:
    """HPSv3: options `weights` (its file) and `template` (where its instruction is, or another template)."""
    if placing:
        raise InputError(
            f"HPSv3 takes no {', '.join(placing)}: its weights are one file, loaded by this package"
        )
    weights = values.pop("weights", None)
    given = values.pop("template", None)
    judge = replace(JUDGES[HPSV3].config(), **_checked(values))
    own = isinstance(given, Template) or Path(str(given)).suffix in (".toml", ".json")
    template = template_of(given) if own else hpsv3_template(None if given is None else Path(given))
    judge = replace(judge, template=template)
    path = Path(weights).expanduser() if weights else fetch_hpsv3(root, where["local_files_only"])
    where["cache_dir"] = _cache_of(judge.model, root)
    try:
        model, processor, head = open_hpsv3(_transformers(), judge.model, path, device, dtype, where)
    except ImageRewardError:
        raise
    except Exception as error:
        raise _cannot_open(judge.model, error) from error
    scorer = VLMScorer(model, processor, judge, head)
    scorer.files[path.name] = path.resolve()
    return scorer


def _judge(name: str, options: dict[str, Any]) -> tuple[JudgeConfig, str]:
    """(judge, hub id or directory of its model) of a name, with the user's options.

    A judge with questions, and no other template than the default, asks them by the template "question".
    """
    if "template" in options:
        options["template"] = template_of(options["template"])
    judge, source = _named(name, _checked(options))
    if judge.questions and "template" not in options and judge.template == TEMPLATES["shows"]:
        judge = replace(judge, template=TEMPLATES["question"])
    return judge, source


def _named(name: str, options: dict[str, Any]) -> tuple[JudgeConfig, str]:
    if name in JUDGES:
        judge = replace(JUDGES[name].config(), **options)
        return judge, str(Path(judge.model).expanduser())
    path = Path(name).expanduser()
    if path.suffix == JUDGE_SUFFIX and path.is_file():
        judge = replace(_described(path), **options)
        if not judge.model:
            raise InputError(f"{path} names no model: write model = a hub id or a directory")
        return judge, str(Path(judge.model).expanduser())
    if (path / JUDGE_FILE).is_file():
        judge = replace(_described(path / JUDGE_FILE), **options)
        return judge, judge.model or str(path)
    scheme, _, source = name.partition(":")
    defaults = SCHEMES[scheme]
    values = {"template": TEMPLATES[defaults["template"]], "readout": defaults["readout"], **options}
    return JudgeConfig(model=source, **values), str(Path(source).expanduser())


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options; InputError naming the nearest valid one for an unknown one."""
    for key in options:
        if key not in JudgeConfig.__dataclass_fields__:
            valid = [*JudgeConfig.__dataclass_fields__, *PLACING]
            raise InputError(
                f"a judge has no option {key!r}; {did_you_mean(key, valid) or 'valid: ' + ', '.join(valid)}"
            )
    return options


def open_model(
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    where: Mapping[str, Any] = NO_CODE,
    *,
    device_map: Any = None,
    quantize: str | None = None,
    attention: str = "sdpa",
) -> tuple[Any, Any]:
    """(model, processor) of transformers, without code from the hub.

    source      hub id or directory
    device      "meta": the weights are neither read nor in memory
    where       options of transformers' `from_pretrained`, such as local_files_only and cache_dir
    device_map  as of transformers, such as "auto", to divide the model over devices; needs accelerate
    quantize    "4bit" or "8bit" by bitsandbytes; None: not quantized
    attention   attention of transformers: "sdpa" is torch's

    Raises InputError for a model that takes no images or has no chat template; CheckpointError for a model
    that cannot be loaded; DownloadError if it cannot be had.
    """
    transformers = _transformers()
    where = {**where, **NO_CODE}
    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention, **where}
    if quantize is not None:
        settings["quantization_config"] = _quantization(transformers, quantize, dtype)
        device_map = device_map or {"": device}
    if device_map is not None:
        settings["device_map"] = device_map
    try:
        processor = transformers.AutoProcessor.from_pretrained(source, **where)
    except Exception as error:
        if (Path(source).expanduser() / "tokenizer.json").is_file() and "image processor" in str(error):
            raise _takes_no_images(source, "it has no image processor") from error
        raise _cannot_open(source, error) from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "image_token", None) is None:
        raise _takes_no_images(source, f"its processor is a {type(processor).__name__}")
    if processor.chat_template is None and processor.tokenizer.chat_template is None:
        raise InputError(
            f"{source} has no chat template, so it is no model to ask; take its -Instruct or -it version"
        )
    found = transformers.AutoModelForImageTextToText
    try:
        if device.type == "meta":
            config = transformers.AutoConfig.from_pretrained(source, **where)
            with device:
                return found.from_config(config, dtype=dtype), processor
        model = found.from_pretrained(source, **settings)
    except ImportError as error:
        raise missing_extra(f"loading {source} with these options", "judges", error) from error
    except Exception as error:
        raise _cannot_open(source, error) from error
    return (model if device_map is not None else model.to(device)), processor


# Endings of a directory's files that decide a judge: weights, configs, tokenizer, processor, chat template.
DECIDING = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def deciding_files(source: str, cache: str | None = None) -> dict[str, Path]:
    """The files that decide a model, by name: of a directory; of a hub id, the one with the commit's name.

    cache   directory of the hub cache; None: the usual one
    """
    directory = Path(source)
    if directory.is_dir():
        files = (path for path in sorted(directory.iterdir()) if path.suffix in DECIDING and path.is_file())
        return {path.name: path.resolve() for path in files}
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", cache_dir=cache)
    commit = Path(found).parents[2] / "refs" / "main" if isinstance(found, str) else None
    return {"commit": commit} if commit is not None and commit.is_file() else {}


def _transformers() -> Any:
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < FLOOR:
        raise missing_extra(
            f"a vision-language model (transformers {transformers.__version__} is installed, "
            f"{'.'.join(map(str, FLOOR))} or later is needed)",
            "judges",
        )
    return transformers


def _quantization(transformers: Any, quantize: str, dtype: torch.dtype) -> Any:
    if quantize not in QUANTIZATIONS:
        raise InputError(f"quantize={quantize!r}: expected one of {', '.join(QUANTIZATIONS)}")
    bits = {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype, "bnb_4bit_quant_type": "nf4"}
    return transformers.BitsAndBytesConfig(**(bits if quantize == "4bit" else {"load_in_8bit": True}))


def _takes_no_images(source: str, reason: str) -> InputError:
    return InputError(
        f"{source} takes no images: {reason}; expected an image-text-to-text model, such as "
        "Qwen/Qwen2.5-VL-3B-Instruct"
    )


def _cannot_open(source: str, error: Exception) -> CheckpointError:
    reason = (str(error).strip().splitlines() or [""])[0]
    text = f"{source} cannot be opened as an image-text-to-text model: {type(error).__name__}: {reason}"
    return CheckpointError(text) if Path(source).expanduser().exists() else DownloadError(text)
