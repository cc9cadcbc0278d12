"""Write every stored notebook with its smoke parameters injected to runs/nbval/notebooks, for nbval to run and compare.

The cells that nbval compares print what does not depend on the size of the run, so the stored outputs (of the
record) are the reference.
"""

from __future__ import annotations

import shutil
import sys

import nbformat
import papermill

from lib.record.files import ROOT
from tools.notebooks import parameters, paths


def main() -> None:
    folder = ROOT / "runs" / "nbval"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    for name, source in paths().items():
        stored = source.with_suffix(".ipynb")
        if not stored.exists():
            sys.exit(f"{stored.relative_to(ROOT)} is missing; run `make book` and `make refresh` to store it")
        prepared, values = folder / "notebooks" / f"{name}.ipynb", parameters(name, "smoke") | {"out": str(folder)}
        notebook = papermill.execute_notebook(str(stored), str(prepared), values, prepare_only=True)
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, prepared)


if __name__ == "__main__":
    main()
