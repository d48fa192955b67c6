"""Render a chat template in a process of its own, with little memory and time. `chat_template.py` runs this file.

A template comes with a model folder, so it may be hostile: one line can build ten gigabytes or loop for ever, and no
sandbox of Python stops a single operation. The process reads one JSON object from stdin: ``template``, ``variables``,
a list of ``conversations`` (messages, and whether a generation prompt follows), ``seconds``, ``bytes`` and
``characters``. It writes one JSON object to stdout: the rendered ``texts``, or an ``error``. It imports nothing of this
package.
"""

import json
import sys
import time
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

if sys.platform != "win32":
    import resource


class GenerationBlock(Extension):
    """The tag `{% generation %}` of transformers, which marks what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def limit(seconds: int, num_bytes: int) -> None:
    """Let this process end when it has used this much time of the CPU from now on, or this much memory.

    macOS does not limit the memory of a process, and Windows has neither limit. The caller ends the process after
    `TEMPLATE_WAIT_SECONDS` anyway.
    """
    if sys.platform == "win32":
        return
    until = int(time.process_time()) + 1 + seconds
    # With equal limits Linux sends SIGKILL, which is also what a process gets when the machine has no memory left.
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))


def build_environment() -> ImmutableSandboxedEnvironment:
    """Build the environment in which transformers renders chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = dump
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def dump(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None) -> str:
    """Write JSON without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators)


def refuse(message: str) -> None:
    """Raise the error that a template asks for."""
    raise TemplateError(message)


def render(job: dict[str, Any]) -> list[str]:
    """Render the template for each conversation. Raise ValueError if the result is too long."""
    template = build_environment().from_string(job["template"])
    texts, length = [], 0
    for messages, add_generation_prompt in job["conversations"]:
        pieces = []
        for piece in template.generate(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **job["variables"],
        ):
            pieces.append(piece)
            length += len(piece)
            if length > job["characters"]:
                raise ValueError(f"it builds more than {job['characters']:,} characters")
        texts.append("".join(pieces))
    return texts


def main() -> None:
    """Render the job on stdin."""
    job = json.load(sys.stdin)
    limit(job["seconds"], job["bytes"])
    try:
        result: dict[str, Any] = {"texts": render(job)}
    except MemoryError:
        result = {"error": f"it takes more than {job['bytes'] // 2**20} MiB of memory"}
    # A template can raise anything.
    except Exception as error:  # noqa: BLE001
        result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
