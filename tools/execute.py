"""Execute one notebook at one profile with papermill; a failed one is kept with its traceback."""

from __future__ import annotations

import argparse
import logging
import os
import sys

import jupytext
import nbformat
import papermill
from jupytext.combine import combine_inputs_with_outputs
from papermill.exceptions import PapermillExecutionError

from lib.record.files import ROOT
from tools import devices
from tools.notebooks import ONE_THREAD, drop_progress_bars, parameters, paths


def read_source(name: str) -> nbformat.NotebookNode:
    """Return the notebook of `NAME.py`, with the cell ids of the paired `NAME.ipynb` and without outputs."""
    notebook = jupytext.read(paths()[name])
    paired = paths()[name].with_suffix(".ipynb")
    if paired.exists():
        notebook = combine_inputs_with_outputs(notebook, nbformat.read(paired, as_version=4), fmt="py:percent")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    return notebook


def _is_noise(output: nbformat.NotebookNode) -> bool:
    """Whether an output only says that there is CUDA's toolkit and no GPU."""
    return output.get("name") == "stderr" and all("No CUDA runtime is found" in x for x in output.text.splitlines())


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop papermill's bookkeeping, progress bars and a note of torch's; hide the injected parameters from the book."""
    drop_progress_bars(notebook)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        for key in ("papermill", "execution"):  # paths, times of day
            cell.metadata.pop(key, None)
        tags = cell.metadata.pop("tags", [])  # papermill leaves empty lists, which would come into the `.py`
        if "injected-parameters" in tags:
            tags = ["injected-parameters", "remove-cell"]
        cell.metadata.update({"tags": tags} if tags else {})
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1))
    arguments = parser.parse_args()
    run = ROOT / "runs" / arguments.profile
    failed = run / "failed"
    prepared, output = run / "work" / f"{arguments.name}.in.ipynb", run / "work" / f"{arguments.name}.ipynb"
    final = run / "notebooks" / f"{arguments.name}.ipynb"
    for folder in (failed, prepared.parent, final.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for kept in failed.glob(f"{arguments.name}.*"):  # by an earlier try
        kept.unlink()
    nbformat.write(read_source(arguments.name), prepared)
    values = parameters(arguments.name, arguments.profile)
    os.environ["TQDM_DISABLE"] = "1"  # tqdm's widgets do not read it; `tidy` drops those
    if arguments.profile in ONE_THREAD:
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    if arguments.gpus:
        devices.take(devices.visible())
    logging.getLogger("papermill.translators").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(str(prepared), str(output), values, kernel_name="python3", progress_bar=False)
    except PapermillExecutionError as error:
        kept = failed / f"{arguments.name}.ipynb"
        output.replace(kept)
        reason = f"{arguments.name}: {error.ename}: {error.evalue}; with its traceback in {kept.relative_to(ROOT)}"
        (failed / f"{arguments.name}.txt").write_text(reason + "\n", encoding="utf-8")
        print(reason, file=sys.stderr)
        return 1
    nbformat.write(tidy(nbformat.read(output, as_version=4)), output)
    output.replace(final)
    return 0


if __name__ == "__main__":
    sys.exit(main())
