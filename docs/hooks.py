"""Pages of the site that lie outside of ``docs/``: the README is its first one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add them, with links as they are in the site."""
    root = Path(config.config_file_path).parent
    for name, page in _OUTSIDE.items():
        text = (root / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, its_page in _OUTSIDE.items():
            text = re.sub(rf"\]\({re.escape(other)}", f"]({its_page}", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Mend links of pages in ``docs/`` to those outside."""
    for name, page in _OUTSIDE.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return markdown
