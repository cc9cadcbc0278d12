# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DDS: how alike are the directions of two images?
# Hertz, Aberman and Cohen-Or, *Delta Denoising Score*, ICCV 2023.
#
# ## Question
# Delta Denoising Score subtracts the direction of the input under its own prompt from that of the edited image. That
# helps as far as the two directions share what is not the edit. The paper measures how alike they are: the cosine
# between the directions of two matched pairs of image and prompt. Do we find its curves with a network trained on real
# digits, and where does the cosine come from?

# %% [markdown]
# ## Claim
# **D3** (main paper, Fig. 8; supplement, Fig. 1). The SDS directions of two matched pairs are nearly parallel, the more
# so at high noise and for aligned pairs; a larger guidance scale lowers their cosine.

# %% [markdown]
# ## Method
# Two matched pairs $(z, y)$ and $(\hat z, \hat y)$ are noised with the same $\epsilon$ at the same timestep $t$. What
# the paper's figure shows can be read as the cosine of
#
# - (a) the SDS directions: $\epsilon^\omega(z_t, y) - \epsilon$ and $\epsilon^\omega(\hat z_t, \hat y) - \epsilon$,
# - (b) the guided predictions: $\epsilon^\omega(z_t, y)$ and $\epsilon^\omega(\hat z_t, \hat y)$.
#
# We measure both, over all pixels of an image, averaged over pairs and noises. A model's predictions for a prompt and
# for the null prompt serve every guidance scale and both readings, so each is computed once.
#
# **A network.** The digit model with prompts of `41_dds_digits` draws images itself, as Stable Diffusion did for the
# paper's pairs: with guidance, by ancestral sampling, the estimate of the clean image clamped.
#
# - *aligned*: two images from one noise under two prompts;
# - *unaligned*: the same two prompts, images from different noises;
# - *edited* (ours): an image and what DDS makes of it;
# - *own noise* (control): the aligned pairs, but each image of a pair is noised with an $\epsilon$ of its own.
#
# **A Gaussian world.** Four-channel images of independent unit Gaussian pixels, whose prompts shift the mean; details
# have the correlation $\rho$ = 0.8 (aligned) or 0 (unaligned), the shifts are 0.1 standard deviations and have a cosine
# of 0.9 (all our choice). The exact prediction is known, and with many pixels $n$ so is the cosine: with
# $\kappa = (\omega-1)^2 |\mu_y - \mu_0|^2 / n$ and
# $\kappa_\times = (\omega-1)^2 \langle \mu_y - \mu_0, \mu_{\hat y} - \mu_0 \rangle / n$,
#
# $$\text{(a)}\ \frac{\alpha_t^2 + \sigma_t^2 (\rho + \kappa_\times)}{\alpha_t^2 + \sigma_t^2 (1 + \kappa)},
# \qquad \text{(b)}\ \frac{\sigma_t^2 + \alpha_t^2 (\rho + \kappa_\times)}{\sigma_t^2 + \alpha_t^2 (1 + \kappa)}.$$
#
# The paper's curves, for Stable Diffusion, we read off its Fig. 8 to about 0.005. A seed is a new draw of all.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

TwoOrMore = Annotated[int, Field(ge=2)]

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 200  # first seed; smaller ones and those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = ""  # folder of a model with prompts in diffusers' layout; empty: those of 41_dds_digits, one a seed
prompt_steps: PositiveInt = 1600  # its training steps, if there is none yet
judge_steps: PositiveInt = 400  # training steps of the judge (digit and domain), if there is none yet
seeds: PositiveInt = 2  # models, and draws of images and noises
images: TwoOrMore = 5  # aligned pairs of images for each pair of prompts
noises: TwoOrMore = 4  # noises a pair and timestep
omega: NonNegativeFloat = 7.5  # guidance scale of the directions; the figure's
omegas: list[NonNegativeFloat] = [1.0, 3.0, 7.5, 15.0, 30.0]  # sweep; omega, edit_omega and 30 are always in it
sample_omega: NonNegativeFloat = 1.5  # of the images that are drawn; chosen on seeds from 1000 upwards
sample_steps: PositiveInt = 40  # their sampling steps
edit_omega: NonNegativeFloat = 3.0  # of the DDS edits: at 7.5 many pixels leave the range of the images
edit_iterations: PositiveInt = 100  # updates of an edit
edit_eta: PositiveFloat = 0.1  # their size; together as far as the 200 of the authors' notebook
fields: PositiveInt = 20  # pairs in the Gaussian world
field_size: PositiveInt = 32  # height and width of its images

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from lib.ground import diffusion
from lib.papers.dds import directions
from lib.papers.dds.directions import cosine, gaussian_cosine, predict, synthesise
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds import judge as judges, prompts as digit_prompts

