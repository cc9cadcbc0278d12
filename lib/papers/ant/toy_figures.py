"""The figures of the notebook 20_ant_2d after Fig. 2 of ANT (Wang et al., ICML 2024)."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lib.papers.ant import toy
from lib.record.figures import ink

PAPER = {"DDPM": 13.8, "guidance": 7.7, "ANT": 2.8}  # degrees, measured in the paper's figure
LABEL = {"DDPM": "DDPM", "guidance": "guidance only", "ANT": "ANT", "guidance, exact": "guidance, exact classifier"}


def gradients(cloud: Tensor, arrows: Mapping[str, Tensor], errors: Mapping[str, np.ndarray]) -> Figure:
    """Arrows (2,) of one draw over its adversarial noise (n, 2); angle errors (draws,) of each arm, as shares below."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4), width_ratios=(1, 1.15))
    left.scatter(cloud[:, 0], cloud[:, 1], s=2, color=ink(), alpha=0.2, linewidths=0)
    looks = ((ink(), 4.6), ("C0", 3.8), ("C1", 3.0), ("C2", 2.2))  # unequal lengths keep all heads in sight
    for (name, arrow), (colour, length) in zip(arrows.items(), looks, strict=True):
        look = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.012}
        left.quiver(0, 0, *(length * arrow), color=colour, label=LABEL.get(name, name), **look)
    left.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", title="The first draw")
    left.set(xlabel="coordinate 1", ylabel="coordinate 2")
    left.legend(loc="upper left", fontsize=7, labelspacing=0.2)
    for i, (name, label) in enumerate(LABEL.items()):
        right.ecdf(errors[name], color=f"C{i}", label=label)
        if name in PAPER:
            right.plot(PAPER[name], 0, "^", color=f"C{i}", clip_on=False, zorder=3)
    right.plot([], [], "^", color=ink(), label="read from the paper's figure", linewidth=0)
    right.set(xlim=(0, None), ylim=(0, 1), xlabel="angle to the reference (degrees)", ylabel="share of draws below")
    right.set_title(f"{len(errors['DDPM'])} draws of the shots")
    right.legend(loc="lower right", fontsize=7)
    return figure


def heat(moved: Mapping[str, np.ndarray]) -> Figure:
    """Counts of the first coordinate over the sampling steps of DDPM and ANT, and one path (`toy.transfer`)."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.1), sharey=True)
    counts = {name: moved[f"{name} counts"].sum(0).T for name in ("DDPM", "ANT")}  # (90, 201)
    low, high = toy.EDGES[[0, -1]]
    for axis, (name, values) in zip(axes, counts.items(), strict=True):
        look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "extent": (200, 0, low, high)}
        shown = axis.imshow(values, vmin=0, vmax=max(map(np.max, counts.values())), **look)
        axis.plot(np.arange(200, -1, -1), moved[f"{name} path"][0], color="#7fe0ff", lw=0.9)
        axis.axhline(float(toy.TARGET.mean[0]), color="white", ls=":", lw=1)
        axis.set(title=LABEL[name], xlabel="sampling steps left", ylim=(low, high))
    axes[0].set_ylabel("first coordinate")
    figure.colorbar(shown, ax=axes, label="samples a cell")
    return figure


def noise(cloud: Tensor, axis_ratio: float, long_axis: Tensor) -> Figure:
    """Adversarial noise (n, 2) and the long axis (2,) of its ellipse."""
    figure, axis = plt.subplots(figsize=(4, 3.6))
    axis.scatter(cloud[:, 0], cloud[:, 1], s=4, color="C0", alpha=0.5, linewidths=0)
    x, y = (3 * axis_ratio * long_axis).tolist()
    axis.plot([-x, x], [-y, y], color="C1", label=f"long axis, {axis_ratio:.2f} times the short one")
    axis.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xlabel="noise 1", ylabel="noise 2")
    axis.legend(loc="upper left", fontsize=7)
    return figure


def samples(points: np.ndarray, shots: Tensor) -> Figure:
    """Samples (n, 2) of a fine-tuned network, its shots (k, 2), and the target's circles."""
    figure, axis = plt.subplots(figsize=(4, 3.6))
    axis.scatter(points[:, 0], points[:, 1], s=4, color="C0", alpha=0.5, linewidths=0, label="samples")
    for radius in (1, 2):
        axis.add_patch(plt.Circle((-1, -1), radius, fill=False, color=ink(), lw=0.8))
    axis.plot(*shots.T, "x", color="C1", label=f"{len(shots)} shots")
    axis.plot(*toy.SOURCE.mean, "+", color=ink(), label="source mean")
    axis.set(xlim=(-5, 3), ylim=(-5, 3), aspect="equal", xlabel="coordinate 1", ylabel="coordinate 2")
    axis.legend(loc="upper left", fontsize=7)
    return figure
