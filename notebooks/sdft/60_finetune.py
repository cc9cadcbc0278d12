# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SDFT: fine-tuning on a hundred biased pictures
#
# ## Question
# A diffusion model knows emoji as Noto draws them: faces, people in six skin tones, animals, plants and food. It is
# fine-tuned on a hundred drawings by another house, Twemoji: faces and people, all of them in yellow. What is left of
# the other tones afterwards, and does holding the model near its source (Self-Distillation based Fine-Tuning, SDFT; Hur
# et al., WACV 2024) keep more of it at the same realism?
#
# ## Claim
# **S2** (abstract; Supplement, Fig. 7). Fine-tuned on limited, biased data, SDFT gives more diverse samples than
# naive fine-tuning, better aligned with the source's sample from the same noise, without harming the quality on the
# target.
#
# ## Method
# $$L = \|\epsilon - \epsilon_\theta(x_t, t)\|^2
# + \lambda_d\, w_{\gamma_d}(t)\, \|\epsilon_\phi(x_t, t) - \epsilon_\theta(x_t, t)\|^2
# + \lambda_a\, w_{\gamma_a}(t)\, \|\epsilon_\phi(\epsilon, t) - \epsilon_\theta(\epsilon, t)\|^2$$
#
# with the source $\epsilon_\phi$ frozen and the student $\epsilon_\theta$ a copy of it; $\gamma$ is the paper's. The
# arms of a seed see the same pictures, timesteps and noises in the same order, and are sampled with the same noises,
# at the start and at every step (ancestral sampling with one seed, as the authors' sampling script does). A seed is a
# new draw of the hundred pictures and new randomness everywhere. We measure at several checkpoints:
#
# - *realism*: share of samples that a small classifier of our own takes for Twemoji's;
# - *agreement*: share of samples for which, of all samples of the source, that from the same noise is the most alike,
#   in the features of a network that nobody here trained (EfficientNet-Lite0 on ImageNet), each set about its own
#   mean;
# - *coverage*: share of samples that are Twemoji's and in one of its five skin tones, of which the target has none;
# - *variety*: mean squared distance of two samples in those features;
# - *Frechet distance* to Twemoji's drawings of all 845 emoji, each in a tone at random, in 64 components of those
#   features; *quality* is the same to unseen drawings of the target's kinds alone, in 32 components.
#
# Every method can trade agreement for realism by training longer, so one point says little. We draw agreement against
# realism over the training steps, and compare at equal realism. Two arms are no method: a second naive student that
# saw the same pictures in another order, with other noises, which must gain nothing; and the *average* of the weights
# of source and naive student, which has gone half the way without any distillation. $\lambda$ is 1, ten times the
# paper's: its own value is for ten thousand steps and more, and is one more arm here, *a tenth*. How far a student's
# predictions have moved from the source's (*drift*) says how much the terms act.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 100  # first seed; those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = "noto"  # source model: a name in models/, or a folder in diffusers' layout
seeds: PositiveInt = 1  # draws of the target pictures
shots: PositiveInt = 100  # target pictures
lambda_sdft: PositiveFloat = 1.0  # weight of both terms; the paper has 0.1
gamma_distill: NonNegativeFloat = 3.0  # the paper's
gamma_aux: NonNegativeFloat = 50.0  # the paper's
checkpoints: list[PositiveInt] = [8, 40, 180]  # steps at which a run is sampled; it ends with the last
batch: PositiveInt = 16  # pictures a step; the paper's
lr: PositiveFloat = 3e-5  # learning rate of AdamW; the paper has 2e-5
samples: PositiveInt = 64  # pictures sampled at each checkpoint
sampling_steps: PositiveInt = 20  # of ancestral sampling

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch

from lib.ground.diffusion import linear
from lib.measures import distances
from lib.papers.sdft import method as sdft, on_emoji, students
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds import emoji

run = record.start("60_finetune", globals())
p = run.parameters

