"""Figures in a light and a dark version, picture grids, and sliders that need no kernel."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

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
SLIDER_COLOURS = 96


def ink() -> str:
    """Return the foreground colour of the version being drawn."""
    return mpl.rcParams["text.color"]


def paper() -> str:
    """Return the background colour of the version being drawn."""
    return mpl.rcParams["figure.facecolor"]


def render(draw: Draw, mode: str, kind: str) -> bytes:
    """Draw one version of a figure and return the bytes of its `svg` or `png` file."""
    with plt.style.context([STYLES / "common.mplstyle", STYLES / f"{mode}.mplstyle"]):
        figure = draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)
    return buffer.getvalue()


def show(run: Run, name: str, draw: Draw, alt: str, kind: str = "svg") -> None:
    """Save a figure in light and dark as `FOLDER/figures/NOTEBOOK-NAME-{light,dark}.KIND`; show what suits the page.

    `draw` returns a matplotlib figure and is called once for each version; `alt` says in words with numbers what the
    figure shows; `kind` is `svg` for lines and few points, `png` for images and dense clouds.
    """
    if not alt.strip():
        raise UserError(f"figure '{name}': alt text is empty; say in words what the figure shows")
    if kind not in ("svg", "png"):
        raise UserError(f"figure '{name}': kind {kind!r}; one of 'svg', 'png'")
    tags, files = [], []
    for mode in ("light", "dark"):
        data = render(draw, mode, kind)
        path = run.folder / "figures" / f"{run.notebook}-{name}-{mode}.{kind}"
        write_atomic(path, data)
        files.append(path.name)
        tags.append(_image(f"only-{mode}", data, kind, alt, hidden=mode == "dark"))
    run.figures[name] = {"alt": alt, "files": files}
    markup = f'<div class="companion-figure">{"".join(tags)}</div>'
    display({"text/html": markup, "text/plain": f"Figure {name}: {alt}"}, raw=True)


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


def slider(run: Run, name: str, frames: Sequence[tuple[str, Draw]], description: str, alt: Sequence[str]) -> None:
    """Show a slider over precomputed pictures, linked in the browser: it works live and in the built book.

    `frames`: (label, draw) for each position, `draw` as in `show`, about 4 x 3 inches; `description` is what the slider
    changes, e.g. `lambda`; `alt` has words for each frame.
    """
    if len(frames) != len(alt):
        raise UserError(f"slider '{name}': {len(frames)} frames but {len(alt)} alt texts; give one each")
    pictures = []
    for (_, draw), words in zip(frames, alt, strict=True):
        data = _smaller(render(draw, "light", "png"))
        pictures.append(ipywidgets.HTML(_image("slider-frame", data, "png", words)))
    stack = ipywidgets.Stack(pictures, selected_index=0)
    layout = ipywidgets.Layout(width="100%", max_width="500px")
    labels = [label for label, _ in frames]
    bar = ipywidgets.SelectionSlider(options=labels, index=0, description=description, layout=layout)
    ipywidgets.jslink((bar, "index"), (stack, "selected_index"))
    run.figures[name] = {"alt": list(alt), "files": []}
    display(ipywidgets.VBox([bar, stack]))


def _smaller(png: bytes) -> bytes:
    """Reduce a PNG to a palette: every frame of a slider is embedded in the page."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(SLIDER_COLOURS).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _image(name: str, data: bytes, kind: str, alt: str, hidden: bool = False) -> str:
    """Return an image embedded in the page; `hidden` where no style sheet knows its class."""
    media = "image/svg+xml" if kind == "svg" else "image/png"
    style = ' style="display:none"' if hidden else ""
    source = f"data:{media};base64,{base64.b64encode(data).decode()}"
    return f'<img class="{name}"{style} alt="{html.escape(alt)}" src="{source}">'
