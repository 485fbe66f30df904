"""The page at /docs: renders the OpenAPI description as plain HTML, without scripts or other servers."""

from typing import Any, NamedTuple

from imagereward.pages import render


class Operation(NamedTuple):
    """One method of one path.

    formats  media types of the body
    fields   (name, "required" or "", description) of the body's fields
    answers  (status, description)
    """

    method: str
    path: str
    description: str
    formats: list[str]
    fields: list[tuple[str, str, str]]
    answers: list[tuple[str, str]]


def reference(schema: dict[str, Any]) -> str:
    """The HTML page of an app's `openapi()`: for every path its fields, formats and answers."""
    operations = [
        _operation(method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return render("endpoints.html", info={"summary": "", **schema["info"]}, operations=operations)


def _operation(method: str, path: str, operation: dict[str, Any]) -> Operation:
    bodies = operation.get("requestBody", {}).get("content", {})
    fields: dict[str, Any] = next(
        (body["schema"] for body in bodies.values() if "properties" in body["schema"]), {}
    )
    required = fields.get("required", [])
    return Operation(
        method.upper(),
        path,
        operation.get("description", ""),
        list(bodies),
        [
            (name, "required" if name in required else "", field.get("description", _type_of(field)))
            for name, field in fields.get("properties", {}).items()
        ],
        [(code, answer.get("description", "")) for code, answer in operation["responses"].items()],
    )


def _type_of(field: dict[str, Any]) -> str:
    """A JSON schema's type in words, such as "list of string"."""
    if "anyOf" in field:
        return " or ".join(_type_of(each) for each in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_type_of(field.get('items', {}))}"
    return str(field.get("type", "anything"))
