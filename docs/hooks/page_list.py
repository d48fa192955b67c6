"""llms.txt: the pages of the site in reading order, with one line each, for programs that read documentation."""

import re
from pathlib import Path

from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page


def write_list(nav: Navigation, site_name: str, description: str) -> str:
    """Return the list: sections of the navigation as headings, a link and the first sentence of each page."""
    lines = [f"# {site_name}", "", f"> {description}", ""]
    section = None
    for page in nav.pages:
        parent = page.parent.title if page.parent else "Start"
        if parent != section:
            lines += ["", f"## {parent}", ""]
            section = parent
        lines.append(_write_line(page))
    return "\n".join(lines) + "\n"


def _write_line(page: Page) -> str:
    text = _read_source(page)
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    title = page.title or (heading[1] if heading else page.file.src_uri)
    summary = _find_first_sentence(text)
    return f"- [{title}]({page.file.url})" + (f": {summary}" if summary else "")


def _read_source(page: Page) -> str:
    if page.file.abs_src_path and Path(page.file.abs_src_path).is_file():
        return Path(page.file.abs_src_path).read_text("utf-8")
    return page.file.content_string


def _find_first_sentence(markdown: str) -> str:
    """Return the first sentence of the first paragraph of prose, without Markdown's marks."""
    markdown = re.sub(r"^---\n.*?\n---\n", "", markdown, count=1, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", markdown):
        if paragraph.startswith((" ", "#", "`", "|", "-", "<", "!", ":", "{")) or not paragraph.strip():
            continue
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
        plain = re.sub(r"[`*]", "", plain)
        return re.split(r"(?<=[.:!?]) ", plain)[0].rstrip(":")
    return ""
