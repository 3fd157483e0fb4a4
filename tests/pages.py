"""Pages of HTML as what they hold."""

import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Its tags by name, each with its attributes; the text; the rows of each table; whether every tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.tables, self.open = {}, [], [], []
        self.feed(path.read_text())
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(self.words)

    def check_complete(self):
        """Nothing is fetched, and every picture has a text."""
        assert not {"script", "iframe", "object"} & self.tags.keys()
        for image in self.tags.get("img", ()):
            assert image["src"].startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))
            assert image["alt"]
        assert all(link["href"].startswith(("data:", "#")) for tag in ("link", "a") for link in self.tags.get(tag, ()))


def as_shown(path):
    """How often each tag stands in the page when a browser has loaded it, and that all pictures have sizes."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    script = (
        "<script>addEventListener('load', () => document.body.dataset.broken ="
        " [...document.images].filter(i => !i.naturalWidth).length)</script>"
    )
    probe = path.with_name("probe.html")
    probe.write_text(path.read_text().replace("</head>", f"{script}</head>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent}/profile", "--dump-dom"]
    done = subprocess.run([browser, *options, probe.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert 'data-broken="0"' in done.stdout
    return Counter(word.partition(" ")[0].partition(">")[0] for word in done.stdout.split("<")[1:])
