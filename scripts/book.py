#!/usr/bin/env python3
"""mdBook's preprocessor for docs/, and a check of the book's links.

    mdbook build docs            runs it, by docs/book.toml
    scripts/book.py check DIR    every link of the HTML in DIR leads to a page, a file or a heading that is there

The pages link to files of the project that are not below docs/, such as ../workflows/deploy.yaml. On Gitea such a link
is right; a book holds its own chapters only. So each of those files becomes a chapter of the book, at its end.
"""

import json
import os
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".service": "ini", ".sh": "sh"}


def chapter_of(path: str) -> str:
    """Where a file of the project is in the book. mdBook makes an index.html of each README.md, and links to it are lost."""
    if posixpath.basename(path) == "README.md":
        path = posixpath.join(posixpath.dirname(path), "index.md")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"beside/{path}/index.md"
    return f"beside/{path}" if path.endswith(".md") else f"beside/{path}.md"


def block(path: Path) -> str:
    return f"````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text().rstrip()}\n````\n"


def text_of(path: str) -> str:
    """The text of a chapter for a file, or a folder, outside of docs/."""
    there = ROOT / path
    if there.is_dir():
        files = sorted(file for file in there.rglob("*") if file.is_file())
        return f"# {path}\n\n" + "\n".join(f"## {file.relative_to(there)}\n\n{block(file)}" for file in files)
    return there.read_text() if path.endswith(".md") else f"# {path}\n\n{block(there)}"


def relink(text: str, source: str, chapter: str, wanted: list[str]) -> str:
    """Points the links of a page, whose file is `source`, at chapters; notes the files that have to become some."""

    def one(match: re.Match[str]) -> str:
        target, hash, anchor = match[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match[0]
        if not path.startswith("docs/") and path not in wanted:
            wanted.append(path)
        there = posixpath.relpath(chapter_of(path), posixpath.dirname(chapter) or ".")
        return f"{match[1]}{there}{hash}{anchor}{match[3]}"

    # Code is left as it is.
    parts = re.split(r"(^(?:```+)[^\n]*\n.*?^(?:```+)[ \t]*$)", text, flags=re.M | re.S)
    return "".join(part if index % 2 else LINK.sub(one, part) for index, part in enumerate(parts))


def chapters(items: list) -> list:
    """All chapters below these items."""
    found = []
    for item in items:
        if isinstance(item, dict) and "Chapter" in item:
            found += [item["Chapter"], *chapters(item["Chapter"]["sub_items"])]
    return found


def preprocess() -> None:
    _, book = json.load(sys.stdin)
    items = book["items"] if "items" in book else book["sections"]
    wanted: list[str] = []
    for chapter in chapters(items):
        if chapter.get("source_path"):
            source = f"docs/{chapter['source_path']}"
            chapter["content"] = relink(chapter["content"], source, chapter["path"], wanted)
    more = []
    for path in wanted:
        there = chapter_of(path)
        text = relink(text_of(path), path if (ROOT / path).is_file() else f"{path}/.", there, wanted)
        name = text.split("\n", 1)[0].lstrip("# ")
        fields = {"name": name, "content": text, "number": None, "sub_items": [], "path": there}
        more.append({"Chapter": fields | {"source_path": None, "parent_names": []}})
    if more:
        items += [{"PartTitle": "Files of the project"}, *more]
    json.dump(book, sys.stdout)


class Page(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and tag in ("a", "img"):
                self.links.add(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def check(folder: Path) -> int:
    # The page for printing repeats all others.
    files = [file for file in folder.rglob("*.html") if file.name not in ("print.html", "404.html")]
    pages = {file.resolve(): Page(file.read_text()) for file in files}
    wrong = 0
    for file, page in sorted(pages.items()):
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
            there = there / "index.html" if there.is_dir() else there
            lost = not there.exists()
            if not lost and parts.fragment and there in pages:
                lost = unquote(parts.fragment) not in pages[there].anchors
            if lost:
                print(f"book: {file.relative_to(folder.resolve())}: {link} leads nowhere", file=sys.stderr)
                wrong += 1
    print(f"book: {len(pages)} pages, {sum(len(page.links) for page in pages.values())} links, {wrong} lead nowhere")
    return 1 if wrong or not pages else 0


def main() -> int:
    match sys.argv[1:]:
        case []:
            preprocess()
            return 0
        case ["supports", renderer]:
            return 0 if renderer == "html" else 1
        case ["check", folder]:
            return check(Path(folder))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
