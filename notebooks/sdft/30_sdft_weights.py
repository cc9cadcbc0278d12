# ---
# jupyter:
#   companion:
#     needs: [50_source]
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SDFT: when does the source model still have a say?
#
# ## Question
# Self-Distillation based Fine-Tuning (SDFT; Hur et al., WACV 2024) fine-tunes a copy of a diffusion model on a few
# biased images and holds it near the frozen original with two extra terms. A weight $w_\gamma(t)$ decides at which
# noise levels each of them acts. What does the weight look like, and why does the paper give the two terms such
# different exponents (3 and 50)?

# %% [markdown]
# ## Claim
# **S1** (Supplement, Fig. 2 and Sec. 3). The weight falls with the signal-to-noise ratio, and does so later in time
# for a larger $\gamma$. The auxiliary term feeds *pure noise* to both models at every timestep. A model trained on
# noisy images can only make sense of pure noise where its usual input is nearly pure noise, so this term gets the
# larger exponent.

# %% [markdown]
# ## Method
# $$w_\gamma(t) = \frac{1}{(1 + \mathrm{SNR}(t))^{\gamma}} = (1 - \bar\alpha_t)^{\gamma}, \qquad
# \mathrm{SNR}(t) = \frac{\bar\alpha_t}{1 - \bar\alpha_t}.$$
#
# The first part is arithmetic: curves and half-weight timesteps on three schedules. A variance-exploding schedule
# enters through $\mathrm{SNR} = 1/\sigma^2$. The second part feeds a trained denoiser (printed digits) with pure
# noise $\epsilon$ at each $t$ and measures how far its output is from that noise, relative to the noise.

# %% tags=["parameters"]
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 0  # first seed
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source_steps: PositiveInt = 1600  # training steps of the source model, if there is none yet
gammas: list[NonNegativeFloat] = [0, 1, 3, 10, 50, 100]  # exponents of the curves
seeds: PositiveInt = 10  # independent draws of the noise
images: PositiveInt = 32  # noises a draw
every: Literal[10, 20, 25, 50, 100] = 50  # distance of the timesteps at which the denoiser is tried

# %%
import matplotlib.pyplot as plt
import torch
from tqdm.auto import tqdm

from lib.ground import diffusion, nets
from lib.papers.sdft import method as sdft
from lib.record import figures, run as record
from lib.worlds import digits as data, sources as source

run = record.start("30_sdft_weights", globals())
p = run.parameters

# %% [markdown]
# ## Result
# ### The weight over time
# Three schedules, each with 1,000 timesteps from low to high noise: the linear one of DDPM (the paper's), the cosine
# one, and the geometric variance-exploding one of the score-based models for 256-pixel faces ($\sigma$ from 0.01 to
# 348).

# %%
sigma = torch.logspace(-2, torch.tensor(348.0).log10().item(), 1000, dtype=torch.float64)
schedules = {
    "linear": diffusion.linear(),
    "cosine": diffusion.cosine(),
    "variance exploding": diffusion.Schedule(1 / (1 + sigma**2)),
}


# %%
def draw_curves():
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.6), sharey=True)
    for axis, (name, schedule) in zip(axes, schedules.items(), strict=True):
        for gamma in p.gammas:
            axis.plot(sdft.weight(schedule, gamma), label=f"{gamma:g}")
        axis.set(title=name, xlabel="timestep t", ylim=(-0.02, 1.06))
        axis.axhline(0.5, color=figures.ink(), lw=0.6, ls=":")
    axes[0].set_ylabel("weight w(t)")
    figure.legend(*axes[0].get_legend_handles_labels(), title="gamma", loc="outside right upper")
    return figure


# %%
linear = schedules["linear"]
t_half_3, t_half_50 = (sdft.half_weight_timestep(linear, gamma) for gamma in (3, 50))
figures.show(
    run,
    "curves",
    draw_curves,
    alt="Weight over timestep for several gamma on three schedules. Every curve rises from 0 at low noise to 1 at high "
    f"noise, a larger gamma later; the linear one reaches half at t = {t_half_3} (gamma 3) and {t_half_50} (gamma 50).",
)

