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
# # SDFT: fine-tuning on a hundred biased images
#
# ## Question
# A diffusion model knows ten printed digits. It is fine-tuned on one hundred handwritten ones, and five of the ten
# classes are missing from them. What is left of the five classes afterwards, and does holding the model near its
# source (Self-Distillation based Fine-Tuning, SDFT; Hur et al., WACV 2024) keep more of them at the same realism?
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
# with the source $\epsilon_\phi$ frozen and the student $\epsilon_\theta$ a copy of it. Six arms per seed see the
# same images, timesteps and noises in the same order, and are sampled with the same noises, at the start and at every
# step (ancestral sampling with one seed, as the authors' sampling script does). A seed is a new draw of the hundred
# images and new randomness everywhere. A classifier of digit and domain gives, at several checkpoints of each run:
#
# - *realism*: share of samples that it takes for handwritten;
# - *agreement*: share of samples with the same digit as the source's sample from the same noise;
# - *coverage*: share of samples that are handwritten and show one of the five missing digits;
# - *Frechet distance* to all 1,797 handwritten digits, missing classes included, in the classifier's features.
#
# Every method can trade agreement for realism by training longer, so one point says little. We draw agreement against
# realism over the training steps, and compare both at equal steps and at equal realism. At this size (a small
# network, some dozens of steps) the paper's $\lambda = 0.1$ has little effect; our SDFT arm uses a larger one, chosen
# on seeds from 1000 upwards, which this notebook's runs do not use. The paper's value is shown as its own arm.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 10  # first seed; 0 to 2 and those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = ""  # folder of the source model in diffusers' layout; empty: the one that 50_source trained
source_steps: PositiveInt = 1600  # its training steps, if there is none yet
judge_steps: PositiveInt = 400  # training steps of the classifier, if there is none yet
seeds: PositiveInt = 2  # draws of the target images
shots: PositiveInt = 100  # target images
lambda_sdft: PositiveFloat = 3.0  # weight of both terms in the SDFT arms
lambdas_more: list[PositiveFloat] = [0.1]  # weights of further arms with both terms; 0.1 is the paper's
gamma_distill: NonNegativeFloat = 3.0
gamma_aux: NonNegativeFloat = 50.0
checkpoints: list[PositiveInt] = [6, 12, 24, 48]  # steps at which a run is sampled; it ends with the last
batch: PositiveInt = 16  # images a step
lr: PositiveFloat = 1e-4  # learning rate of AdamW; the paper has 2e-5
samples: PositiveInt = 100  # images sampled at each checkpoint
sampling_steps: PositiveInt = 20  # of ancestral sampling

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import torch

from lib.ground import nets
from lib.measures import distances
from lib.papers.sdft import experiments, method as sdft
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds import digits, sources

run = record.start("60_finetune", globals())
p = run.parameters
world = sources.shared(p)
unet, schedule, judge = world

# %% [markdown]
# The target, and the loss on one batch of it. Before the first step the student is the source, so that nothing but the
# plain term is there; the two others grow as the student moves away.

# %%
# NBVAL_CHECK_OUTPUT
target = digits.limited(digits.handwritten(judge.size), n=100, seed=0)
print(f"classes in {len(target.labels)} images: {target.labels.unique().tolist()}")
x0, eps = target.images.to(run.device), torch.randn(target.images.shape)
t = torch.randint(schedule.T, (len(x0),)).to(run.device)
source = student = nets.eps_model(unet)
total, parts = sdft.loss(student, source, schedule, x0, t, eps.to(x0))
print({name: f"{parts[name]:.2f}" for name in ("distill", "aux")})

# %% [markdown]
# The arms differ in their two $\lambda$ and $\gamma$ only: *naive* has neither term, *distill* and *aux* have one of
# them, *SDFT* has both, *gamma 0* has both with a constant weight (the control, which should not learn the new domain),
# and the others are SDFT with another $\lambda$. `limited_data` fine-tunes them all on one draw of the target and
# measures them at each checkpoint.

# %%
arms = experiments.arms(p)
found = run.replicates(experiments.limited_data, sources.shared)  # an arm: (seeds, checkpoints, measures)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
measures, checkpoints = experiments.SHARES, sorted(set(p.checkpoints))
keys = {name: name.lower().replace(", ", "_").replace(" ", "_").replace(".", "") for name in arms}  # e.g. sdft_01


def mean(name, measure):
    """Mean over seeds of one measure at every checkpoint."""
    return found[name][..., measures.index(measure)].mean(0)


def at_end(*chosen):
    """Measures of every arm at the last checkpoint, in words."""
    return "; ".join(f"{name} {' / '.join(f'{mean(name, m)[-1]:.2f}' for m in chosen)}" for name in arms)


