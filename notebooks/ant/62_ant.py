# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ANT: ten pictures, an adaptor and adversarial noise
#
# ## Question
# A diffusion model of Noto's emoji sees ten faces as Twemoji draws them. What does each part of adversarial noise-based
# transfer (ANT; Wang et al., ICML 2024) bring: the small adaptor in place of the whole network, the guidance by a
# classifier of noised pictures, the adversarial noise?
#
# ## Claim
# - **A3** (Table 2; ablation of Fig. 4). On ten pictures ANT has a lower FID than full fine-tuning, the adaptor alone
#   and ANT without adversarial noise, at similar Intra-LPIPS.
# - **A4** (Sec. 5.2). The adaptor holds 1.3 % of the pixel-space network's parameters, 1.6 % of the latent one's.
# - **A5** (Fig. 1 of the poster). In plain fine-tuning one sample overfits before another has transferred; ANT balances
#   the two.
#
# ## Method
# $$L(\psi)=\mathbb E\,\big\|\epsilon^\star-\epsilon_{\theta,\psi}(x_t^\star,t)
# -\hat\sigma_t^2\,\gamma\,\nabla_{x_t^\star}\log p_\phi(y=\mathcal T\mid x_t^\star)\big\|^2,$$
# where $\epsilon^\star$ comes from $J$ steps of gradient ascent on the denoising error, each followed by a
# normalisation, and only the adaptor $\psi$ is trained. The arms take parts of this away:
#
# | arm | trained | guidance | adversarial noise |
# |---|---|---|---|
# | full | whole network | no | no |
# | adaptor | adaptor | no | no |
# | no noise | adaptor | yes | no |
# | ANT | adaptor | yes | yes |
# | flipped (control) | adaptor | opposite sign | no |
#
# A *draw* takes ten other faces and new randomness everywhere. All arms of a draw see the same pictures, timesteps and
# first noises in the same order, and are sampled with the same noises at the start and at each step (ancestral
# sampling, clamped). At every checkpoint we measure:
#
# - *realism*: share of samples that a small classifier of our own takes for Twemoji's;
# - *Frechet*: distance to Twemoji's other faces, a hundred of them, in 32 components of the features of a network that
#   nobody here trained (EfficientNet-Lite0 on ImageNet);
# - *Intra-LPIPS* in that network's features: each sample goes to its nearest shot; mean distance of two samples in a
#   cluster;
# - *closeness*: distance to the nearest of the ten pictures over that to the nearest other face; the smaller, the more
#   a model repeats the ten. It is 1 where both are as near; Twemoji's other faces, each beside its like, have more.
#
# Intra-LPIPS alone says little: the source, which knows nothing of the target, is diverse too. A3 takes each arm at the
# iteration that was best on a draw that no reported run uses: 160 for *full*, 40 for the others. An ANT step costs
# $J+1$ evaluations of the network, a plain one 1, so the plain arms are also taken at as many evaluations as ANT has.
# All errors are those of the network's own prediction, the velocity.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 20  # first draw; those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = "noto"  # source model: a name in models/, or a folder in diffusers' layout
seeds: PositiveInt = 1  # draws of the ten shots
kind: str = "faces"  # what the shots show: faces, hearts, plants or fruit
gamma: PositiveFloat = 1.0  # strength of the guidance; the paper has 5
omega: PositiveFloat = 0.02  # step size of the ascent; the paper's
ascents: PositiveInt = 10  # J; the paper's
c: PositiveInt = 4  # pooling of the adaptor; the paper's for pixels
d: PositiveInt = 8  # its bottleneck channels; the paper's
batch: PositiveInt = 10  # pictures a step; the paper has 40
lr_full: PositiveFloat = 5e-5  # learning rate of full fine-tuning; the paper's
lr_adaptor: PositiveFloat = 2e-3  # of every arm with an adaptor
checkpoints: list[PositiveInt] = [20, 40]  # iterations at which every arm is sampled; the last is taken for A3
checkpoints_plain: list[PositiveInt] = [160]  # more for `full` (the first is taken for A3) and `adaptor`
classifier_steps: PositiveInt = 300  # training steps of the noised classifier; the paper's
classifier_batch: PositiveInt = 32  # the paper has 64
classifier_lr: PositiveFloat = 1e-3  # the paper has 1e-4
samples: PositiveInt = 64  # pictures sampled at each checkpoint
sampling_steps: PositiveInt = 20  # of ancestral sampling

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch

from lib.ground.nets import eps_model
from lib.measures import distances
from lib.papers.ant import adaptor, experiments, method as ant
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds import emoji_measures

run = record.start("62_ant", globals())
p = run.parameters
world = emoji_measures.world(p)  # source, schedule, judges

