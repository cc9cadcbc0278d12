"""What two notebooks on DDS draw alike."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def saliency(rows: dict[str, tuple[np.ndarray, np.ndarray]], steps: list[str], region: np.ndarray) -> Figure:
    """Draw the supplement's Fig. 3: result (c, h, w) and maps (2, steps, h, w) of each run, a run a row.

    Each of the two kinds of maps has one colour scale for all rows; a line in the result bounds the region (h, w).
    """
    bare = {"xticks": [], "yticks": [], "frame_on": False}
    figure, axes = plt.subplots(len(rows), 1 + 2 * len(steps), figsize=(7, 2.8), subplot_kw=bare)
    tops = [max(np.quantile(maps[i], 0.99) for _, maps in rows.values()) for i in (0, 1)]
    for line, (name, (z, maps)) in zip(axes, rows.items(), strict=True):
        line[0].imshow((z.clip(-1, 1).transpose(1, 2, 0) + 1) / 2, cmap="gray_r", vmin=0, vmax=1)
        line[0].contour(region, [0.5], colors="C1", linewidths=0.8)
        line[0].set_ylabel(name, fontsize=8)
        for k in range(len(steps)):
            line[1 + k].imshow(maps[0, k], cmap="viridis", vmin=0, vmax=tops[0])
            line[1 + len(steps) + k].imshow(maps[1, k], cmap="cividis", vmin=0, vmax=tops[1])
    for column, words in ((len(steps), "update"), (2 * len(steps), "difference to the input")):
        figure.colorbar(axes[0, column].images[0], ax=axes[:, column], shrink=0.7, label=words)
    for axis, head in zip(axes[0], ["result", *steps, *steps], strict=True):
        axis.set_title(head, fontsize=8)
    return figure