# %% [markdown]
# The distillation terms in code, for one batch of the target pictures: two models stand in for student and source,
# which differ by a tenth of the noise everywhere.

# %%
# NBVAL_CHECK_OUTPUT
x0 = students.target(p, p.seed)[0][:16]  # (16, 3, 32, 32)
t, eps = torch.arange(0, 1000, 63), torch.ones_like(x0)
student, source = (lambda x_t, t: 0.9 * torch.ones_like(x_t)), (lambda x_t, t: torch.ones_like(x_t))
total, parts = sdft.loss(student, source, linear(), x0, t, eps)
print({name: f"{value:.4f}" for name, value in parts.items()})

# %% [markdown]
# ### The target pictures
# Forty of the hundred of the first seed.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
shown = students.target(p, p.seed)[0][:40]
alt = "Forty of the hundred target pictures, Twemoji's faces and people, all with yellow skin."
figures.show(run, "target", lambda: figures.image_grid(shown, 20, cell=0.35), alt, "png")

# %% [markdown]
# `students.trained` fine-tunes the students of a seed and keeps them at each checkpoint, for the notebook on
# translating too; `limited_data` samples and measures them.

# %%
found = run.replicates(on_emoji.limited_data, own=students.trained)  # an arm: (seeds, checkpoints, measures)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
measures, checkpoints = on_emoji.SAMPLED, sorted(set(p.checkpoints))
arms = {"naive": "o-", "SDFT": "s-", students.WEAK: "D-", "averaged": "P--", "naive again": "^:"}


def mean(name, measure):
    """Mean over seeds of one measure at every checkpoint."""
    return found[name][..., measures.index(measure)].mean(0)


def at_end(*chosen):
    """Measures of every arm at the last checkpoint, in words."""
    return "; ".join(f"{name} {' / '.join(f'{mean(name, m)[-1]:.2f}' for m in chosen)}" for name in arms)


def draw_trade_off():
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for name, style in arms.items():
        axis.plot(mean(name, "realism"), mean(name, "agreement"), style, ms=4, label=name)
    axis.axhline(1 / p.samples, color=figures.ink(), lw=0.8, ls=":", label="chance")
    axis.set(xlabel="realism: share taken for Twemoji's", ylabel="agreement with the source", ylim=(0, None))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


# %% [markdown]
# ## Result
# ### Samples from equal noise
# The first noises of the first seed, not selected, at the last checkpoint: a column is one initial noise.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = ["source", "naive", "SDFT", students.WEAK, "averaged"]
pictures = torch.cat([torch.from_numpy(found[f"{name} images"][0]) for name in rows])
alt = f"Five rows of samples from equal noises: {', '.join(rows)}. Share of samples whose most alike source sample is "
alt += f"that from the same noise: {at_end('agreement')}."
figures.show(run, "samples", lambda: figures.image_grid(pictures, on_emoji.SHOWN, row_labels=rows), alt, "png")

# %% [markdown]
# ### Agreement against realism
# Each line is an arm, each dot a checkpoint, mean over seeds; training goes from left to right. Higher at the same
# realism is better.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = "Agreement with the source against realism, one line an arm, dots at its checkpoints. "
alt += f"After {checkpoints[-1]} steps, realism / agreement: {at_end('realism', 'agreement')}."
figures.show(run, "trade-off", draw_trade_off, alt)

# %% [markdown]
# ### Over the training steps
# The source before fine-tuning is step 0. Dotted: as many real drawings of all of Twemoji, the ceiling of coverage.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_steps():
    figure, axes = plt.subplots(2, 2, figsize=(7, 4.6), sharex=True)
    for axis, measure in zip(axes.flat, ("realism", "agreement", "coverage", "frechet"), strict=True):
        for name, style in arms.items():
            values = [mean("source", measure), *mean(name, measure)]
            axis.plot([0, *checkpoints], values, style, ms=3.5, label=name)
        if measure != "agreement":
            axis.axhline(mean("real", measure), color=figures.ink(), lw=0.8, ls=":", label="real drawings")
        axis.set(title=measure, ylim=(0, None), ylabel="distance" if measure == "frechet" else "share of samples")
    for axis in axes[1]:
        axis.set_xlabel("fine-tuning steps")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure


