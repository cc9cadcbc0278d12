"""Write every stored notebook with its smoke parameters injected to runs/nbval/notebooks, for nbval to run and compare.

The cells that nbval compares print what does not depend on the size of the run, so the stored outputs (of the `cpu`
profile) are the reference.
"""

from __future__ import annotations

import shutil
import sys

import nbformat
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tools.notebooks import NOTEBOOKS, ROOT, names


def main() -> None:
    folder = ROOT / "runs" / "nbval"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    for name in names():
        stored = NOTEBOOKS / f"{name}.ipynb"
        if not stored.exists():
            sys.exit(f"notebooks/{name}.ipynb is missing; run `make book` and `make refresh` to store it")
        parameters = yaml.safe_load((NOTEBOOKS / "profiles" / "smoke" / f"{name}.yaml").read_text(encoding="utf-8"))
        parameters["out"] = str(folder)
        notebook = parameterize_notebook(load_notebook_node(str(stored)), parameters)
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


if __name__ == "__main__":
    main()