# %% [markdown]
# Where a curve crosses one half does not depend on the schedule if it is read off in signal-to-noise ratio: there
# $\mathrm{SNR} = 2^{1/\gamma} - 1$. Each schedule reaches that ratio at another timestep.

# %%
# NBVAL_CHECK_OUTPUT
for gamma in (1, 3, 10, 50, 100):
    halves = [f"{name} {sdft.half_weight_timestep(schedule, gamma)}" for name, schedule in schedules.items()]
    print(f"gamma {gamma:3d}: half weight at SNR {2 ** (1 / gamma) - 1:.4f}; t =", ", ".join(halves))

# %%
half_rows = [
    {"gamma": gamma, **{name: sdft.half_weight_timestep(schedule, gamma) for name, schedule in schedules.items()}}
    for gamma in (1, 3, 10, 50, 100)
]
run.table("half weight timesteps", half_rows)
for row in half_rows:
    run.number(f"t_half_{row['gamma']}", row["linear"])
    run.number(f"snr_half_{row['gamma']}", 2 ** (1 / row["gamma"]) - 1)

# %% [markdown]
# Move $\gamma$: at 0 the weight is 1 everywhere (the control arm of the fine-tuning notebook), at 3 it lets the
# coarse half of the trajectory through, at 50 only what is nearly noise.


# %%
def draw_weight(gamma):
    figure, axis = plt.subplots(figsize=(4.2, 2.9))
    for style, (name, schedule) in zip(("-", "--", ":"), schedules.items(), strict=True):
        axis.plot(sdft.weight(schedule, gamma), style, label=name)
    axis.axhline(0.5, color=figures.ink(), lw=0.6, ls=":")
    axis.set(xlabel="timestep t", ylabel="weight w(t)", ylim=(-0.02, 1.06), title=f"gamma = {gamma:g}")
    axis.legend(loc="upper left" if gamma > 3 else "lower right")
    return figure


# %%
steps_of_gamma = [0, 0.5, 1, 2, 3, 5, 10, 20, 50, 100]
figures.slider(
    run,
    "gamma",
    [(f"{gamma:g}", lambda gamma=gamma: draw_weight(gamma)) for gamma in steps_of_gamma],
    description="gamma",
    alt=[
        f"Weight over timestep at gamma {gamma:g}: half weight at t = "
        + ", ".join(f"{sdft.half_weight_timestep(s, gamma)} ({name})" for name, s in schedules.items())
        for gamma in steps_of_gamma
    ],
)

# %% [markdown]
# ### A trained denoiser fed with pure noise
# The network was trained on $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon$. Now it gets
# $\epsilon$ alone. If it took its input for what it is, it would return it. The dashed curve is the same network's
# error on its usual input.

# %%
folder = run.artefacts / "source"
if folder.exists():
    unet, schedule = source.load(folder, run.device)
else:
    unet, schedule = source.source_model(folder, steps=p.source_steps, device=run.device)
eps_source = nets.eps_model(unet)
timesteps = torch.arange(p.every, schedule.T, p.every)
x0 = data.printed(unet.config.sample_size).images
w_3, w_50 = (sdft.weight(schedule, gamma)[timesteps] for gamma in (3, 50))


# %%
@torch.no_grad()
def errors(seed):
    """Relative squared error of the predicted noise at each timestep: on pure noise, and on noisy images."""
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(p.images, *x0.shape[1:], generator=generator).to(run.device)
    images = x0[torch.randint(len(x0), (p.images,), generator=generator)].to(run.device)
    rows = []
    for t in timesteps:
        at = t.expand(p.images).to(run.device)
        inputs = eps, schedule.add_noise(images, eps, at)
        rows.append([((eps_source(x, at) - eps).square().mean() / eps.square().mean()).item() for x in inputs])
    return rows


