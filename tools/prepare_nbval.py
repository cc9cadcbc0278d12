"""Write every stored notebook with its smoke parameters injected to runs/nbval/notebooks, for nbval to run and compare.

The cells that nbval compares print what does not depend on the size of the run, so the stored outputs (of the `cpu`
profile) are the reference.
"""

from __future__ import annotations

import shutil
import sys

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tools.notebooks import ROOT, parameters, paths


def main() -> None:
    folder = ROOT / "runs" / "nbval"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    for name, source in paths().items():
        stored = source.with_suffix(".ipynb")
        if not stored.exists():
            sys.exit(f"{stored.relative_to(ROOT)} is missing; run `make book` and `make refresh` to store it")
        values = parameters(name, "smoke") | {"out": str(folder)}
        notebook = parameterize_notebook(load_notebook_node(str(stored)), values)
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


if __name__ == "__main__":
    main()
