"""The command line reference, made from the commands themselves."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.main import get_command, get_command_name

INTRODUCTION = """# Command line reference

This page is generated from the commands themselves. `higgs-trainer VERB --help` prints the same.

Exit codes: 0 done, 1 the run or the machine failed, 2 a mistake in the arguments, the recipe or the data,
130 interrupted, 143 ended by SIGTERM (`train` saves a checkpoint first).

An error is one message. Set the environment variable `HIGGS_TRAINER_TRACEBACK=1` to see its traceback too. A bug is
reported with a file that holds the traceback.
"""


def write_page(root: Path) -> str:
    """Return the page: one heading for each verb, with its usage, arguments and options."""
    from higgs_trainer.cli import app

    group: Any = get_command(app)
    parts = [INTRODUCTION]
    for registered in app.registered_commands:
        assert registered.callback is not None
        name = registered.name or get_command_name(registered.callback.__name__)
        command = group.commands[name]
        if not command.hidden:
            parts.append(_write_command(name, command, get_type_hints(registered.callback)))
    return "\n".join(parts)


def _write_command(name: str, command: Any, types: dict[str, Any]) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    options = [parameter for parameter in shown if parameter.param_type_name == "option"]
    usage = " ".join(["higgs-trainer", name, *(_name_argument(argument) for argument in arguments)])
    if options:
        usage += " [OPTIONS]"
    parts = [f"## `{name}`", "", (command.help or "").strip(), "", f"```\n{usage}\n```", ""]
    parts += _write_table("argument", [(_name_argument(one), one) for one in arguments])
    parts += _write_table(
        "option", [(_name_option(one, types[one.name]), one) for one in options if one.name in types]
    )
    return "\n".join(parts)


def _write_table(kind: str, rows: list[tuple[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {kind} | meaning | default |", "|---|---|---|"]
    for name, parameter in rows:
        lines.append(
            f"| `{name}` | {_escape(getattr(parameter, 'help', '') or '')} | {_write_default(parameter)} |"
        )
    return [*lines, ""]


def _name_argument(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _name_option(option: Any, annotation: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.metavar or _name_type(annotation)}"


def _name_type(annotation: Any) -> str:
    """Return what to write in an option's place: the choices, or the kind of value."""
    arguments = [one for one in get_args(annotation) if one is not type(None)]
    if get_origin(annotation) is Literal:
        return "|".join(arguments)
    if get_origin(annotation) in (Union, UnionType, list):
        return _name_type(arguments[0])
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(annotation, "TEXT")


def _write_default(parameter: Any) -> str:
    default = parameter.default
    if getattr(parameter, "required", False):
        return "required"
    if (
        default is None
        or callable(default)
        or default in ((), [], False)
        or "Sentinel" in type(default).__name__
    ):
        return ""
    return f"`{default}`"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
