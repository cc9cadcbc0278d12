"""Numbers and tables as a reader sees them, in notebooks, in the book and in the README alike."""

import re
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

FOLDER = Path(__file__).parent / "templates"
LETTERS = {"eta": "η", "gamma": "γ", "lambda": "λ", "omega": "ω", "pi": "π", "sigma": "σ"}
SIGNS = {"->": "→", "<=": "≤", ">=": "≥", " - ": " − "}


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` significant digits, without exponents for everyday sizes."""
    if value is None or not isfinite(value):
        return "not defined"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if float(f"{abs(value):.{digits}g}") >= 10**digits and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def cell(value: Any) -> Any:
    """Return an entry of a table as it is shown."""
    return number(value) if isinstance(value, float) else value


def math(text: str) -> Markup:
    """Set the formulas in a sentence of claims.yaml: `lambda`, `gamma_aux`, `W2`, `r^2`, `->`, `>=`."""
    for plain, sign in SIGNS.items():
        text = text.replace(plain, sign)
    html = re.sub(rf"\b({'|'.join(LETTERS)})_(\w+)", r"\1<sub>\2</sub>", str(escape(text)))
    html = re.sub(rf"\b({'|'.join(LETTERS)})\b", lambda found: LETTERS[found[1]], html)
    html = re.sub(r"\b([A-Z])(\d)\b", r"\1<sub>\2</sub>", html)
    return Markup(re.sub(r"\^(\w+)", r"<sup>\1</sup>", html))


TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=select_autoescape(["html"], default_for_string=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"cell": cell, "math": math, "number": number}


def render(template: str, **values: Any) -> str:
    """Fill in one of the templates beside this module."""
    return TEMPLATES.get_template(template).render(**values)


def table(rows: list[dict[str, Any]], note: str = "") -> dict[str, str]:
    """Return flat rows with equal keys, and a note below, as a message of HTML and plain text."""
    lines = [list(rows[0]), *([str(cell(value)) for value in row.values()] for row in rows)]
    plain = "\n".join([*("  ".join(map(str, line)) for line in lines), *([note] if note else [])])
    return {"text/html": render("results.html", rows=rows, note=note), "text/plain": plain}
