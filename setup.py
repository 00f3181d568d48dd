"""The README as a registry of packages shows it; all other metadata are in setup.cfg.

There, links to files of the repository lead nowhere. With the environment variable ``PROJECT_URL``, the address of the
repository (`make package PROJECT_URL=...`), they are absolute, pictures as well. Without it, pictures are left out and
links are plain text.
"""

import os
import re
from pathlib import Path

from setuptools import setup

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|`[^`]*`)*)\]\((?!https?://|#)([^)\s]+)\)")


def described(text: str, url: str, version: str) -> str:
    """Return the README's text with links that work elsewhere."""

    def replaced(link: re.Match) -> str:
        picture, words, path = link.groups()
        if url:
            kind = "raw" if picture else "blob"
            return f"{picture}[{words}]({url}/{kind}/v{version}/{path})"
        return "" if picture else words

    text = _LINK.sub(replaced, text)
    return text if url else re.sub(r"\n\n\n\*[^*]+\*\n", "\n", text)  # with a picture goes its caption


def main() -> None:
    """Set up the package."""
    root = Path(__file__).parent
    url = os.environ.get("PROJECT_URL", "").rstrip("/")
    init = (root / "pipeline/sparse3dunet/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "([^"]+)"', init)[1]
    readme = (root / "README.md").read_text(encoding="utf-8")
    urls = {"Source": url, "Documentation": f"{url}/tree/v{version}/docs"}
    urls |= {"Changelog": f"{url}/blob/v{version}/CHANGELOG.md"}
    setup(
        long_description=described(readme, url, version),
        long_description_content_type="text/markdown",
        project_urls=urls if url else {},
    )


if __name__ == "__main__":
    main()
