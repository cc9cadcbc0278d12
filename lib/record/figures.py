"""Figures in a light and a dark version, picture grids, and sliders that need no kernel."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from lib.record.files import UserError, write_atomic
from lib.record.run import Run

Draw = Callable[[], Figure]

STYLES = Path(__file__).with_name("styles")
PREVIEW_COLOURS = 96


def ink() -> str:
    """Return the foreground colour of the version being drawn."""
    return mpl.rcParams["text.color"]


def paper() -> str:
    """Return the background colour of the version being drawn."""
    return mpl.rcParams["figure.facecolor"]


def render(draw: Draw, mode: str, kind: str) -> bytes:
    """Draw one version of a figure and return the bytes of its `svg` or `png` file."""
    with _drawn(draw, mode) as figure:
        return _saved(figure, kind)


@contextmanager
def _drawn(draw: Draw, mode: str) -> Iterator[Figure]:
    with plt.style.context([STYLES / "common.mplstyle", STYLES / f"{mode}.mplstyle"]):
        figure = draw()
        yield figure
        plt.close(figure)


def _saved(figure: Figure, kind: str, dpi: Literal["figure"] | None = None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def show(run: Run, name: str, draw: Draw, alt: str, kind: str = "svg") -> None:
    """Save a figure in light and dark as `FOLDER/figures/NOTEBOOK-NAME-{light,dark}.KIND`; show a preview.

    `draw` returns a matplotlib figure and is called once for each version; `alt` says in words with numbers what the
    figure shows; `kind` is `svg` for lines and few points, `png` for images and dense clouds. The book shows the files.
    """
    if not alt.strip():
        raise UserError(f"figure '{name}': alt text is empty; say in words what the figure shows")
    if kind not in ("svg", "png"):
        raise UserError(f"figure '{name}': kind {kind!r}; one of 'svg', 'png'")
    files = []
    for mode in ("light", "dark"):
        path = run.folder / "figures" / f"{run.notebook}-{name}-{mode}.{kind}"
        with _drawn(draw, mode) as figure:
            data = _saved(figure, kind)
            write_atomic(path, data if kind == "svg" else _smaller(data, 256))
            if mode == "light":
                preview = _smaller(_saved(figure, "png", dpi="figure"))
        files.append(path.name)
    run.figures[name] = {"alt": alt, "files": files}
    display({"image/png": preview, "text/plain": f"Figure {name}: {alt}"}, metadata={"figure": name}, raw=True)


def image_grid(
    images: torch.Tensor | np.ndarray,
    ncols: int,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    cell: float = 0.7,
) -> Figure:
    """Return a grid of images (n, c, h, w) in [-1, 1], c = 1 or 3, filled row by row; `cell` is a side in inches."""
    array = torch.as_tensor(images).detach().float().cpu().clamp(-1, 1).numpy()  # (n, c, h, w)
    array = (array.transpose(0, 2, 3, 1) + 1) / 2  # (n, h, w, c) in [0, 1]
    nrows = -(-len(array) // ncols)
    figure, axes = plt.subplots(nrows, ncols, figsize=(cell * ncols + 0.4, cell * nrows + 0.3), squeeze=False)
    for index, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if index < len(array):
            image = array[index]
            axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray_r", vmin=0, vmax=1)
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title(title, fontsize=8)
    for axis, label in zip(axes[:, 0], row_labels or [], strict=False):
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def slider(
    run: Run, name: str, frames: Sequence[tuple[str, Draw]], description: str, alt: Sequence[str], start: int
) -> None:
    """Show a slider over precomputed pictures, linked in the browser: it works live and in the built book.

    `frames`: (label, draw) for each position, `draw` as in `show`, about 4 x 3 inches; `description` is what the slider
    changes, e.g. `lambda`; `alt` has words for each frame; `start` is the index of the frame that is shown first.
    """
    if len(frames) != len(alt):
        raise UserError(f"slider '{name}': {len(frames)} frames but {len(alt)} alt texts; give one each")
    pictures = []
    for (_, draw), words in zip(frames, alt, strict=True):
        data = base64.b64encode(_smaller(render(draw, "either", "png"))).decode()
        image = f'<img class="slider-frame" alt="{html.escape(words)}" src="data:image/png;base64,{data}">'
        pictures.append(ipywidgets.HTML(image))
    start = range(len(frames))[start]
    stack = ipywidgets.Stack(pictures, selected_index=start)
    layout = ipywidgets.Layout(width="100%", max_width="500px")
    labels = [label for label, _ in frames]
    bar = ipywidgets.SelectionSlider(options=labels, index=start, description=description, layout=layout)
    ipywidgets.jslink((bar, "index"), (stack, "selected_index"))
    run.figures[name] = {"alt": list(alt), "files": []}
    display(ipywidgets.VBox([bar, stack]))


def _smaller(png: bytes, colours: int = PREVIEW_COLOURS) -> bytes:
    """Reduce a PNG to a palette: figures are part of the repository, previews and frames of sliders of the notebook."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    opaque = picture.getextrema()[-1] == (255, 255)
    (picture.convert("RGB") if opaque else picture).quantize(colours).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
