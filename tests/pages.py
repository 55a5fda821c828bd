"""What the tests of the pages share: a parser that checks them, and a browser that opens them."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "img", "br", "input", "path", "line"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")


class Page(HTMLParser):
    """A parsed page: every (tag, attributes), the visible text, and whether each element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def is_self_contained(self) -> bool:
        """Whether ids are unique, and every link leads into the page."""
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        keys = ("src", "href", "xlink:href")
        links = [attributes[key] or "" for _, attributes in self.elements for key in keys if key in attributes]
        inside = all(link.startswith("data:") or link.removeprefix("#") in ids for link in links)
        return inside and len(ids) == len(set(ids))


@dataclass(frozen=True)
class Opened:
    """What Chromium says of a page: the width that is visible and that it needs, its height, and pictures not shown."""

    visible: int
    needed: int
    height: int
    broken_images: int
    answer: str


def open_page(folder: Path, text: str, width: int, question: str = "''") -> Opened:
    """Open a page in a frame of this width; `question` is a JavaScript expression about its `document`, as `page`."""
    # Chromium's own window cannot be narrower than about 500 pixels; a frame can.
    (folder / "frame.html").write_text(
        f'<!doctype html><iframe id="f" style="border:0" width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>'
        "<script>document.getElementById('f').onload = event => {"
        "  const page = event.target.contentDocument;"
        "  const broken = [...page.images].filter(image => !image.naturalWidth).length;"
        "  const size = page.documentElement;"
        f"  const answer = {question};"
        "  document.title = `${size.clientWidth} ${size.scrollWidth} ${size.scrollHeight} ${broken} ${answer}`;"
        "};</script>"
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-quic", "--disable-background-networking", "--disable-component-update"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    command.append((folder / "frame.html").as_uri())
    dump = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(\d+) (\d+) (\d+) (\d+) (.*?)</title>", dump.stdout)
    assert title, dump.stderr[-2000:]
    return Opened(*map(int, title.groups()[:4]), answer=title[5])
