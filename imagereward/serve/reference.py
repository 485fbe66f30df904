"""The page at /docs: renders the OpenAPI description as plain HTML, without scripts or other servers."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h2 { font: 600 1.05rem/1.4 ui-monospace, monospace; margin: 2.2rem 0 .2rem; overflow-wrap: anywhere }
p { margin: .2rem 0 .6rem } table { border-collapse: collapse; width: 100%; margin: .4rem 0 }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; font-weight: inherit;
  border-bottom: 1px solid #8885; overflow-wrap: anywhere }
th:first-child { width: 7rem }
thead th { font-size: .85rem; opacity: .75 } code { font-family: ui-monospace, monospace; font-size: .92em }
"""


def reference(schema: dict[str, Any]) -> str:
    """The HTML page of an app's `openapi()`: for every path its fields, formats and answers."""
    title = html.escape(schema["info"]["title"])
    operations = "".join(
        _operation(method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: endpoints</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>
<h1>{title} {html.escape(schema["info"]["version"])}</h1>
<p>{html.escape(schema["info"].get("summary", ""))} For programs: <a href="openapi.json">openapi.json</a>.
To try it: <a href="./">the page</a>.</p>{operations}</body></html>
"""


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    bodies = operation.get("requestBody", {}).get("content", {})
    takes = ""
    if bodies:
        fields: dict[str, Any] = next(
            (body["schema"] for body in bodies.values() if "properties" in body["schema"]), {}
        )
        required = fields.get("required", [])
        takes = f"<p>Takes {_listed(bodies)}.</p>" + _table(
            ("field", "", "what it is"),
            [
                (name, "required" if name in required else "", field.get("description", _kind(field)))
                for name, field in fields.get("properties", {}).items()
            ],
        )
    answers = [(code, answer.get("description", "")) for code, answer in operation["responses"].items()]
    return (
        f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(operation.get('description', ''))}</p>"
        f"{takes}{_table(('answer', 'when'), answers)}"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"<code>{html.escape(name)}</code>" for name in names)


def _kind(field: dict[str, Any]) -> str:
    """A JSON schema's type in words, such as "list of string"."""
    if "anyOf" in field:
        return " or ".join(_kind(each) for each in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return str(field.get("type", "anything"))


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(word)}</th>' for word in heads)
    body = "".join(
        f'<tr><th scope="row"><code>{html.escape(first)}</code></th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        + "</tr>"
        for first, *others in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
