# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RDMD: where the generator starts
#
# ## Question
# The generator is the target's denoiser, held at one noise level $\sigma$ and fed with a clean picture:
# $G_\theta(x) = D_\theta(x, \sigma)$. The paper chose $\sigma = 1$ by an ablation (App. B, on digits), which we have
# not read. What is the generator at other levels, before any training and after a short one?
#
# ## Claim
# None is judged here. This page is the picture behind a setting of R4 to R6 (see `11_rdmd_images`).
#
# ## Method
# At a small $\sigma$ the denoiser takes the picture as it is: the start is the input. At a large one it sees nothing
# but noise and returns the mean of what it knows. In between it replaces the details that it takes for noise by its
# own. From each start a generator is trained for a sixth of the steps of `11_rdmd_images`, at one $\lambda$; all see
# the same pictures and noises. Measures are those of that page.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 100  # first seed
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = "noto"  # model of the source domain: a name in models/, or a folder in diffusers' layout
target: str = "twemoji"  # model of the target domain
seeds: PositiveInt = 1  # trainings from each start
sigmas: list[PositiveFloat] = [0.1, 0.5, 1.0, 2.0, 5.0]  # noise levels at which the generator is held
lambda_: NonNegativeFloat = 0.2  # weight of the cost
steps: PositiveInt = 20  # of each training
batch: PositiveInt = 8  # pictures a step; this and the next four as in 11_rdmd_images
lr: PositiveFloat = 3e-5  # learning rate of the generator
fake_lr: PositiveFloat = 3e-4  # of the fake
fake_updates: PositiveInt = 1  # of the fake before each of the generator
ema: PositiveFloat = 0.95  # decay of the generator's averaged weights, which translate
inputs: PositiveInt = 123  # held-out drawings

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import numpy as np
import torch

from lib.ground import diffusion
from lib.papers.rdmd import on_emoji, start
from lib.record import figures, run as record
from lib.worlds import emoji_measures

run = record.start("12_rdmd_start", globals())
p = run.parameters

# %% [markdown]
# What a denoiser makes of a clean picture $x$, if its pictures are of $\mathcal N(0, s^2)$ with $s = 0.5$:
# $D(x, \sigma) = x\,s^2 / (s^2 + \sigma^2)$.

# %%
# NBVAL_CHECK_OUTPUT
schedule, s = diffusion.linear(), 0.5
sigma = schedule.sigma[[100, 400, 500]].float()
signal = 1 / (1 + sigma**2).sqrt()
D = diffusion.denoiser(lambda x_t, t: x_t * (sigma * signal) / (s**2 * signal**2 + (sigma * signal) ** 2), schedule)
for level, kept in zip(sigma, D(torch.ones(3), sigma), strict=True):
    print(f"sigma {level:.2f}: {kept:.3f} of the picture is left; by the formula {s**2 / (s**2 + level**2):.3f}")

# %%
found = run.replicates(start.held_at, emoji_measures.world)  # (seeds, sigmas, measures) before and after

# %% [markdown]
# ## Result
# ### Before and after
# The first inputs of the first seed, not selected; for each $\sigma$ a row before training and a row after it.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
measures = on_emoji.MEASURES


def of(name, measure):
    """A measure over the starts, mean over the seeds."""
    return found[name][..., measures.index(measure)].mean(0)


rows, labels = [found["input images"][0]], ["input"]
for i, one in enumerate(p.sigmas):
    for name in ("before", "after"):
        rows.append(found[f"{name} images"][0, i])
        labels.append(f"$\\sigma$ {one:g}, {name}")
alt = "Inputs, and below for each noise level what the generator makes of them before and after training. Sigma, "
alt += "distance to the input before and after: "
pairs = zip(p.sigmas, of("before", "input"), of("after", "input"), strict=True)
alt += "; ".join(f"{one:g}, {a:.2f}, {b:.2f}" for one, a, b in pairs) + "."
grid = np.concatenate(rows)
figures.show(run, "starts", lambda: figures.image_grid(grid, on_emoji.SHOWN, row_labels=labels), alt, "png")

# %% [markdown]
# ### In numbers
# *Cost* is the distance to the input, *Frechet* the distance to unseen drawings by Twemoji, *realism* the share drawn
# like Twemoji, *partner* the share whose partner is found.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
shown = {"cost": "input", "Frechet": "frechet", "realism": "realism", "partner": "partner5"}
table = []
for i, one in enumerate(p.sigmas):
    row = {"sigma": f"{one:g}"}
    for word, measure in shown.items():
        row |= {f"{word}, {name}": f"{of(name, measure)[i]:.3g}" for name in ("before", "after")}
        run.number(f"{measure}_{i}", found["after"][:, i, measures.index(measure)])
    table.append(row)
for name in ("input", "truth"):
    known = {f"{word}, before": f"{of(name, measure):.3g}" for word, measure in shown.items()}
    table.append(dict.fromkeys(table[0], "") | {"sigma": f"the {name}"} | known)
run.table("starts", table, f"{p.inputs} held-out drawings, {p.steps} steps from each start, lambda {p.lambda_:g}")
run.number("steps", p.steps)

# %% [markdown]
# ## Limits
# - One training from each start, and a short one: the page shows what the starts are, not which is best in the end.
# - The paper's ablation is on digits; its figure was not at hand.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
