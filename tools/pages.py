"""An executed notebook as a page of the book: figures from their files, plain sliders, code as wide as the column."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader

from lib.record import show
from lib.record.files import ROOT, UserError
from tools.notebooks import drop_progress_bars

WIDGET = "application/vnd.jupyter.widget-{}+json"
COLUMNS = 84  # of code that a page shows at 1280 pixels without cutting a line
TEMPLATES = show.TEMPLATES.overlay(loader=FileSystemLoader(ROOT / "book" / "_ext" / "templates"))


def page(notebook: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Change a notebook into what its page shows; `figures` are those of its results. Returns its sliders by name."""
    drop_progress_bars(notebook)  # one that was run in JupyterLab has them
    models = notebook["metadata"].pop("widgets", {}).get(WIDGET.format("state"), {}).get("state", {})
    names, sliders = [name for name, figure in figures.items() if not figure["files"]], []
    notebook["cells"] = _fitted(notebook)["cells"]
    for cell in notebook["cells"]:
        cell["source"] = [line for line in cell["source"] if line != "# NBVAL_CHECK_OUTPUT\n"]
        for output in cell.get("outputs", []):
            if name := output.get("metadata", {}).get("figure"):
                filled = TEMPLATES.get_template("result-figure.html").render(chosen=figures[name], up="../")
            elif not (view := output.get("data", {}).get(WIDGET.format("view"))):
                continue
            elif view["model_id"] not in models:
                raise UserError("a slider has lost its frames, as JupyterLab saves it; run the notebook by `make book`")
            elif slider := _slider(models[view["model_id"]]["state"], models):
                sliders.append(slider)
                filled = TEMPLATES.get_template("slider.html").render(chosen=slider)
            else:
                filled = '<p class="results-note">In JupyterLab there are fields and a button here.</p>'
            output["data"], output["metadata"] = {"text/html": filled}, {}
    return dict(zip(names, sliders, strict=True))


def _fitted(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook with its lines of code broken so that they fit into the column."""
    ruff = [Path(sys.executable).with_name("ruff"), "format", f"--line-length={COLUMNS}", "--no-cache"]
    command = [*ruff, "--stdin-filename=page.ipynb", "-"]
    text = json.dumps(notebook)
    return json.loads(subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout)


def _slider(box: dict[str, Any], models: dict[str, Any]) -> dict[str, Any] | None:
    """Return what `lib.record.figures.slider` showed, from the states of its widgets; None for other widgets."""
    inside = [models[child.removeprefix("IPY_MODEL_")] for child in box.get("children", [])]
    if [one["model_name"] for one in inside] != ["SelectionSliderModel", "StackModel"]:
        return None
    bar, stack = (one["state"] for one in inside)
    frames = [models[child.removeprefix("IPY_MODEL_")]["state"]["value"] for child in stack["children"]]
    labelled = [*zip(bar["_options_labels"], frames, strict=True)]
    return {"start": bar["index"], "changes": bar["description"], "frames": labelled}