# %% [markdown]
# One step in code, here with the source itself as the student:

# %%
draw = experiments.Draw(p.seed, p, world)
model, schedule = eps_model(draw.unet), draw.schedule
guidance = ant.classifier_guidance(experiments.NoisedClassifier(draw.unet))  # untrained here
x0 = draw.shots.to(run.device)  # (10, 3, 32, 32)
t = torch.full((len(x0),), 250, device=run.device)
eps = torch.randn_like(x0)

hard = ant.adversarial_noise(model, schedule, x0, t, eps, p.omega, p.ascents)
x_t = schedule.add_noise(x0, hard, t)
wanted = ant.guided_noise(hard, guidance(x_t, t), schedule, t, p.gamma)
loss = (wanted - model(x_t, t)).square().mean()

# %% [markdown]
# ### The adaptor's share
# Counted layer by layer without allocating a weight: guided diffusion's network at 256 x 256 pixels (the paper's 1.3 %
# can only come from this one), that of Ho et al. which the released configuration names, and the two latent ones. For
# some tasks the authors have $d=16$.

# %%
# NBVAL_CHECK_OUTPUT
keys = {"ADM 256": "adm", "Ho et al. 256": "ho", "LDM FFHQ": "ldm_ffhq", "LDM church": "ldm_church"}
percent, millions = {}, {}
for name, key in keys.items():
    (ours, base), (wide, _) = (adaptor.counts(adaptor.GEOMETRIES[name], d) for d in (8, 16))
    percent[f"share_{key}"], millions[key] = 100 * ours / base, base / 1e6
    print(f"{name:13} {millions[key]:6.1f} M: {100 * ours / base:.2f} %, with d = 16 {100 * wide / base:.2f} %")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ours, base = adaptor.counts(draw.unet.config, d=p.d)
for key, value in {**percent, "share_here": 100 * ours / base}.items():
    run.number(key, value, "%")
run.claim("A4", **percent, size_adm=millions["adm"])

# %% [markdown]
# ### The arms, draw by draw

# %%
arms = experiments.arms(p)
values = run.replicates(experiments.few_pictures, emoji_measures.world)  # each (draws, stops) or (draws,)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
short = arms["ANT"].stops  # those that all arms have; 0 is the source
last, budget = len(short) - 1, short[-1] * (p.ascents + 1)
best = dict.fromkeys(arms, last) | {"full": arms["full"].stops.index(sorted(set(p.checkpoints_plain))[0])}
rows = {"source": ("full", 0), **{name: (name, i) for name, i in best.items()}}


def at(name, measure, i):
    return values[f"{name} {measure}"][:, i]  # (draws,)


def ends(measure, digits):
    return ", ".join(f"{key} {at(name, measure, i).mean():.{digits}f}" for key, (name, i) in rows.items())


def draw_lines():
    """One panel a measure: the mean over the draws of each arm over its iterations."""
    figure, axes = plt.subplots(2, 2, figsize=(7, 5), sharex=True)
    for axis, measure in zip(axes.flat, experiments.MEASURES, strict=True):
        for style, (name, arm) in zip(("o-", "s-", "D-", "^-", "v:"), arms.items(), strict=True):
            axis.plot(arm.stops, values[f"{name} {measure}"].mean(0), style, ms=3.5, label=name)
        if measure != "frechet":
            axis.axhline(values[f"real {measure}"].mean(), color=figures.ink(), lw=0.8, ls=":", label="real drawings")
        axis.set_xscale("symlog", base=2, linthresh=short[1], linscale=0.6)
        ticks = {"xticks": arms["full"].stops, "xticklabels": arms["full"].stops}
        axis.set(ylabel=experiments.MEASURES[measure], ylim=(0, None), **ticks)
        axis.minorticks_off()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


# %% [markdown]
# ## Result
# ### Samples
# The first ten noises of the first draw, not selected, each arm at its iteration: a column is one noise.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
pictures = {key: torch.from_numpy(values[f"{name} samples"][0, i]) for key, (name, i) in rows.items()}
shown = {"shots": torch.from_numpy(values["shots"][0]), **pictures}
draw_samples = partial(figures.image_grid, torch.cat(list(shown.values())), experiments.SHOWN, row_labels=list(shown))
alt = "The ten shots, and below them samples from equal noises by the source and every arm. Share of all samples taken "
alt += f"for Twemoji's: {ends('realism', 2)}."
figures.show(run, "samples", draw_samples, alt, kind="png")

