"""The figures of the notebook 10_rdmd_2d (RDMD, arXiv 2406.14762), from what `lib.papers.rdmd.experiments` returns."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lib.papers.rdmd import method as rdmd
from lib.record.figures import ink

Frame = tuple[str, np.ndarray]  # a label and the outputs of a map (n, 2)


def surfaces(a: np.ndarray, b: np.ndarray, losses: Sequence[np.ndarray], s: float) -> Figure:
    """Objective without and with the cost over the plane (a, b) = r (cos alpha, sin alpha), as in Fig. 2."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.5), sharey=True)
    for axis, values, name in zip(axes, losses, ("0: matching alone", "0.2: with the cost"), strict=True):
        height = np.sqrt(values - values.min())
        shades = axis.contourf(a, b, height, np.linspace(0, 2.5, 26), cmap="cividis", extend="max")
        axis.set(title=f"$\\lambda$ = {name}", xlabel=r"$r\,\cos\alpha$", aspect="equal")
    axes[0].set_ylabel(r"$r\,\sin\alpha$")
    axes[0].add_patch(plt.Circle((0, 0), s, fill=False, color="white", linestyle="--"))
    axes[1].plot(rdmd.best_radius(s, 0.2), 0, "o", color="white", markersize=5)
    figure.colorbar(shades, ax=axes, label=r"$\sqrt{\mathcal{L} - \min \mathcal{L}}$", ticks=np.arange(0, 2.6, 0.5))
    return figure


def sensitivity(s: float) -> Figure:
    """Radius of the minimum against lambda, one line a weighting."""
    figure, axis = plt.subplots(figsize=(7, 3.4))
    lambdas = np.geomspace(0.003, 10, 80)
    for k, (name, weighting) in enumerate(rdmd.weightings().items()):
        radii = [rdmd.stationary_radius(s, value, weighting) for value in lambdas]
        axis.plot(lambdas, radii, label=name, linestyle=("-", "--", "-.", ":")[k % 4])
    axis.axvline(0.2, color=ink(), linewidth=0.6)
    axis.set(xscale="log", xlabel=r"$\lambda$", ylabel=r"radius of the minimum $r^*$", ylim=(0.98, 1.52))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), title=r"weighting $\omega$")
    return figure


def maps(x: np.ndarray, frames: Sequence[Frame], limit: float, figsize: tuple[float, float]) -> Figure:
    """Segments from the inputs x (n, 2) to the outputs of each map, side by side."""
    figure, axes = plt.subplots(1, len(frames), figsize=figsize, squeeze=False)
    for axis, (label, outputs) in zip(axes[0], frames, strict=True):
        axis.plot(*np.stack([x, outputs], axis=1).transpose(2, 1, 0), color=ink(), lw=0.4, alpha=0.35)
        axis.plot(*x.T, ".", markersize=3, color="C0", label="input $x$")
        axis.plot(*outputs.T, ".", markersize=3, color="C1", label="output $G(x)$")
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
        axis.set_title(label if "OT" in label else f"$\\lambda$ = {label}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def measures(lambdas: Sequence[float], scores: dict[str, Any], best: dict[str, float]) -> Figure:
    """Four measures (seeds, lambdas) of each kind of score against lambda, and those of exact transport."""
    words = {"cost": r"cost $E|x - G|^2$", "distance": r"$W_2$ to the target", "crossings": "crossing pairs (share)"}
    figure, axes = plt.subplots(1, 4, figsize=(7, 2.5))
    for axis, (key, title) in zip(axes, (words | {"ratio": "cost / OT(x, G(x))"}).items(), strict=True):
        for k, (name, values) in enumerate(scores.items()):
            axis.plot(lambdas, values[key].mean(0), color=f"C{k}", label=f"{name} score")
            axis.plot(lambdas, values[key].T, ".", color=f"C{k}", alpha=0.4, markersize=4)
        axis.axhline(best[key], color=ink(), linestyle=":", linewidth=0.8)
        axis.set(title=title, xlabel=r"$\lambda$")
        axis.set_xscale("symlog", linthresh=0.05, linscale=0.5)
        axis.set_xticks([0, 0.1, 1], ["0", "0.1", "1"])
        axis.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def theorem(s: float, lambdas: Sequence[float], line: dict[str, np.ndarray]) -> Figure:
    """Errors of the optimum against lambda, Gaussian and on quantiles (`experiments.quantile_maps`), and its maps."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7, 2.6))
    values = np.geomspace(0.01, 10, 60)
    left.loglog(values, [math.sqrt(2) * (s - rdmd.best_radius(s, value)) for value in values])
    slope = 4 * s * (s - 1) / math.pi
    left.loglog(values[:40], math.sqrt(2) * slope * values[:40], "--", color="C1", label="slope at 0")
    left.legend(fontsize=7)
    left.set(title="Gaussian case", xlabel=r"$\lambda$", ylabel=r"$\|G^\lambda - G^*\|$")
    middle.loglog(lambdas, line["rms"][:-1], "o-", markersize=3)
    middle.set(title="1-D quantiles", xlabel=r"$\lambda$", ylabel="RMS error", ylim=(5e-4, 0.12))
    middle.yaxis.set_minor_formatter(NullFormatter())
    for name, k in (("10", 0), ("0.3", 3), ("0.01", 6), ("0", 7)):
        right.plot(line["u"], line["maps"][k], label=name, linestyle="-" if name != "0" else "--")
    right.plot(line["u"], line["monge"], ":", color=ink(), label="optimal")
    right.set(title="the 1-D maps", xlabel="x", ylabel="G(x)")
    right.legend(title=r"$\lambda$", fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
