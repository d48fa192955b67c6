"""MkDocs hooks: add the generated pages, and make links that leave `docs/` work on the site."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

import cli_reference
import error_messages
import module_tree
import page_list
import recipe_files
import recipe_reference

ROOT = Path(__file__).parents[2]

# Files outside docs/ that are pages of the site too: their path in the repository -> their path on the site.
OUTSIDE_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "THIRD_PARTY_NOTICES.md": "third_party_notices.md",
    "benchmarks/README.md": "benchmarks.md",
    "packages/label-guard/tests/foreign/TRAINERS.md": "label_guard_trainers.md",
    "packages/label-guard/tests/routes/ROUTES.md": "label_guard_routes.md",
    "tests/golden/README.md": "golden_files.md",
}
GENERATED_PAGES = {
    "reference/recipe.md": recipe_reference.write_page,
    "reference/cli.md": cli_reference.write_page,
    "reference/recipes.md": recipe_files.write_page,
}
# Marks in pages written by hand, and what fills them.
GENERATED_PARTS = {
    "<!-- layers -->": module_tree.write_layers,
    "<!-- module tree -->": module_tree.write_tree,
    "<!-- error messages -->": error_messages.write_messages,
}
# Links to a file of the repository that is shown on another page of the site.
OTHER_TARGETS = {
    "README.md": "index.md",
    "recipes": "reference/recipes.md",
    "tests/golden/prompts": "golden_files.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every decision in the navigation, and rebuild when the source of a generated page changes."""
    assert config.nav is not None
    config.nav.append({"Decisions": list_decisions(ROOT / "docs")})
    config.watch.extend(str(ROOT / folder) for folder in ("src", "recipes", "packages/label-guard/src"))
    return config


def list_decisions(docs: Path) -> list[Any]:
    """Return the entries of the navigation: the index first, then the decisions by name."""
    pages = sorted(path.name for path in (docs / "decisions").glob("*.md") if path.name != "README.md")
    return ["decisions/README.md", *(f"decisions/{name}" for name in pages)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated, and those that live outside `docs/`."""
    for path, write_page in GENERATED_PAGES.items():
        _add(files, config, path, write_page(ROOT))
    for source, path in OUTSIDE_PAGES.items():
        _add(files, config, path, (ROOT / source).read_text("utf-8"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the generated parts of a page, and point its links to files outside `docs/` at their pages."""
    path = page.file.src_uri
    for mark, write_part in GENERATED_PARTS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, write_part(ROOT))
    sources = {site: repository for repository, site in OUTSIDE_PAGES.items()}
    folder = posixpath.dirname(sources.get(path, f"docs/{path}"))
    return LINK.sub(lambda link: _move_link(link, folder, path), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name what screen readers announce: the theme's search dialog, and no empty cell as a heading of a table."""
    output = output.replace(
        'data-md-component="search" role="dialog"',
        'data-md-component="search" role="dialog" aria-label="Search"',
    )
    return re.sub(r"<th([^>]*)></th>", r"<td\1></td>", output)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Write llms.txt, the list of pages in reading order, to the root of the site."""
    text = page_list.write_list(nav, str(config.site_name), str(config.site_description))
    files.append(File.generated(config, "llms.txt", content=text))
    return nav


def _add(files: Files, config: MkDocsConfig, path: str, content: str) -> None:
    existing = files.get_file_from_path(path)
    if existing is not None:
        files.remove(existing)
    files.append(File.generated(config, path, content=content))


def _move_link(link: re.Match[str], folder: str, page: str) -> str:
    """Return the link, moved to the site. A link to a file that is on no page becomes its plain text."""
    text, target = link["text"], link["target"]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    path, hash_mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(folder, path))
    site_path = _site_path(path)
    if site_path is None:
        return text
    if path.startswith("recipes/") and not anchor:
        hash_mark, anchor = "#", recipe_files.anchor_of(path)
    return f"[{text}]({posixpath.relpath(site_path, posixpath.dirname(page) or '.')}{hash_mark}{anchor})"


def _site_path(path: str) -> str | None:
    if path in OUTSIDE_PAGES:
        return OUTSIDE_PAGES[path]
    for prefix, site_path in OTHER_TARGETS.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return site_path
    return path.removeprefix("docs/") if path.startswith("docs/") else None
