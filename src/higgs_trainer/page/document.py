"""Render a template to one HTML file that contains all its resources and runs no code but its own script."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from higgs_trainer.files import write_bytes

HERE = Path(__file__).parent
PLAYERS_SCRIPT = HERE / "players.js"


def write_document(path: str | Path, template: Path, *, script: str = "", **values: Any) -> int:
    """Render ``template`` to the file ``path``, atomically. Return the file's size in bytes.

    Every value is escaped. The page's own content security policy allows no code but ``script``, by its hash, and no
    resource that is not in the page.

    Args:
        template: a template that extends ``base.html.jinja``.
        script: JavaScript for the page; `read_script` joins several files.
        values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = environment.get_template(template.name).render(
        script=Markup(script), script_source=f"'sha256-{digest}'" if script else "'none'", **values
    )
    encoded = page.encode("utf-8")
    write_bytes(path, encoded)
    return len(encoded)


def read_script(*paths: Path) -> str:
    """Read scripts and join them in this order."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)
