"""What the pages need from the results: numbers in prose, the scorecard, claim cards, costs, versions and figures.

Everything is read from `_data/companion.json`, which `tools/book.py` writes beside the pages. A page that asks for a
number, claim or figure that no notebook recorded is a warning, and warnings stop the build.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import companion_html as markup
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

DATA = "_data/companion.json"


class MissingResult(Exception):
    """A page asks for something no notebook recorded."""


class Numbers(dict[str, Any]):
    """Results by name; an unknown name is an error that lists the known ones."""

    what = "entry"

    @classmethod
    def named(cls, what: str, items: dict[str, Any]) -> Numbers:
        """Return `items` with the words that an error uses for one of them."""
        numbers = cls(items)
        numbers.what = what
        return numbers

    def __getitem__(self, key: str) -> Any:
        """Return the entry, or fail with a sentence; KeyError would be turned into an empty text."""
        if key not in self:
            raise MissingResult(f"no {self.what} '{key}'; known: {', '.join(sorted(self)) or 'none'}")
        return super().__getitem__(key)


def load(app: Sphinx) -> dict[str, Any]:
    """Read the data of this build."""
    return json.loads((Path(app.srcdir) / DATA).read_text(encoding="utf-8"))


def set_substitutions(app: Sphinx, config: Config) -> None:
    """Give the pages `num`, `counts` and `profile`."""
    data = load(app)
    num = {
        name: Numbers.named(f"number in the results of {name}", {k: v["text"] for k, v in results["numbers"].items()})
        for name, results in data["results"].items()
    }
    counts = markup.counts(data)
    config.myst_substitutions = {
        **config.myst_substitutions,
        "num": Numbers.named("notebook with results", num),
        "counts": Numbers.named("verdict", counts),
        "total": sum(counts.values()),
        "profile": f"`{data['profile']}`",
        "measured": sum(counts.values()) - counts["not tested here"],
    }
    # The builder adds every script below _static to every page; those in vendor/ are loaded where they are needed.
    config.html_js_files = [js for js in config.html_js_files if not str(js).startswith("vendor/")]


class FromResults(SphinxDirective):
    """A directive whose HTML comes from the results."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Insert the HTML, or an error that stops the build."""
        self.env.note_dependency(str(Path(self.env.app.srcdir) / DATA))
        try:
            return [nodes.raw("", self.html(load(self.env.app)), format="html")]
        except MissingResult as missing:
            raise self.error(str(missing)) from None

    def link(self, page: str) -> str:
        """Return the address of a page of the book as seen from this one."""
        return self.env.app.builder.get_relative_uri(self.env.docname, page)

    def html(self, data: dict[str, Any]) -> str:
        """Return the HTML."""
        raise NotImplementedError


class Scorecard(FromResults):
    """All claims: verdict, expected, measured, link."""

    def html(self, data: dict[str, Any]) -> str:
        """Return the table and its filter."""
        return markup.scorecard(data, self.link)


class ScorecardShort(FromResults):
    """Papers by claims, one mark each."""

    def html(self, data: dict[str, Any]) -> str:
        """Return the counts and the small table."""
        return markup.scorecard_short(data, self.link)


class Claim(FromResults):
    """One claim's card; the argument is its id."""

    required_arguments = 1

    def html(self, data: dict[str, Any]) -> str:
        """Return the card."""
        known = data["claims"]
        if self.arguments[0] not in known:
            raise MissingResult(f"no claim '{self.arguments[0]}'; known: {', '.join(known)}")
        return markup.claim_card(data, self.arguments[0], self.link)


class Costs(FromResults):
    """Minutes, memory and hardware of each notebook in each profile that was run."""

    def html(self, data: dict[str, Any]) -> str:
        """Return one table a profile."""
        return markup.costs(data, self.link)


class Bench(FromResults):
    """What `make bench` measured; the argument is cpu or gpu."""

    required_arguments = 1

    def html(self, data: dict[str, Any]) -> str:
        """Return one table a section, or a line if it was not run."""
        return markup.bench(data, self.arguments[0])


class Versions(FromResults):
    """The package versions behind the results shown."""

    def html(self, data: dict[str, Any]) -> str:
        """Return the table."""
        return markup.versions(data)


class ResultFigure(FromResults):
    """A notebook's figure in its light and dark version: `NOTEBOOK/NAME`, caption as content."""

    required_arguments = 1
    has_content = True
    option_spec = {"width": directives.length_or_percentage_or_unitless}  # noqa: RUF012

    def html(self, data: dict[str, Any]) -> str:
        """Return both images; the style sheet shows the one that suits the theme."""
        name = self.arguments[0]
        known = {f"{nb}/{key}": f for nb, r in data["results"].items() for key, f in r["figures"].items() if f["files"]}
        if name not in known:
            raise MissingResult(f"no figure '{name}'; known: {', '.join(known) or 'none'}")
        up = "../" * self.env.docname.count("/")
        return markup.figure(
            known[name], f"{up}_static/figures/", " ".join(self.content), self.options.get("width", "")
        )


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let docstrings be plain text with backticks: escape what reStructuredText would read as markup."""
    pieces = (re.split(r"(``[^`]*``|:\w+:`[^`]*`|`[^`]*`)", line) for line in lines)
    lines[:] = ["".join(_escape(p) if i % 2 == 0 else p for i, p in enumerate(line)) for line in pieces]


def _escape(text: str) -> str:
    stars = re.sub(r"(?<!^)(?<!\\)([*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", stars)


def drop_thebe(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out the scripts that would load live kernels from another host."""
    kept = [js for js in context["script_files"] if "thebe" not in f"{js} {getattr(js, 'attributes', '')}".lower()]
    context["script_files"] = kept


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and hooks."""
    app.connect("config-inited", set_substitutions, priority=400)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    app.connect("html-page-context", drop_thebe, priority=900)
    for name, directive in {
        "scorecard": Scorecard,
        "scorecard-short": ScorecardShort,
        "claim": Claim,
        "costs": Costs,
        "bench": Bench,
        "versions": Versions,
        "result-figure": ResultFigure,
    }.items():
        app.add_directive(name, directive)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