# %%
measured = torch.tensor([errors(seed) for seed in tqdm(run.seed_list, desc="draws")])  # (seeds, timesteps, 2)
on_noise, on_images = measured.unbind(-1)
at_100, at_900 = (on_noise[:, (timesteps == t).nonzero().item()] for t in (100, 900))
run.number("error_100", at_100)
run.number("error_900", at_900)
run.number("error_usual_100", on_images[:, (timesteps == 100).nonzero().item()])
columns = timesteps, on_noise.mean(0), on_images.mean(0), w_3, w_50
rows = zip(*(column.tolist() for column in columns), strict=True)
names = "timestep", "error on pure noise", "on noisy images", "weight, gamma 3", "weight, gamma 50"
run.table("error on pure noise", [dict(zip(names, map(float, row), strict=True)) for row in rows if row[0] % 100 == 0])


# %%
def draw_errors():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.9))
    left.plot(timesteps, on_noise.mean(0), label="pure noise")
    left.plot(timesteps, on_images.mean(0), "--", label="noisy images")
    left.set(xlabel="timestep t", ylabel="relative squared error", title="error of the predicted noise", ylim=0)
    for color, gamma, w in (("C2", 3, w_3), ("C3", 50, w_50)):
        right.fill_between(timesteps, on_noise.mean(0) * w, alpha=0.4, color=color, label=f"gamma {gamma}")
    right.set(xlabel="timestep t", ylabel="error x weight", title="error on pure noise let through", ylim=0)
    left.legend()
    right.legend()
    return figure


# %%
ratio = (on_noise * w_50).sum(1) / (on_noise * w_3).sum(1)
run.number("let_through", ratio)
figures.show(
    run,
    "errors",
    draw_errors,
    alt=f"Left: the network's relative error on pure noise falls from {at_100.mean():.2f} at t = 100 to "
    f"{at_900.mean():.2f} at t = 900. Right: times the weight; gamma 50 lets through {ratio.mean():.2f} of what "
    "gamma 3 does.",
)

# %% [markdown]
# The same in pictures: the image that the network believes to lie behind its input, for one row of noises. Where its
# usual input would show an image, the network reads content into the noise. At the highest noise level it returns the
# noise almost unchanged; the grain there is the small rest, divided by a signal factor close to zero.

# %%
generator = torch.Generator().manual_seed(p.seed)
eps = torch.randn(8, *x0.shape[1:], generator=generator).to(run.device)
shown = [100, 300, 500, 700, 900]
with torch.no_grad():
    believed = [schedule.x0_from_eps(eps, eps_source(eps, torch.full((8,), t, device=run.device)), t) for t in shown]

# %%
figures.show(
    run,
    "believed",
    lambda: figures.image_grid(
        torch.cat([eps, *believed]), ncols=8, row_labels=["input", *[f"t = {t}" for t in shown]]
    ),
    alt="Eight pure noise images and, below each, the clean image that the network sees in it at t = "
    + ", ".join(map(str, shown)),
    kind="png",
)

# %%
run.claim(
    "S1",
    t_half_3=t_half_3,
    t_half_50=t_half_50,
    aux_error_low=(at_100 - at_900).numpy(),
    aux_error_weighted=ratio.numpy(),
    weight_gamma_0=sdft.weight(linear, 0).min().item(),
)

# %% [markdown]
# ## Limits
# - One trained source model; the interval is over draws of the noise, not over models.
# - The figure of the paper's supplement is a picture without a list of its $\gamma$; the values here are ours, 3 and
#   50 are the paper's.
# - The auxiliary term compares student and source on pure noise, not source and noise. The error here says where the
#   source has something sensible to teach on such an input, not how large the term is.
# - A network of another size or for larger images collapses at other timesteps; the weight is tied to the schedule
#   only.

# %%
run.finish()
