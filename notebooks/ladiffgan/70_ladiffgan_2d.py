# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # LaDiffGAN: what its two losses do, on points
#
# ## Question
# Two unpaired sets of points, and a GAN that translates one into the other. LaDiffGAN (Liu et al., CVPR Workshops 2024)
# adds two losses that come from diffusion models of latents, and throws the models away after training. Where does each
# loss push a translation, and what does it change in the end?
#
# ## Claim
# **L4** (method). The generators stay as they are: 279 M parameters in U-GAT-IT's full version, 10.6 M in the light
# one, and the supervision costs nothing when translating.
#
# What the losses do in the plane is shown, not judged.
#
# ## Method
# The two losses are a reconstruction: we had the paper's abstract and supplement, which name them, and could not get
# its main text. For a translation $y = G(x)$ with the latent $z = \mathcal E_d(y)$ of the domain it leads to, noised as
# $z_t = \sqrt{\bar\alpha_t}\,z + \sqrt{1-\bar\alpha_t}\,\epsilon$,
#
# - the **latent diffusion GAN loss** is $\mathbb E\,(1 - D^z_d(z_t, t))^2$, with a discriminator $D^z_d$ that tells
#   noised latents of real points from those of translations;
# - the **heterogeneous conditional denoising loss** is $\mathbb E\,\|\epsilon - \epsilon_d(z_t, t, c(x))\|^2$, with a
#   denoiser $\epsilon_d$ that was trained on real points of the domain, each with its own condition $c$, and now sees
#   the condition of the input, which comes from the other domain.
#
# Both are added, with weight 1, to the losses of U-GAT-IT, whose attention multiplies features by the weights of a
# domain classifier; networks have three or four layers here. The source is a ring of eight Gaussians, the target the
# same ring turned by 15 degrees and wider, so the right answer to every point is known.
#
# Everything is trained on 24 points of each ring, drawn at random, so that some modes have six points and some one or
# none: the paper is about small data sets, and from many points, or from three of every mode, U-GAT-IT alone solves the
# problem. A condition is a point's first coordinate, as grey is one coordinate of a colour. It is no perfect guide: a
# right answer's first coordinate is not its input's. A latent is the point itself, at unit variance: in the plane there
# is nothing to compress, and so there is no autoencoder.
#
# Five *arms* are trained, from the same weights and on the same points: U-GAT-IT; with the latent GAN loss; with the
# denoising loss; with both; and with Diffusion-GAN, which noises what U-GAT-IT's own discriminators see.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 100  # first seed; those from 1000 served to choose settings
device: str = "auto"  # the networks are small: they stay on the CPU
out: str = ""  # output folder; empty: runs/PROFILE
seeds: PositiveInt = 1  # trainings of each arm, with points and networks of their own
width: PositiveInt = 64  # of all networks
denoiser_steps: PositiveInt = 1500  # of each domain's denoiser
examples: PositiveInt = 24  # points of each domain that everything is trained on
steps: PositiveInt = 1000  # of the game
batch: PositiveInt = 64
cycle: NonNegativeFloat = 1.0  # weights of U-GAT-IT's losses beside an adversarial one of 1; its own are 10, 10, 1000
identity: NonNegativeFloat = 0.5
cam: NonNegativeFloat = 10.0
lr: PositiveFloat = 1e-3  # learning rate of generators and discriminators
kimg: PositiveFloat = 100.0  # of Diffusion-GAN: thousand points from the least to the most noise
reading: Literal["source", "self", "cross"] = "source"  # of the conditional denoising loss
points: PositiveInt = 800  # translated to measure

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch

from lib.ground.nets import parameter_count
from lib.papers.baselines import ugatit
from lib.papers.ladiffgan import points as plane
from lib.record import figures, run as record

run = record.start("70_ladiffgan_2d", globals())
p = run.parameters

# %% [markdown]
# Suppose a domain holds a single point $c$ and the denoiser knows it. Then the denoising loss, a mean over coordinates,
# is $\frac{\bar\alpha_t}{1-\bar\alpha_t}$ times the mean square of $z - c$: it pulls a translation to what its input
# makes the denoiser expect, and more so at little noise.

# %%
# NBVAL_CHECK_OUTPUT
from lib.ground.diffusion import linear
from lib.papers.ladiffgan.method import conditional_denoising

schedule, z, c = linear(), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])


def expects_c(z_t, t, c):
    return schedule.eps_from_x0(z_t, c, t)


for t in (100, 500, 900):
    loss = conditional_denoising(expects_c, z, c, torch.tensor([t]), torch.randn(1, 2), schedule)
    print(f"t = {t}: {loss:.4f}, by the formula {schedule.snr[t] * (z - c).square().mean():.4f}")

# %% [markdown]
# `plane` trains every arm of a seed, all from the same weights and on the same points, and translates unseen ones.

