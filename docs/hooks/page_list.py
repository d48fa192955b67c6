"""llms.txt: the pages of the site in reading order, with one line each, for programs that read documentation."""

import re

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
    front_matter, text = _split_front_matter(page.file.content_string)
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    title = page.title or (heading[1] if heading else page.file.src_uri)
    summary = front_matter.get("description") or _find_first_sentence(text)
    return f"- [{title}]({page.file.url})" + (f": {summary}" if summary else "")


def _split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """Return the one-line fields between the `---` lines at the top of a page, and the rest of the page."""
    if not text.startswith("---\n"):
        return {}, text
    head, _, rest = text[4:].partition("\n---\n")
    return dict(re.findall(r"^(\w+): (.+)$", head, re.MULTILINE)), rest


def _find_first_sentence(markdown: str) -> str:
    """Return the first sentence of the first paragraph of prose, without Markdown's marks."""
    markdown = re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", markdown):
        if not paragraph.strip() or paragraph.startswith((" ", "#", "|", "- ", "<", "!", ":", "{")):
            continue
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
        plain = re.sub(r"[`*]", "", plain)
        return re.split(r"(?<=[.!?]) ", plain)[0]
    return ""
