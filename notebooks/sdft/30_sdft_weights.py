# ---
# jupyter:
#   companion:
#     needs:
#     - 50_source
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
#
# ## Claim
# **S1** (Supplement, Fig. 2 and Sec. 3). The weight falls with the signal-to-noise ratio, and does so later in time
# for a larger $\gamma$. The auxiliary term feeds *pure noise* to both models at every timestep. A model trained on
# noisy images can only make sense of pure noise where its usual input is nearly pure noise, so this term gets the
# larger exponent.
#
# ## Method
# $$w_\gamma(t) = \frac{1}{(1 + \mathrm{SNR}(t))^{\gamma}} = (1 - \bar\alpha_t)^{\gamma}, \qquad
# \mathrm{SNR}(t) = \frac{\bar\alpha_t}{1 - \bar\alpha_t}.$$
#
# The first part is arithmetic: curves and half-weight timesteps on three schedules. A variance-exploding schedule
# enters through $\mathrm{SNR} = 1/\sigma^2$. The second part feeds a trained denoiser (printed digits) with pure
# noise $\epsilon$ at each $t$ and measures how far its output is from that noise, relative to the noise.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 100  # first seed; 0 was the pilot's
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source_steps: PositiveInt = 1600  # training steps of a source
gammas: list[NonNegativeFloat] = [0, 1, 3, 10, 50, 100]  # exponents of the curves
seeds: PositiveInt = 1  # sources
images: PositiveInt = 32  # noises a draw
every: Literal[10, 20, 25, 50, 100] = 50  # distance of the timesteps at which the denoiser is tried

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

from lib.ground import diffusion, nets
from lib.papers.sdft import experiments, method as sdft
from lib.record import figures, run as record
from lib.worlds import sources

run = record.start("30_sdft_weights", globals())
p = run.parameters

# %% [markdown]
# ## Result
# ### The weight over time
# Three schedules, each with 1,000 timesteps from low to high noise: the linear one of DDPM (the paper's), the cosine
# one, and the geometric variance-exploding one of the score-based models for 256-pixel faces ($\sigma$ from 0.01 to
# 348). Where a curve crosses one half does not depend on the schedule if it is read off in signal-to-noise ratio: there
# $\mathrm{SNR} = 2^{1/\gamma} - 1$. Each schedule reaches that ratio at another timestep.

# %%
# NBVAL_CHECK_OUTPUT
sigma = 0.01 * 34_800 ** torch.linspace(0, 1, 1000, dtype=torch.float64)
schedules = {
    "linear": diffusion.linear(),
    "cosine": diffusion.cosine(),
    "variance exploding": diffusion.Schedule(1 / (1 + sigma**2)),
}
for gamma in (1, 3, 10, 50, 100):
    half = {name: sdft.half_weight_timestep(schedule, gamma) for name, schedule in schedules.items()}
    print(f"gamma {gamma:3d}: SNR {2 ** (1 / gamma) - 1:.4f} at t =", half)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_curves(gammas):
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.6), sharey=True)
    for axis, (name, schedule) in zip(axes, schedules.items(), strict=True):
        for gamma in gammas:
            axis.plot(sdft.weight(schedule, gamma), label=f"{gamma:g}")
        axis.axhline(0.5, color=figures.ink(), lw=0.6, ls=":")
        axis.set(title=name, xlabel="timestep t", ylim=(-0.02, 1.06))
    axes[0].set_ylabel("weight w(t)")
    figure.legend(*axes[0].get_legend_handles_labels(), title="gamma", loc="outside right upper")
    return figure


halves = {gamma: sdft.half_weight_timestep(schedules["linear"], gamma) for gamma in (3, 50)}
for gamma, t in halves.items():
    run.number(f"t_half_{gamma}", t)
    run.number(f"snr_half_{gamma}", 2 ** (1 / gamma) - 1)
alt = "Weight over timestep for several gamma on three schedules. Every curve rises from 0 at low noise to 1 at high "
alt += (
    f"noise, a larger gamma later; the linear one reaches half at t = {halves[3]} (gamma 3), {halves[50]} (gamma 50)."
)
figures.show(run, "curves", lambda: draw_curves(p.gammas), alt)

# %% [markdown]
# Move $\gamma$: at 0 the weight is 1 everywhere (the control arm of the fine-tuning notebook), at 3 it lets the
# coarse half of the trajectory through, at 50 only what is nearly noise.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def words(gamma):
    halves = ", ".join(f"{sdft.half_weight_timestep(s, gamma)} ({name})" for name, s in schedules.items())
    return f"Weight over timestep at gamma {gamma:g}: half weight at t = {halves}"


