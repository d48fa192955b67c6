"""Render a template to one HTML file that contains all its resources and runs no code but its own script."""

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from higgs_trainer.errors import UserError
from higgs_trainer.files import remove_leftovers, write_bytes

HERE = Path(__file__).parent
PLAYERS_SCRIPT = HERE / "players.js"
COPYING_SCRIPT = HERE / "copying.js"


def write_document(
    path: str | Path, template: Path, *, most_bytes: float = math.inf, script: str = "", **values: Any
) -> int:
    """Render ``template`` to the file ``path``, atomically. Return the file's size in bytes.

    Every value is escaped. The page's own content security policy allows no code but ``script``, by its hash, and no
    resource that is not in the page.

    Args:
        template: a template that extends ``base.html.jinja``.
        most_bytes: the size above which nothing is written.
        script: JavaScript for the page; `read_script` joins several files.
        values: what the template shows.

    Raises:
        UserError: the page is larger than ``most_bytes``.
        SaveError: the page cannot be written.
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
    # Halves of surrogate pairs, as in file names that are not UTF-8, become "?".
    encoded = page.encode("utf-8", errors="replace")
    if len(encoded) > most_bytes:
        raise UserError(
            f"{path} would have {len(encoded) / 1e6:.1f} MB, more than {most_bytes / 1e6:g} MB, because of very long "
            "texts in the files of the run; shorten them"
        )
    write_bytes(path, encoded)
    remove_leftovers(Path(path))
    return len(encoded)


def read_script(*paths: Path) -> str:
    """Read scripts and join them in this order."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)