run = record.start("42_dds_directions", globals())
p, HANDWRITTEN = run.parameters, judges.HANDWRITTEN
FIGURE, READINGS = directions.FIGURE, directions.READINGS
latent = diffusion.scaled_linear()  # Stable Diffusion's schedule, also the Gaussian world's
times, omegas, kinds = FIGURE["t"], directions.scales(p), directions.KINDS
likeness = directions.LIKENESS  # correlation of details in the Gaussian world, by kind of pairs

# %%
# NBVAL_CHECK_OUTPUT
print("share of noise at t = 20, 500, 980")
for name, levels in {"Stable Diffusion": latent, "digit model": diffusion.linear()}.items():
    shares = [1 - levels.alpha_bar[t].item() for t in (20, 500, 980)]
    print(f"{name:16s}", *(f"{share:.3f}" for share in shares))

# %% [markdown]
# One aligned pair at one timestep: two images from one noise, a 3 and an 8, noised alike, and their cosine in both
# readings.

# %%
world = digit_prompts.shared(p, p.seed)
unet, schedule, judge = world
model, null = digit_prompts.prompt_model(unet), digit_prompts.null().to(run.device)
draw = {"omega": p.sample_omega, "steps": p.sample_steps, "seed": 0}
eps = torch.randn(1, 1, 1, judge.size, judge.size, generator=torch.Generator().manual_seed(1)).to(run.device)
branches = []
for digit in (3, 8):
    y = digit_prompts.prompt(digit, HANDWRITTEN).to(run.device)
    z = synthesise(model, schedule, y, null, judge.size, **draw)
    branches.append(predict(model, schedule, z, y, null, 500, eps))
for reading in READINGS:
    alike = cosine(*branches, p.omega, reading).item()
    print(f"({reading}) {alike:.2f}")

# %% [markdown]
# One replicate draws all pairs of images and noises and goes through the timesteps of the paper's figure; the Gaussian
# world has one draw of many pairs.

# %%
runs = run.replicates(directions.direction_pairs, own=digit_prompts.shared)
gauss = directions.gaussian_pairs(p.seed, p, latent, run.device)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def curve(kind: str, reading: str, omega: float = p.omega) -> np.ndarray:
    """Return the digit network's cosine at every timestep, (seeds, timesteps)."""
    return runs["cosines"][:, :, kinds.index(kind), READINGS.index(reading), omegas.index(omega)]


def over_t(kind: str, reading: str, omega: float = p.omega) -> np.ndarray:
    """Return its mean over the figure's timesteps, (seeds,)."""
    return curve(kind, reading, omega).mean(1)


def closed(kind: str, reading: str, omega: float, t: list[int] | np.ndarray) -> np.ndarray:
    """Return the closed form of the Gaussian world at timesteps t."""
    world = likeness[kind], directions.SHIFT, directions.PROMPT_COSINE
    return gaussian_cosine(latent.alpha_bar[t], omega, reading, *world).numpy()


def measured(kind: str, reading: str) -> np.ndarray:
    """Return what is measured in the Gaussian world, (timesteps,)."""
    return gauss[kind][:, READINGS.index(reading), omegas.index(p.omega)].numpy()


# %% [markdown]
# ## Result
# ### The pairs
# The first image of each pair of prompts, first seed, not selected.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
facts = {"read_sample": "images drawn that are read as their prompt", "read_edited": "DDS edits read as their prompt"}
facts |= {f"correlation_{kind}": f"correlation of the pixels, {kind} pairs" for kind in kinds[:3]}
for key in facts:
    drawn = p.seeds * runs["pairs"].shape[2]
    run.number(key, Shares(runs[key], drawn) if key.startswith("read") else runs[key])
shown = runs["pairs"][0]  # (rows, pairs of prompts, 1, h, w)
labels = ["input", "other prompt, same noise", "other prompt, other noise", "input, edited by DDS"]
alt = f"Digits drawn by the model for {shown.shape[1]} pairs of prompts, one a column, and their partners in the "
alt += "pair, one kind a row. Correlation of the pixels of both images of a pair: "
alt += "; ".join(f"{kind} {runs[f'correlation_{kind}'].mean():.2f}" for kind in kinds[:3]) + "."
grid = np.concatenate(shown)
figures.show(run, "pairs", lambda: figures.image_grid(grid, shown.shape[1], None, labels, 0.6), alt, "png")
run.table("images", [{"measured": words, "mean": run.text(key)} for key, words in facts.items()])