tried = [0, 0.5, 1, 2, 3, 5, 10, 20, 50, 100]
frames = [(f"{gamma:g}", lambda gamma=gamma: draw_curves([gamma])) for gamma in tried]
figures.slider(run, "gamma", frames, "gamma", [words(gamma) for gamma in tried], start=tried.index(3))

# %% [markdown]
# ### A trained denoiser fed with pure noise
# Every seed trains a source of its own, on $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon$.
# Now it gets $\epsilon$ alone. If it took its input for what it is, it would return it. The dashed curve is the same
# network's error on its usual input.

# %%
found = run.replicates(experiments.pure_noise)  # (seeds, timesteps)
own = run.artefacts / f"source-{p.seed}"  # trained by the replicate of this seed, or here
unet, schedule = sources.source_model(own, run.device, steps=p.source_steps, seed=p.seed)
timesteps = torch.arange(p.every, schedule.T, p.every)
w_3, w_50 = (sdft.weight(schedule, gamma)[timesteps].numpy() for gamma in (3, 50))
let_through = (found["noise"] * w_50).sum(1) / (found["noise"] * w_3).sum(1)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_errors():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.9))
    on_noise, on_images = found["noise"].mean(0), found["images"].mean(0)
    left.plot(timesteps, on_noise, label="pure noise")
    left.plot(timesteps, on_images, "--", label="noisy images")
    left.set(xlabel="timestep t", ylabel="relative squared error", title="error of the predicted noise", ylim=0)
    for color, gamma, w in (("C2", 3, w_3), ("C3", 50, w_50)):
        right.fill_between(timesteps, on_noise * w, alpha=0.4, color=color, label=f"gamma {gamma}")
    right.set(xlabel="timestep t", ylabel="error x weight", title="error on pure noise let through", ylim=0)
    left.legend()
    right.legend()
    return figure


at_100, at_900 = (found["noise"][:, t // p.every - 1] for t in (100, 900))
errors = {"error_100": at_100, "error_900": at_900, "error_usual_100": found["images"][:, 100 // p.every - 1]}
for key, values in {**errors, "let_through": let_through}.items():
    run.number(key, values)
alt = f"Left: the network's relative error on pure noise falls from {at_100.mean():.2f} at t = 100 to "
alt += (
    f"{at_900.mean():.2f} at t = 900. Right: times the weight; gamma 50 lets through {let_through.mean():.2f} of what "
)
figures.show(run, "errors", draw_errors, alt + "gamma 3 does.")

# %% [markdown]
# The same in pictures: the image that the network believes to lie behind its input, for one row of noises. Where its
# usual input would show an image, the network reads content into the noise. At the highest noise level it returns the
# noise almost unchanged; the grain there is the small rest, divided by a signal factor close to zero.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
eps = torch.randn(8, 1, *2 * [unet.config.sample_size], generator=experiments.rng(p.seed)).to(run.device)
shown, model = [100, 300, 500, 700, 900], nets.eps_model(unet)
with torch.no_grad():
    believed = [schedule.x0_from_eps(eps, model(eps, diffusion.batch_of(t, eps)), t) for t in shown]
labels = ["input", *[f"t = {t}" for t in shown]]
alt = "Eight pure noise images and, below each, the clean image that the network sees in it at t = "
alt += ", ".join(map(str, shown))
figures.show(run, "believed", lambda: figures.image_grid(torch.cat([eps, *believed]), 8, row_labels=labels), alt, "png")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.claim(
    "S1",
    t_half_50=halves[50],
    aux_error_low=at_100 - at_900,
    aux_error_weighted=let_through,
    untrained_error=found["untrained"][:, 100 // p.every - 1] - found["untrained"][:, 900 // p.every - 1],
)

# %% [markdown]
# ## Limits
# - The sources have one architecture and one training set; they differ in all that is random.
# - The figure of the paper's supplement is a picture without a list of its $\gamma$; the values here are ours, 3 and
#   50 are the paper's.
# - The auxiliary term compares student and source on pure noise, not source and noise. The error here says where the
#   source has something sensible to teach on such an input, not how large the term is.
# - A network of another size or for larger images collapses at other timesteps; the weight is tied to the schedule
#   only.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