def draw_trade_off():
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for marker, name in zip("osD^vPX*", arms, strict=False):
        axis.plot(mean(name, "realism"), mean(name, "agreement"), marker=marker, ms=4, label=name)
    axis.set(xlabel="realism: share taken for handwritten", ylabel="agreement with the source")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_steps():
    figure, axes = plt.subplots(2, 2, figsize=(7, 4.6), sharex=True)
    for axis, measure in zip(axes.flat, measures, strict=True):
        for marker, name in zip("osD^vPX*", arms, strict=False):
            values = [mean("source", measure), *mean(name, measure)]
            axis.plot([0, *checkpoints], values, marker=marker, ms=3.5, label=name)
        axis.set(title=measure, ylim=(0, None), ylabel="distance" if measure == "frechet" else "share of samples")
    for axis in axes[1]:
        axis.set_xlabel("fine-tuning steps")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure


# %% [markdown]
# ## Result
# ### Agreement against realism
# Each line is an arm, each dot a checkpoint; training goes from left to right. Higher at the same realism is better.
# The unadapted source sits in the upper left corner, with no realism and full agreement.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = "Agreement with the source against realism, one line an arm, dots at its checkpoints. "
alt += f"After {checkpoints[-1]} steps, realism / agreement: {at_end('realism', 'agreement')}."
figures.show(run, "trade-off", draw_trade_off, alt)

# %% [markdown]
# ### Over the training steps
# The source before fine-tuning is step 0.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = f"Four measures over the steps. After {checkpoints[-1]} steps, coverage of the missing digits / Frechet "
alt += f"distance to all handwritten digits: {at_end('coverage', 'frechet')}."
figures.show(run, "steps", draw_steps, alt)

# %% [markdown]
# ### Samples from equal noise
# The first eight noises of the first seed, not selected, at the last checkpoint: a row is one initial noise.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
pictures, titles = found["samples"][0], ["source", *arms]  # (noises, source and arms, ...)
alt = f"{len(pictures)} rows of digits, each row from one initial noise; columns {', '.join(titles)}. Share of "
alt += f"samples that keep the source's digit: {at_end('agreement')}."
figures.show(run, "samples", lambda: figures.image_grid(np.concatenate(pictures), len(titles), titles), alt, "png")

# %% [markdown]
# ### At equal steps and at equal realism
# The measures at the last checkpoint; and each arm's curve minus the naive one's, averaged over the realism that both
# reach between their checkpoints, seed by seed.

# %%
matched = {name: experiments.matched(found[name][..., :2], found["naive"][..., :2]) for name in arms if name != "naive"}
gain = found["SDFT"][:, -1] - found["naive"][:, -1]  # (seeds, measures)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
table = []
for name, key in {"source": "source", **keys}.items():
    last = found[name] if name == "source" else found[name][:, -1]  # (seeds, measures)
    for measure, values in zip(measures, last.T, strict=True):
        run.number(f"{key}_{measure}", values if measure == "frechet" else Shares(values, p.seeds * p.samples))
    if name in matched:
        run.number(f"matched_{key}", matched[name])
    gained = run.text(f"matched_{key}") if name in matched else ""
    table.append({"arm": name, **{m: run.text(f"{key}_{m}") for m in measures}, "agreement gained": gained})
sets = {"samples an arm and seed": p.samples, "handwritten digits": len(digits.handwritten().labels)}
note = distances.protocol("Frechet distance by clean-fid", sets, "64 of the digit classifier")
run.table("last checkpoint", table, note)
gains = {"gain_agreement": gain[:, 1], "gain_coverage": gain[:, 2], "gain_quality": -gain[:, 3]}
settings = {"lambda_sdft": p.lambda_sdft, "lr": p.lr, "steps": checkpoints[-1]}
for key, values in {"gain_realism": gain[:, 0], **gains, **settings}.items():
    run.number(key, values)
run.claim("S2")

# %% [markdown]
# ## Limits
# - Digits of 16 x 16 pixels and a small network stand in for faces of 256 x 256; steps are counted in dozens instead
#   of thousands, with a learning rate to match. Numbers do not transfer; the direction of an effect may.
# - The interval is over draws of the target images and of all noise, with one source model and one classifier. With
#   few seeds it is wide, and a gain may be real although its interval includes zero.
# - The classifier judges blurred or half-formed digits too, and says printed or handwritten where a person would say
#   neither.
# - $\lambda$, the learning rate and the number of steps were chosen for this size, on a seed that is not reported. A
#   first run on seeds 0 to 2 sampled without clamping, which left many pictures as noise; the clamping and the first
#   seed were changed after it, the claim's tolerances were not.
# - One fixed set of missing classes.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
