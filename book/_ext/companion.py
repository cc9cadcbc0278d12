"""What the pages need from the results: numbers in prose, the scorecard, claim cards, costs, versions and figures.

Everything is read from `_data/companion.json`, which `tools/book.py` writes beside the pages; each directive fills in
the template of its name. A page that asks for a number, claim or figure that no notebook recorded is a warning, and
warnings stop the build.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import forest
from docutils import nodes
from jinja2 import ChoiceLoader, FileSystemLoader
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from lib.record import claims, show
from lib.record.files import RECORD

DATA = "_data/companion.json"


def commit(provenance: dict[str, Any]) -> str:
    """Return the commit of a run in words."""
    return provenance["commit"][:10] + " with local changes" * bool(provenance["dirty"])


def machine(hardware: dict[str, Any]) -> str:
    """Return the GPU, or the processor and the threads on it."""
    return hardware["gpu"] or f"{hardware['cpu']}, {hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"


folder = FileSystemLoader(Path(__file__).parent / "templates")
TEMPLATES = show.TEMPLATES.overlay(loader=ChoiceLoader([folder, FileSystemLoader(show.FOLDER)]))
TEMPLATES.filters = {**show.TEMPLATES.filters, "commit": commit, "machine": machine}


class MissingResult(Exception):
    """A page asks for something no notebook recorded."""


class Named(dict[str, Any]):
    """Results by name; an unknown name is an error that lists the known ones (KeyError would become an empty text)."""

    def __init__(self, items: Any, what: str = "entry") -> None:
        super().__init__(items)
        self.what = what

    def __getitem__(self, key: str) -> Any:
        """Return the entry, or fail with a sentence."""
        if key not in self:
            raise MissingResult(f"no {self.what} '{key}'; known: {', '.join(sorted(self)) or 'none'}")
        return super().__getitem__(key)


def load(app: Sphinx) -> dict[str, Any]:
    """Read the data of this build."""
    return json.loads((Path(app.srcdir) / DATA).read_text(encoding="utf-8"))


def set_substitutions(app: Sphinx, config: Config) -> None:
    """Give the pages `num`, `counts`, `measured` and `judged_by`."""
    data = load(app)
    num = {name: Named(one["numbers"], f"number in the results of {name}") for name, one in data["results"].items()}
    verdicts = [claim["verdict"] for claim in data["claims"].values()]
    judged_by = "the record" if data["profile"] == RECORD else f"profile `{data['profile']}`"
    if agrees := [claim["agrees"] for claim in data["claims"].values() if "agrees" in claim]:
        alike = f"{len(agrees) - agrees.count('differs')} of {len(agrees)}"
        judged_by = f"the record; this book's own run, of its first replicates, agrees in {alike} claims"
    config.myst_substitutions = {
        **config.myst_substitutions,
        "num": Named(num, "notebook with results"),
        "counts": Named({word: verdicts.count(word) for word in claims.VERDICTS}, "verdict"),
        "judged_by": judged_by,
        "measured": len(verdicts) - verdicts.count("not tested"),
    }
    # The builder adds every script below _static to every page; that in scripts/ stands in the place of the theme's.
    config.html_js_files = [js for js in config.html_js_files if not str(js).startswith("scripts/")]


def fill(template: str, data: dict[str, Any], argument: str = "", **more: Any) -> str:
    """Return a template filled in with the data of a build; `chosen` is the claim or figure that `argument` names."""
    figures = {
        f"{nb}/{key}": f for nb, one in data["results"].items() for key, f in one["figures"].items() if f["files"]
    }
    named = {"claim": Named(data["cards"], "claim"), "result-figure": Named(figures, "figure")}
    named["slider"] = Named(data.get("sliders", {}), "slider")
    named["paper"] = Named(data.get("sources", {}), "paper")
    papers = dict.fromkeys(claim["entry"]["paper"] for claim in data["claims"].values())
    versions: dict[str, set[str]] = {}
    for one in data["results"].values():
        for name, number in one["provenance"]["versions"].items():
            versions.setdefault(name, set()).add(number)
    values = {
        "argument": argument,
        "chosen": named[template][argument] if template in named else None,
        "judged": [i for i, one in data["claims"].items() if one["checks"]],
        "strip": forest.strip,
        "by_paper": [(p, [i for i, one in data["claims"].items() if one["entry"]["paper"] == p]) for p in papers],
        "versions": [{"package": name, "version": ", ".join(sorted(found))} for name, found in versions.items()],
        "marks": claims.MARKS,
        "kinds": claims.KINDS,
        "rule": claims.rule_text,
        "card": claims.card,
    }
    return TEMPLATES.get_template(f"{template}.html").render(**data, **values, **more)


class FromResults(SphinxDirective):
    """Inserts the template of its name, filled in; the argument names a claim, a figure or a machine."""

    optional_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Insert the HTML, or an error that stops the build."""
        self.env.note_dependency(str(Path(self.env.app.srcdir) / DATA))
        up = "../" * self.env.docname.count("/")
        try:
            html = fill(
                self.name,
                load(self.env.app),
                "".join(self.arguments),
                link=self.link,
                up=up,
                caption=" ".join(self.content),
            )
        except MissingResult as missing:
            raise self.error(str(missing)) from None
        return [nodes.raw("", html, format="html")]

    def link(self, page: str) -> str:
        """Return the address of a page of the book as seen from this one."""
        return self.env.app.builder.get_relative_uri(self.env.docname, page)


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let docstrings be plain text with backticks: escape what reStructuredText would read as markup."""
    pieces = (re.split(r"(``[^`]*``|:\w+:`[^`]*`|`[^`]*`)", line) for line in lines)
    lines[:] = ["".join(_escape(p) if i % 2 == 0 else p for i, p in enumerate(line)) for line in pieces]


def _escape(text: str) -> str:
    stars = re.sub(r"(?<!^)(?<!\\)([*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", stars)


# Scripts and styles, and what a page has that needs them; scripts of thebe would load live kernels from another host.
NEEDED = {
    **dict.fromkeys(("thebe", "design-tabs", "togglebutton", "sphinx_highlight")),
    **dict.fromkeys(("copybutton", "clipboard"), 'class="highlight'),
    **dict.fromkeys(("katex", "auto-render"), 'class="math'),
    "sphinx-design": 'class="sd-',
    "toys": "data-toy=",
    "rdmd-nets": 'data-toy="rdmd-nets"',
}


def drop_unused(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out what a page does not need."""
    body = context.get("body", "")
    unused = [name for name, mark in NEEDED.items() if mark is None or mark not in body]
    for kind in ("script_files", "css_files"):
        said = ((one, f"{one} {getattr(one, 'attributes', '')}".lower()) for one in context[kind])
        context[kind] = [one for one, words in said if not any(name in words for name in unused)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and hooks."""
    app.connect("config-inited", set_substitutions, priority=400)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    app.connect("html-page-context", drop_unused, priority=900)
    for path in Path(__file__).parent.glob("templates/[a-z]*.html"):
        app.add_directive(path.stem, FromResults)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
