# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SDFT: which of its terms acts?
#
# ## Question
# SDFT adds two terms to the denoising loss. *Distillation* holds the student near its source on noised target pictures,
# the *auxiliary* term on pure noise; a weight $w_\gamma(t)$ says at which noise levels. What does each do alone, and
# what does the weight do?
#
# ## Claim
# None is judged here: the supplement's ablation has no number that would decide one on our pictures. This page is the
# picture behind S2 (see 60_finetune): the same source, target and settings.
#
# ## Method
# Five students of one draw of the hundred target pictures, which see the same pictures, timesteps and noises: naive,
# each term alone, both, and both with $\gamma = 0$, one weight for all timesteps. *Realism*, *agreement* and *drift*
# are those of 60_finetune; drift is given on noised drawings, where distillation acts, and on pure noise, where the
# auxiliary term does.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 100  # first seed
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = "noto"  # source model: a name in models/, or a folder in diffusers' layout
seeds: PositiveInt = 1  # draws of the target pictures
shots: PositiveInt = 100  # target pictures
lambda_sdft: PositiveFloat = 1.0  # weight of a term; the paper has 0.1
gamma_distill: NonNegativeFloat = 3.0  # the paper's
gamma_aux: NonNegativeFloat = 50.0  # the paper's
checkpoints: list[PositiveInt] = [10, 30]  # steps at which a student is sampled, rising
batch: PositiveInt = 16  # pictures a step; the paper's
lr: PositiveFloat = 3e-5  # learning rate of AdamW; the paper has 2e-5
samples: PositiveInt = 64  # pictures sampled at each checkpoint
sampling_steps: PositiveInt = 20  # of ancestral sampling

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

from lib.ground.diffusion import linear
from lib.papers.sdft import ablation, method as sdft, on_emoji
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds import emoji_measures

run = record.start("61_terms", globals())
p = run.parameters

# %% [markdown]
# The weight of each term, at five noise levels: with the paper's $\gamma$ distillation leaves out the low noise, and
# the auxiliary term acts at high noise alone.

# %%
# NBVAL_CHECK_OUTPUT
for name, gamma in {"distill": 3.0, "aux": 50.0, "gamma 0": 0.0}.items():
    w = sdft.weight(linear(), gamma)[[0, 250, 500, 750, 999]]
    print(f"{name:8}", *(f"{value:.3f}" for value in w.tolist()))

# %%
found = run.replicates(ablation.taken_away, emoji_measures.world)  # an arm: (seeds, checkpoints, measures)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
measures, arms, last = ablation.MEASURES, list(ablation.ARMS), max(p.checkpoints)


def at_end(name, measure):
    """A measure at the last checkpoint, (seeds,)."""
    return found[name][:, -1, measures.index(measure)]


def relative(name, measure):
    """The same over the naive student's."""
    return at_end(name, measure) / at_end("naive", measure)


# %% [markdown]
# ## Result
# ### Samples from equal noise
# The first noises of the first seed, not selected, at the last checkpoint.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = ["source", *arms]
pictures = torch.cat([torch.from_numpy(found[f"{name} images"][0]) for name in rows])
alt = f"Samples from equal noises, a row each: {', '.join(rows)}. Agreement with the source after {last} steps: "
alt += ", ".join(f"{name} {at_end(name, 'agreement').mean():.2f}" for name in arms) + "."
figures.show(run, "samples", lambda: figures.image_grid(pictures, on_emoji.SHOWN, row_labels=rows), alt, "png")


# %% [markdown]
# ### How far each arm has gone


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_drift():
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True)
    for axis, measure in zip(axes, measures[2:], strict=True):
        axis.barh(arms, [relative(name, measure).mean() for name in arms], height=0.6)
        axis.axvline(1, color=figures.ink(), lw=0.8, ls=":")
        axis.set(xlabel=f"{measure}, naive = 1")
    axes[0].invert_yaxis()
    return figure


alt = f"Bars: drift on noised drawings and on pure noise after {last} steps, the naive student's is 1. "
alt += "; ".join(f"{name} {' and '.join(f'{relative(name, m).mean():.2f}' for m in measures[2:])}" for name in arms)
figures.show(run, "drift", draw_drift, f"{alt}.")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
table = []
for name in arms:
    key = name.replace(",", "").replace(" ", "_")
    for measure in measures:
        share = measure in measures[:2]
        values = at_end(name, measure) if share else relative(name, measure)
        run.number(f"{key}_{measure.replace(' ', '_')}", Shares(values, p.seeds * p.samples) if share else values)
    table.append({"arm": name, **{m: run.text(f"{key}_{m.replace(' ', '_')}") for m in measures}})
run.number("steps", last)
run.table("last checkpoint", table, f"{p.samples} samples an arm and seed; drift over the naive student's")

# %% [markdown]
# ## Limits
# - One draw of the target: the order of the arms is shown, no interval decides it.
# - $\lambda$ is 1, ten times the paper's, as on the page of S2.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