# %%
found = run.replicates(plane.plane)  # an arm: (seeds, measures)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_outputs(seed=0):
    """Translations of every arm, coloured by the mode that they come from, on the target's points."""
    figure, axes = plt.subplots(2, 3, figsize=(7.5, 5.2), sharex=True, sharey=True)
    x, real = found["source points"][seed], found["target points"][seed]
    shown = {"the source": x} | {arm: found[f"{arm} points"][seed] for arm in plane.ARMS}
    for axis, (name, y) in zip(axes.flat, shown.items(), strict=True):
        axis.plot(*real.T, ".", ms=3, color=figures.ink(), alpha=0.15)
        axis.scatter(*y.T, s=4, c=plane.nearest("s", torch.tensor(x)), cmap="hsv", vmax=8)
        axis.set(title=name, aspect="equal", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), xticks=[], yticks=[])
    return figure


def draw_fields(seed=0):
    """Where each loss pushes a translation, from every place of the plane; the denoising loss for two inputs."""
    figure, axes = plt.subplots(2, 2, figsize=(6.2, 6.2), sharex=True, sharey=True)
    panels = [("GAN", 0, "the GAN's own"), ("LDG", 0, "latent diffusion GAN")]
    panels += [("HCD", 0, "conditional denoising, right input"), ("HCD", 1, "conditional denoising, upper input")]
    at, real = plane.grid().numpy(), found["target points"][seed]
    for axis, (name, of_input, words) in zip(axes.flat, panels, strict=True):
        arrows = found[f"{name} field"][seed, of_input]
        length = np.linalg.norm(arrows, axis=1, keepdims=True)
        arrows = arrows / np.maximum(length, 1e-12) * np.minimum(length / np.median(length), 2) ** 0.5
        axis.plot(*real.T, ".", ms=3, color=figures.ink(), alpha=0.15)
        axis.quiver(*at.T, *arrows.T, color="C0", scale=26, width=0.006)
        if name == "HCD":
            axis.plot(*plane.LAWS["s"].means[plane.INPUTS[of_input]], "o", color="C1", ms=6)
        axis.set(title=words, aspect="equal", xticks=[], yticks=[])
    return figure


# %% [markdown]
# ## Result
# ### Where each loss pushes
# From every place where a translation might stand an arrow shows where a loss moves it, at the end of the training of
# the arm with both, first seed. Longer is stronger within a panel, by the square root and up to twice the median;
# panels cannot be compared by it. The two GAN losses ask only whether the place looks like the target's, whatever the
# input. The denoising loss depends on the input, the dot, through its first coordinate, and holds on to it: the arrows
# point to the inputs' own first coordinate, not to the target's modes.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = "Four panels of arrows over the plane with the target's eight modes: the GAN's own loss, the latent diffusion "
alt += "GAN loss, and the conditional denoising loss for an input at the right and one at the upper right of the ring."
figures.show(run, "fields", draw_fields, alt)

# %% [markdown]
# ### What comes out
# The first seed. Colours are the modes that points come from; grey are unseen points of the target.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
of = {arm: dict(zip(plane.MEASURES, found[arm].T, strict=True)) for arm in ("truth", *plane.ARMS, "input")}
ends = "; ".join(f"{arm} {rows['w2'].mean():.2f}, {rows['partner'].mean():.2f}" for arm, rows in of.items())
alt = "Six panels of points: the source's ring, and its translations by five arms, on the target's ring. Means over "
alt += f"seeds of the distance to the target and of the share at the right mode: {ends}."
figures.show(run, "outputs", draw_outputs, alt, "png")

# %% [markdown]
# ### In numbers
# *W2*: distance of the translations to the target, as sets. *Weakest*: share of the mode with the fewest, times eight.
# *Partner*: share of points at the right mode. *Error*: root mean square distance to the right answer.
#
# No arm differs from U-GAT-IT by more than the spread over seeds, and all are farther from the right answers than the
# inputs themselves: a mode without training points stays empty, and what should go there goes elsewhere.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
table = []
for arm, rows in of.items():
    key, texts = arm.lower().strip("+ ").replace(" ", "_"), {}
    for measure, values in rows.items():
        run.number(f"{key}_{measure}", values)
        texts[measure] = run.text(f"{key}_{measure}")
    table.append({"arm": arm, **texts})
run.table("arms", table)

# %% [markdown]
# ### Sizes
# Parameters of a generator for pictures of 256 x 256, counted without making them; and by how many the trained
# generators of the arm with both losses outnumber U-GAT-IT's here. That it is none is so by construction: the check
# tests the code.

# %%
with torch.device("meta"):
    full, light = (ugatit.Generator(256, light=light) for light in (False, True))
run.number("full", parameter_count(full) / 1e6, "M")
run.number("light", parameter_count(light) / 1e6, "M")
sizes = {"full": parameter_count(full) / 1e6, "light": parameter_count(light) / 1e6}
sizes["added"] = found["LaDiffGAN size"][0] - found["U-GAT-IT size"][0]
run.claim("L4", **sizes, thrown_away=found["thrown away"][0])

# %% [markdown]
# ## Limits
# - The losses are a reconstruction. Other readings of the condition are `reading = "self"` and `"cross"`.
# - Points have no texture and latents no compression: what a latent space changes is not seen here.
# - At U-GAT-IT's own weights every arm stays at the identity here: between rings so near to each other the cycle and
#   identity losses are stronger than any discriminator. The weights are ours, the same for all arms, from one pilot.
# - The denoisers have seen the same 24 points as the game; they are trained longer and on larger batches.
# - Seeds are few; what the arms differ by is described, not judged.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
