"""Let the pages link to any file of the repository, and have the links work on the site too.

The pages are written for a checkout: `../setbacks/records.py` is a file beside them. On the site
each file that a page links to gets a page of its own: Markdown as it is, code highlighted, pictures
as they are. So nothing depends on an address of the repository, and `--strict` checks all of it.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
FENCED = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
# A README would take the place of index.md, and SECURITY.md that of security.md on some disks.
RENAMED = {"README.md": "about.md", "SECURITY.md": "reporting.md"}
LANGUAGE = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    todo = [f"docs/{page.src_uri}" for page in files.documentation_pages()] + ["README.md"]
    seen = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if not name.startswith("docs/"):
            files.append(_file(name, config))
        if name.endswith(".md"):
            todo += [target for target in _links(name) if (ROOT / target).exists()]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point every relative link from where its target lies in the repository to its place here."""
    here = page.file.src_uri
    name = _name(here)
    if not name.endswith(".md"):
        return markdown  # a file of code has no links

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[1]))
        return posixpath.relpath(_place(target), posixpath.dirname(here) or ".")

    return _outside_fences(markdown, lambda text: LINK.sub(moved, text))


def _links(name: str) -> list[str]:
    """The files that a Markdown file links to, from the repository's root."""
    text = FENCED.sub("", (ROOT / name).read_text(encoding="utf-8"))
    folder = posixpath.dirname(name)
    return [posixpath.normpath(posixpath.join(folder, match[1])) for match in LINK.finditer(text)]


def _place(name: str) -> str:
    """Where a file of the repository lies on the site."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if (ROOT / name).is_dir():
        return f"{name}/index.md"
    if name in RENAMED:
        return RENAMED[name]
    return name if name.endswith((".md", ".png")) else f"{name}.md"


def _name(place: str) -> str:
    """The file of the repository that has a place on the site."""
    if (ROOT / "docs" / place).exists():
        return f"docs/{place}"
    if place in RENAMED.values():
        return next(name for name, renamed in RENAMED.items() if renamed == place)
    plain = place.removesuffix("/index.md").removesuffix(".md")
    return place if (ROOT / place).exists() else plain


def _file(name: str, config: Any) -> File:
    """A file outside docs/ as a file of the site."""
    path = ROOT / name
    settings: dict[str, Any] = {"inclusion": InclusionLevel.NOT_IN_NAV}
    if path.is_dir():
        listed = sorted(
            f"- `{child.name}`" for child in path.iterdir() if child.name[0] not in "._"
        )
        settings["content"] = f"# {name}\n\n" + "\n".join(listed)
    elif name.endswith((".md", ".png")):
        settings["abs_src_path"] = str(path)
    elif path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        settings["content"] = "\n\n".join(map(_cell, cells))
    else:
        code = path.read_text(encoding="utf-8").rstrip()
        language = LANGUAGE.get(path.suffix, "text")
        head = "---\nsearch: {exclude: true}\n---\n"
        settings["content"] = f"{head}# {name}\n\n~~~~~~{language}\n{code}\n~~~~~~\n"
    return File.generated(config, _place(name), **settings)


def _cell(cell: dict[str, Any]) -> str:
    """A cell of a notebook as Markdown."""
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def _outside_fences(text: str, change: Any) -> str:
    """Change what is no code block."""
    parts, end = [], 0
    for fence in FENCED.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])
