"""The README as the package's description: its links are the repository's, not the page's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# [text](docs/page.md#part) or ![text](picture.svg); not (https://...) and not (#part).
_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, version: str) -> str:
    """``text``, Markdown, with each link to a file of the repository as the URL of that version."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}{found[2]}({repository}/{kind}/v{version}/{found[3]})"

    return _LINK.sub(link, text)


class ReadmeHook(MetadataHookInterface):
    """Sets ``readme``, which is dynamic in pyproject.toml."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text()
        found = re.search(r'^__version__ = "(.+)"$', self._version_file().read_text(), re.MULTILINE)
        assert found is not None
        text = absolute(readme, metadata["urls"]["Repository"], found[1])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}

    def _version_file(self) -> Path:
        return Path(self.root) / "fusepass" / "__init__.py"
