"""The command reference: usage, arguments, options with defaults, and examples of every command."""

from typing import Any

from markup import cell, code, table
from typer.main import get_command

from imagereward.cli import app

PROGRAM = "imagereward"


def commands() -> dict[str, Any]:
    """The click command of every subcommand, by name, in the order of `imagereward --help`."""
    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def page() -> str:
    """Markdown: a list of the commands, then a section a command."""
    found = commands()
    lines = [(f"[`{PROGRAM} {name}`](#{name})", _summary(each)) for name, each in found.items()]
    sections = [_section(name, each) for name, each in found.items()]
    return "\n\n".join([table(("command", "use"), lines), *sections])


def _summary(command: Any) -> str:
    return cell((command.help or "").split("\n\n")[0])


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"{PROGRAM} {name}")
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    parts = [f"## {name} {{ #{name} }}", (command.help or "").strip(), f"```text\n{usage}\n```"]
    rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:  # None: hidden
            rows[parameter.param_type_name].append((code(record[0]), cell(record[1])))
    parts += [table((kind, "meaning"), found) for kind, found in rows.items() if found]
    if examples := _examples(command.epilog or ""):
        parts.append(f"```bash\n{examples}\n```")
    return "\n\n".join(parts)


def _examples(epilog: str) -> str:
    lines = [line.strip() for line in epilog.splitlines()]
    return "\n".join(line for line in lines if line.startswith(PROGRAM))