# %% [markdown]
# ### Quality and diversity over the iterations
# The mean over the draws against the iterations; 0 is the source. Low is good in the upper right panel. Within forty
# iterations most noises become a Twemoji face; with full fine-tuning and with ANT nearly all do. In the last panel a
# line that falls is a model that begins to repeat the shots.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = "Four measures over the iterations, one line an arm. Each arm at its iteration, Frechet distance: "
alt += f"{ends('frechet', 0)}; Intra-LPIPS: {ends('intra_lpips', 2)}; closeness: {ends('closeness', 2)}."
figures.show(run, "iterations", draw_lines, alt)
table = []
for key, (name, i) in rows.items():
    for measure in experiments.MEASURES:
        found = at(name, measure, i)
        number = f"{key.lower().replace(' ', '_')}_{measure}"
        run.number(number, Shares(found, p.seeds * p.samples) if measure == "realism" else found)
    texts = {m: run.text(f"{key.lower().replace(' ', '_')}_{m}") for m in experiments.MEASURES}
    table.append({"arm": key, "iterations": arms[name].stops[i], **texts})
sets = {"samples a run": p.samples, "other drawings": int(values["others"][0])}
note = distances.protocol("Frechet distance by clean-fid", sets, "32 components of EfficientNet-Lite0's")
run.table("each arm at its iteration", table, note)

# %% [markdown]
# ### ANT beside the others
# Ratios of Frechet distances, above 1 where ANT is nearer to the target; and what the guidance alone does: its mean
# square beside the denoising loss (*shift*), and the distance of the arm with the opposite sign over that with the
# right one.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ours = at("ANT", "frechet", last)
others = [name for name in arms if name not in ("ANT", "flipped")]
ratio = {name: at(name, "frechet", best[name]) / ours for name in others}
equal = {name: at(name, "frechet", -1) / ours for name in ("full", "adaptor")}
for key, found in {"best": ratio, "evaluations": equal}.items():
    for name, value in found.items():
        run.number(f"{key}_{name.replace(' ', '_')}", value)
diversity = at("ANT", "intra_lpips", last) - np.mean([at(name, "intra_lpips", best[name]) for name in others], axis=0)
checks = {"diversity": diversity, "told": (values["told_source"] + values["told_target"]) / 2}
checks["flipped"] = at("flipped", "frechet", last) / at("no noise", "frechet", last)
more = {"shift": values["no noise ratio"], "evaluations": budget, "ascents": p.ascents, "iterations": short[-1]}
for key, value in {**checks, **more, **{f"told_{d}": values[f"told_{d}"] for d in ("source", "target")}}.items():
    run.number(key, value)
worst = {"nearer": np.stack(list(ratio.values()), 1), "nearer_equal": np.stack(list(equal.values()), 1)}
run.claim("A3", **worst, **checks)
run.claim("A5")
run.claim("A6")

# %% [markdown]
# ### Two noises over the training
# The first two noises of the first draw, not selected, equal steps in both arms; the left column is the source.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
stages = {name: torch.from_numpy(values[f"{name} samples"][0]) for name in ("full", "ANT")}
in_rows = torch.cat([stages[name][: len(short), k] for k in range(2) for name in stages])
labels = [f"{arm}, noise {k}" for k in (1, 2) for arm in stages]
alt = f"Samples from two noises at iterations {', '.join(map(str, short))}, by full fine-tuning and by ANT. "
alt += f"Share of all samples taken for Twemoji's: {ends('realism', 2)}."
titles = ["source", *map(str, short[1:])]
draw_stages = partial(figures.image_grid, in_rows, ncols=len(short), titles=titles, row_labels=labels)
figures.show(run, "two-noises", draw_stages, alt, kind="png")

# %% [markdown]
# ## Limits
# - Emoji of 32 x 32 pixels and a network of 2.7 million parameters stand in for faces of 256 x 256. Beside so narrow a
#   network, the adaptor with the paper's $d$ is far larger than 1.3 % of it.
# - Settings were chosen on draw 1000: 5e-5, 1e-4 and 2e-4 for full fine-tuning, 3e-4, 1e-3 and 2e-3 for the adaptor
#   alone, each by its smallest Frechet distance up to 160 iterations; $\gamma$ 1 and 5 without adversarial noise. The
#   paper has one rate for all arms, but so small an adaptor, beginning at zero, moves little at that of the network.
# - The network predicts velocities. The guidance asks for a fixed change of the noise, which is a large change of the
#   velocity at high noise, where the classifier knows least: the paper's $\gamma$ of 5 made things worse here.
# - The classifier of noised pictures begins with the source's own encoder instead of ImageNet weights, and has seen ten
#   shots, mirrored and shifted.
# - A Frechet distance from few samples is too large, for all arms alike. The interval is over draws of the shots, with
#   one source and one judge.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
