"""Read a page as a browser would: its sections, tables, pictures, and everything that could load or run."""

import json
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br", "path", "rect", "circle"}


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        texts: id of a section → its text.
        tables: id of a section → its tables, as rows of texts of cells; cells of bars are left out.
        cards: id of a section → its pictures and what stands in their place, as (title, alt or None, caption).
        tags: (name, attributes) of every element.
        scripts: (attributes, text) of every script.
    """

    def __init__(self, data):
        super().__init__()
        self.texts, self.tables, self.cards, self.tags, self.scripts = {}, {}, {}, [], []
        self._section, self._stack, self._lists = "", [], {}
        self.feed(data.decode())
        assert self._stack == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._stack.append((tag, attributes))
        if tag == "section":
            self._section = attributes["id"]
            self.tables[self._section], self.cards[self._section], self.texts[self._section] = [], [], ""
        if tag == "table":
            self.tables[self._section].append([])
        if tag == "tr":
            self.tables[self._section][-1].append([])
        if tag in ("td", "th") and attributes.get("class") != "bar":
            self.tables[self._section][-1][-1].append("")
        if tag == "figure" and attributes["class"] == "card":
            self.cards[self._section].append([attributes["title"], None, ""])
        if tag == "img":
            self.cards[self._section][-1][1] = attributes["alt"]
        if tag == "script":
            self.scripts.append((attributes, ""))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._stack.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        names = [tag for tag, _ in self._stack]
        if names and names[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._section:
            self.texts[self._section] += data
            if "td" in names or "th" in names:
                rows = self.tables[self._section][-1]
                rows[-1][-1] = f"{rows[-1][-1]} {data.strip()}".strip()
            if "figcaption" in names:
                self.cards[self._section][-1][2] += data

    def text(self, section):
        """The text of a section, with single spaces."""
        return " ".join(self.texts[section].split())

    def json(self, name):
        """The data of a script that is no program."""
        (found,) = [text for attributes, text in self.scripts if attributes.get("id") == name]
        return json.loads(found)

    def loads(self):
        """Every address in the page that a browser could follow by itself."""
        of = [v for _, a in self.tags for n, v in a.items() if n in ("src", "href", "srcset", "data") and v]
        styles = " ".join(a["style"] for _, a in self.tags if "style" in a)
        return [v for v in [*of, *re.findall(r"url\(([^)]*)\)", styles)] if not v.startswith(("#", "data:"))]


def whole(text):
    """A whole number with commas → int."""
    return int(text.replace(",", ""))