# %% [markdown]
# ### Reading (b): the predictions themselves
# Left the digit network, mean over seeds, band from the lowest to the highest; right the Gaussian world, lines its
# closed form, dots measured. Dashed: Stable Diffusion, from the paper's figure.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_reading(reading: str, omega: float) -> Figure:
    """Draw the cosines over the timesteps, the network's at a guidance scale."""
    figure, (net, exact) = plt.subplots(1, 2, figsize=(7, 3.3), sharey=True)
    for i, kind in enumerate(kinds):
        if kind in likeness:
            for axis in (net, exact):
                axis.plot(times, FIGURE[kind], "--", lw=1, color=f"C{i}", label=f"paper, {kind}")
            t = np.arange(20, 981, 10)
            exact.plot(t, closed(kind, reading, p.omega, t), color=f"C{i}", label=kind)
            exact.plot(times, measured(kind, reading), "o", ms=3, color=f"C{i}")
        values = curve(kind, reading, omega)
        net.plot(times, values.mean(0), ":" if kind == "own noise" else "-", color=f"C{i}", label=kind)
        net.fill_between(times, values.min(0), values.max(0), color=f"C{i}", alpha=0.25, lw=0)
    for axis, world, scale in ((net, "digit network", omega), (exact, "Gaussian world", p.omega)):
        axis.set(title=f"{world}, guidance {scale:g}", xlabel="timestep t")
    low = min(0.0, *(curve(kind, reading, omega).min() for kind in kinds))
    net.set(ylabel="cosine", ylim=(low - 0.03, 1.03))
    figure.legend(*net.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def show_reading(name: str, reading: str, omega: float) -> None:
    """Show the figure of one reading."""
    ends = ((kind, curve(kind, reading, omega).mean(0)) for kind in kinds)
    text = "Cosine against the timestep, digit network left and Gaussian world right, the paper's curves dashed. "
    text += f"Reading ({reading}). Digit network at guidance {omega:g}, t = 20 and t = 980: "
    text += "; ".join(f"{kind} {c[0]:.2f} and {c[-1]:.2f}" for kind, c in ends) + "."
    figures.show(run, name, lambda: draw_reading(reading, omega), text)


show_reading("predictions", "b", p.omega)

# %% [markdown]
# ### Reading (a): the predictions minus the noise
# The network at the guidance at which its prompts are met, which is where the claim is judged.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
show_reading("directions", "a", p.edit_omega)

# %% [markdown]
# In the Gaussian world the two readings go opposite ways. At high noise both predictions are the shared $\epsilon$, so
# (b) goes to 1 for any two images; (a) takes that away and is left with how alike images and prompts are. At low noise
# it is the other way round: white pixels hide the noise, a prediction knows little of it, and minus the noise it is
# nearly $-\epsilon$ for both images. Digits are not white, and a network adds its own error, times the guidance scale.
#
# ### Guidance
# Aligned pairs of the digit network, one line a guidance scale; the table has the means over the figure's timesteps.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_guidance() -> Figure:
    """Draw the cosines of aligned pairs at every guidance scale."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.1), sharey=True)
    titles = {"b": "(b) predictions", "a": "(a) predictions minus the noise"}
    for axis, (reading, title) in zip(axes, titles.items(), strict=True):
        for i, w in enumerate(omegas):
            axis.plot(times, curve("aligned", reading, w).mean(0), "o-", ms=2.5, color=f"C{i}", label=f"{w:g}")
        axis.set(title=title, xlabel="timestep t")
    low = min(0.0, runs["cosines"][:, :, 0].min())
    axes[0].set(ylabel="cosine, aligned pairs", ylim=(low - 0.03, 1.03))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, title="guidance scale")
    return figure


rows = []
for w in omegas:
    rows.append({"guidance": w} | {f"network, ({r})": float(over_t("aligned", r, w).mean()) for r in ("b", "a")})
    rows[-1] |= {f"Gaussian, ({r})": float(closed("aligned", r, w, times).mean()) for r in ("b", "a")}
alt = "Cosine of aligned pairs against the timestep, one line a guidance scale, reading (b) left, (a) right. Mean "
words = ", ".join(f"{row['guidance']:g}: {row['network, (b)']:.2f} / {row['network, (a)']:.2f}" for row in rows)
figures.show(run, "guidance", draw_guidance, f"{alt}over the timesteps, (b) / (a): {words}.")
run.table("guidance", rows, note="Aligned pairs, mean over the figure's timesteps.")

# %% [markdown]
# The supplement says that any error is scaled by $\omega$; we take this to mean the network's error, and a cosine that
# falls. An exact score has no error, and there the cosine moves towards what the two prompts' shifts have in common,
# from above or from below.
#
# ### At equal noise
# The digit model's schedule is not Stable Diffusion's: at the same timestep it has less noise first and more later.
# In the last column its curve is taken, between the measured timesteps along straight lines, where the noise is that of
# the figure.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
level = np.interp(-latent.snr[times].log().numpy(), -schedule.snr.log().numpy(), np.arange(schedule.T))


def gap(reading: str, kind: str = "aligned", at: np.ndarray | None = None) -> np.ndarray:
    """Return the distance from the figure's curve, mean over its timesteps, (seeds,)."""
    lines = curve(kind, reading) if at is None else [np.interp(at, times, line) for line in curve(kind, reading)]
    return np.abs(np.array(lines) - np.array(FIGURE[kind])).mean(1)


rows = []
for reading, kind in [(reading, kind) for reading in READINGS for kind in likeness]:
    rows.append({"reading": reading, "pairs": kind})
    for head, key, at in (("at equal t", "gap", None), ("at equal noise", "level_gap", level)):
        run.number(f"{key}_{reading}_{kind}", gap(reading, kind, at))
        rows[-1][head] = run.text(f"{key}_{reading}_{kind}")
run.table("distance", rows, note="Absolute difference from the paper's curve, mean over its timesteps.")

# %% [markdown]
# ### Claim card

# %% jupyter={"source_hidden": true} tags=["hide-input"]
for reading in READINGS:
    run.number(f"gauss_rank_{reading}_unaligned", spearmanr(times, measured("unaligned", reading)).statistic)
    run.number(f"omega_{reading}", over_t("aligned", reading, 30.0) - over_t("aligned", reading, p.edit_omega))
    run.number(f"low_{reading}_aligned", curve("aligned", reading)[:, 0])
    run.number(f"high_{reading}_aligned", curve("aligned", reading)[:, -1])
    for kind in ("aligned", "unaligned", "own noise"):
        run.number(f"mean_{reading}_{kind.replace(' ', '_')}", over_t(kind, reading))
judged = {kind: curve(kind, "a", p.edit_omega) for kind in ("aligned", "unaligned", "own noise")}  # (seeds, timesteps)
aligned, unaligned, own_noise = (lines.mean(1) for lines in judged.values())
rise = judged["aligned"][:, -1] - judged["aligned"][:, 0]
for name, values in {"aligned": aligned, "unaligned": unaligned, "own_noise": own_noise}.items():
    run.number(f"mean_a_{name}_edit_omega", values)
run.claim(
    "D3",
    aligned_gap=aligned - unaligned,
    parallel=aligned,
    trends=np.stack([rise, aligned - over_t("aligned", "a", 30.0)], axis=1),
    own_noise=aligned - own_noise,
)

# %% [markdown]
# ## Limits
# - Digits of 16 x 16 pixels stand in for pictures, and two digits of one domain share most of their paper. A cosine
#   over their pixels is another quantity than one over latents of Stable Diffusion; the distance from the paper's curve
#   mixes network, images and noise schedule.
# - The paper's pairs were drawn with Prompt-to-Prompt and filtered; ours are all images that the model drew, aligned by
#   their noise alone. How alike they are is in the table of the pairs.
# - The network was trained for few minutes. At the highest noise a prediction should hardly depend on prompt or image.
#   An error there that differs between prompts is multiplied by the guidance scale and lowers both cosines; an error
#   that is the same for all inputs raises them, also for pairs without a common noise: the control shows how much. In
#   reading (a) such errors weigh most, because the noise, nearly all of the prediction, is taken away.
# - The network predicts for images that it drew itself, as in the paper; on real images its errors may be larger.
# - The paper's figure was read off by us, and which reading it shows is not certain: its text and its caption speak of
#   directions, its curves rise to 1 even for unaligned pairs. The claim is judged by what the words say, reading (a),
#   under the guidance that edits digits: 7.5 is Stable Diffusion's, and for class numbers it multiplies errors.
# - The Gaussian world's likeness of images and prompts was chosen by us: its curves are there for their shape.
# - The images were drawn with less guidance than the directions have: the small model needs little. The edits are few,
#   one for each pair of prompts and seed.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