alt = f"Four measures over the steps. After {checkpoints[-1]} steps, coverage of the missing tones / Frechet distance "
alt += f"to all of Twemoji: {at_end('coverage', 'frechet')}."
figures.show(run, "steps", draw_steps, alt)

# %% [markdown]
# ### At equal realism
# Each arm's curve minus the naive one's, averaged over the realism that both reach between their checkpoints, seed by
# seed; not defined where that is less than a fifth of the wider curve's. *Drift* is the mean squared difference of the
# predicted clean images from the source's, on noised Noto drawings and on pure noise.


# %%
def gain(name, measure):
    """A measure minus the naive student's at equal realism, (seeds,)."""
    columns = [0, measures.index(measure)]
    return on_emoji.matched(found[name][..., columns], found["naive"][..., columns])


def drift(name):
    """Drift at the last checkpoint over the naive student's, mean of the two inputs, (seeds,)."""
    return (found[f"{name} drift"][:, -1] / found["naive drift"][:, -1]).mean(-1)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
table = []
for name in ("source", *arms, "real", "real kinds"):
    last = found[name] if name in ("source", "real", "real kinds") else found[name][:, -1]  # (seeds, measures)
    key = name.lower().replace(", ", "_").replace(" ", "_")
    for measure, values in zip(measures, last.T, strict=True):
        share = measure in ("realism", "agreement", "coverage")
        run.number(f"{key}_{measure}", Shares(values, p.seeds * p.samples) if share else values)
    if name in arms and name != "naive":
        for number, values in {"matched": gain(name, "agreement"), "matched_coverage": gain(name, "coverage")}.items():
            run.number(f"{number}_{key}", values)
        run.number(f"drift_{key}", drift(name))
    more = {"agreement gained": f"matched_{key}", "drift": f"drift_{key}"}
    gained = {column: run.text(number) if name in arms and name != "naive" else "" for column, number in more.items()}
    table.append({"arm": name, **{m: run.text(f"{key}_{m}") for m in measures}, **gained})
sets = {"samples an arm and seed": p.samples, "Twemoji drawings": len(emoji.table())}
note = distances.protocol("Frechet distance by clean-fid", sets, "64 components of EfficientNet-Lite0's")
run.table("last checkpoint", table, note)
checks = {f"matched_{key}": gain(name, "agreement") for key, name in (("sdft", "SDFT"), ("naive_again", "naive again"))}
grown = np.log(found["SDFT"][:, -1] / found["naive"][:, -1])  # (seeds, measures)
checks |= {"variety_gained": grown[:, measures.index("variety")], "quality_lost": -grown[:, measures.index("quality")]}
for key in ("variety_gained", "quality_lost"):
    run.number(key, checks[key])
run.number("steps", checkpoints[-1])
run.claim("S2", **checks, drift_sdft=drift("SDFT"))

# %% [markdown]
# ## Limits
# - Emoji of 32 x 32 pixels stand in for faces of 256 x 256: one picture an object, flat colours, a white ground. The
#   network has 2.7 million parameters and predicts velocities, so all errors are those of the velocity; its fine-tuning
#   has 180 steps of 16 pictures instead of 10,000 and more.
# - One source model for all seeds; the interval is over target pictures, their order and all noise. The hundred
#   pictures of a seed are drawn from 164, so seeds share many.
# - The classifier of realism is small and our own. Agreement is read in features of photographs. Skin tones are told by
#   colour: of real drawings in a tone 83 % are told, and 3 % of the others are taken for one, among them brown animals.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
