"""Config: the base of all configs, with strict keys and types, and errors that name the key.

The keys themselves are in `trainer_config.py`, in `objectives/config.py` (generators), beside each objective,
and in the `config.py` of every other kind of training.
"""

import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from imagereward.errors import InputError, did_you_mean
from imagereward.rewards.opening import shown_name


class Config(BaseModel):
    """Base of all configs: frozen and strict; unknown keys, other types and non-finite numbers are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # an address of a reward server may hold a password
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """Expands short forms: x to [x] for a list, true to a table of defaults, false to no table."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            key: _expanded(fields[key].annotation, value) if key in fields else value
            for key, value in values.items()
        }


C = TypeVar("C", bound=Config)


def build(config_class: type[C], values: dict[str, Any], source: str = "config") -> C:
    """The config `config_class(**values)`.

    source  name of the values in error messages

    Raises InputError naming every unknown key, with the nearest valid key, and every wrong value.
    """
    try:
        return config_class(**values)
    except ValidationError as error:
        faults = [_fault(config_class, fault) for fault in error.errors()]
        raise InputError(f"{source}:" + "".join(f"\n  {shown_name(fault)}" for fault in faults)) from None


def _fault(config_class: type[BaseModel], fault: Any) -> str:
    path = [str(part) for part in fault["loc"]]
    name, message = ".".join(path), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        valid = _keys_at(config_class, path[:-1])
        hint = did_you_mean(path[-1], valid) or f"valid: {', '.join(valid)}"
        return f"{name} is no key; {hint}"
    field = _field_at(config_class, path)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    if fault["type"] == "missing":
        return f"{name} is missing: say {name}=…{meaning}"
    if not path:
        return message
    if field is not None and (table := table_of(field.annotation)) and fault["type"] == "model_type":
        first, *others = table.model_fields
        also = f" (or {', '.join(f'{name}.{other}=…' for other in others[:2])})" if others else ""
        return (
            f"{name}={fault['input']!r}: expected a table; say {name}.{first}=…{also}, or, in quotes because "
            f"of the shell, '{name}={{{first}=…}}'"
        )
    return f"{name}={fault['input']!r}: {message}"


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The config class in a field's type `Config` or `Config | None`; None for other types."""
    kinds = [annotation, *get_args(annotation)]
    found = [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
    return found[0] if found else None


def _field_at(config_class: type[BaseModel], path: list[str]) -> Any:
    for part in path[:-1]:
        field = config_class.model_fields.get(part)
        inner = table_of(field.annotation) if field else None
        if inner is None:
            return None
        config_class = inner
    return config_class.model_fields.get(path[-1]) if path else None


def _keys_at(config_class: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = config_class.model_fields.get(part)
        inner = table_of(field.annotation) if field else None
        if inner is None:
            return []
        config_class = inner
    return list(config_class.model_fields)


def _expanded(annotation: Any, value: Any) -> Any:
    """The full form of a value that was given in a short form; other values as they are."""
    if get_origin(annotation) is tuple and not isinstance(value, list | tuple):
        if isinstance(value, str):  # [a, b]: a shell removes the quotes from ["a", "b"]
            parts = value.strip().removeprefix("[").removesuffix("]").split(",")
            texts = str in get_args(annotation)
            return [part.strip() if texts else toml_value(part.strip()) for part in parts if part.strip()]
        return [value]
    if isinstance(value, bool) and table_of(annotation) is not None:
        if value:
            return {}
        return None if type(None) in get_args(annotation) else value
    return value


def refuse_renamed(arguments: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """ValueError for arguments of transformers.TrainingArguments that a config has a key of its own for.

    names  {argument: the config's key}
    """
    if taken := sorted(names.keys() & arguments.keys()):
        keys = ", ".join(dict.fromkeys(names[name] for name in taken))
        raise ValueError(f"{', '.join(taken)} would replace keys of the recipe; set {keys} instead")


def toml_value(text: str) -> Any:
    """The value of text in TOML; "null" is None, True and False are taken too, other text is a string."""
    if text.strip() == "null":
        return None
    if text.strip() in ("True", "False"):  # as Python writes them
        return text.strip() == "True"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
