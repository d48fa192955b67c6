"""A template becomes one HTML file that holds all it needs: no request leaves it, and no text in it can act."""

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
    """Render ``template``, which extends ``base.html.jinja``, into ``path``; returns the file's size in bytes.

    Every value is escaped. The page's own security policy lets nothing run but ``script``, by its hash, and nothing
    load but what the page holds. The file is written aside, then renamed; its folder is made where it is missing.
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
    """Scripts behind each other, as ``write_document`` takes them."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)
