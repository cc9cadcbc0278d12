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
# # SDFT: editing an attribute in h-space
#
# ## Question
# Asyrp (Kwon et al., ICLR 2023) edits an image by adding a direction to the middle layer of a frozen diffusion
# model. Does an edit on a model fine-tuned by SDFT succeed more often, and keep more of the image, than the same edit
# on a naively fine-tuned one?

# %% [markdown]
# ## Claim
# **S4** (Supplement, Sec. 5, Figs. 5-6). Text-guided editing works better on an SDFT model and keeps identity.

# %% [markdown]
# ## Method
# A hook adds $c\,\Delta h_t$ to $h_t$, the output of the U-Net's middle block. Only the predicted clean image feels it:
#
# $$x_{t-1} = \sqrt{\bar\alpha_{t-1}}\, P_t(\tilde\epsilon) + \sqrt{1 - \bar\alpha_{t-1}}\; \epsilon, \qquad
# P_t(\tilde\epsilon) = \frac{x_t - \sqrt{1 - \bar\alpha_t}\,\tilde\epsilon}{\sqrt{\bar\alpha_t}},$$
#
# with $\tilde\epsilon$ the noise predicted with the edit, $\epsilon$ without. Steps with $t \ge 500$ are edited, as in
# SDFT; the inputs are real images inverted by DDIM with the edited model itself, up to $t = 700$, where little of the
# image is left.
#
# - *Models.* Naive and SDFT copies of the printed-digit source, fine-tuned on the same hundred handwritten digits of
#   five classes (as in the notebook on fine-tuning). A seed is a new draw of everything.
# - *Attribute.* Digits that lean to the right: slant, from the second moments of the ink. It replaces the paper's
#   expressions and ages, and a classifier $g$ replaces CLIP. The wanted slant is that of the upper third of all
#   handwritten digits.
# - *Direction.* The claim is judged by the **learned** one, declared before the runs: a block $\Delta h = f(h, t)$
#   trained on the hundred target images with $-\log\sigma(g(P_t)) + \lambda_{L1} |P_t^{edit} - P_t|_1$, one update a
#   timestep. Beside it stands the training-free **mean difference** of $h_t$ with and without the attribute.
# - *Inputs.* Held-out handwritten digits with less than the median slant, of all ten classes, so also of those that
#   the models were not fine-tuned on.
# - *Success*: a second classifier, of another size, seed and training, says "leans right", *and* the slant itself is
#   past the threshold. *Preserved*: the digit classifier sees the digit that the input is labelled with.

# %% tags=["parameters"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 20  # first seed; those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = ""  # folder of the source model in diffusers' layout; empty: the one that 50_source trained
source_steps: PositiveInt = 1600  # its training steps, if there is none yet
judge_steps: PositiveInt = 400  # training steps of the digit classifier, if there is none yet
seeds: PositiveInt = 5  # draws of target images, inputs and all noise
shots: PositiveInt = 100  # target images
tuning_steps: PositiveInt = 48  # fine-tuning steps of both models
lambda_sdft: PositiveFloat = 3.0  # weight of both terms of SDFT
batch: PositiveInt = 16  # images a step, of the fine-tuning and of the learned direction
lr: PositiveFloat = 1e-4  # learning rate of the fine-tuning
inputs: PositiveInt = 50  # held-out images edited
steps: PositiveInt = 20  # of the whole DDIM trajectory
start: PositiveInt = 700  # timestep at which inversion stops and editing starts; a multiple of 1000 / steps
t_edit: NonNegativeInt = 500  # smallest timestep that is edited; the paper's 0.5 T
walks: PositiveInt = 12  # trajectories on which the direction is learned, a batch each
lambda_l1: NonNegativeFloat = 10.0  # keeps the edited image near; the official code has 3
lr_delta: PositiveFloat = 3e-3  # learning rate of Adam for the direction
strengths: list[NonNegativeFloat] = [0.0, 0.5, 1.0, 1.5]  # c of the learned direction; 0 and 1 are always among them
strengths_mean: list[NonNegativeFloat] = [4.0]  # c of the mean difference, beside 0
classifier_steps: PositiveInt = 300  # training steps of each attribute classifier

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.functional import gaussian_blur
from tqdm.auto import tqdm

from lib.measures import distances as image_metrics
from lib.ground import diffusion, nets
from lib.papers.baselines import asyrp
from lib.papers.sdft import method as sdft
from lib.record import figures, run as record
from lib.worlds import digits as data, judge as metrics
from lib.worlds.sources import shared

run = record.start("64_asyrp", globals())
p = run.parameters

# %%
unet, schedule, judge = shared(run.artefacts, p.source, p.source_steps, p.judge_steps, run.device)
training, held_out = data.split(data.handwritten(judge.size))
strengths = sorted({0.0, 1.0, *p.strengths})
ZERO, ONE = strengths.index(0.0), strengths.index(1.0)

# %% [markdown]
# The attribute: how far an upright leans to the right, as a share of its height.


# %%
def slant(images):
    """Horizontal shift of the ink for a unit of height, from the second moments; positive leans right, (n,)."""
    ink = (images.clamp(-1, 1)[:, 0] + 1) / 2  # (n, size, size)
    axis = torch.arange(images.shape[-1], dtype=ink.dtype, device=ink.device)
    share = ink / ink.sum((1, 2), keepdim=True).clamp(min=1e-6)
    x, y = axis - (share * axis).sum((1, 2)).view(-1, 1, 1), axis - (share.sum(2) @ axis).view(-1, 1)
    covariance = (share * x * y[:, :, None]).sum((1, 2))
    return -covariance / (share.sum(2) * y**2).sum(1).clamp(min=1e-6)  # rows count downwards, hence the sign


slants = slant(training.images)
low, wanted = slants.quantile(1 / 2), slants.quantile(2 / 3)

# %%
# NBVAL_CHECK_OUTPUT
bar = -torch.ones(1, 1, 16, 16)
for row in range(16):
    bar[0, 0, row, 11 - row // 2] = 1  # two rows down, one column to the left
print(f"slant of a bar that leans one in two: {slant(bar).item():.2f}, mirrored: {slant(bar.flip(3)).item():.2f}")
print(f"edited steps of the default walk: {[t for t, _ in diffusion.trajectory(schedule, 20, 700) if t >= 500]}")

# %% [markdown]
# Two classifiers of the attribute. The first steers the learned direction; half of its training images are blurred like
# a $P_t$ of high noise. The second only judges.


# %%
def attribute_classifier(width, seed, blurred):
    """Train a small network on noisy handwritten digits; return its logit as a function of images."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.SiLU(), nn.Linear(width, 1)).to(run.device)
    net(training.images[:1].to(run.device))  # the lazy layer reads its size
    rule, generator = torch.optim.AdamW(net.parameters(), lr=3e-3), torch.Generator().manual_seed(seed)
    for i in range(p.classifier_steps):
        index = torch.randint(len(slants), (64,), generator=generator)
        x, strength, width_of_blur = training.images[index], *torch.rand(2, generator=generator).tolist()
        x = gaussian_blur(x, 9, 0.3 + 1.5 * width_of_blur) if blurred and i % 2 else x
        x = x + 0.2 * strength * torch.randn(x.shape, generator=generator)
        answer = (slants[index] > wanted).float().to(run.device)
        loss = F.binary_cross_entropy_with_logits(net(x.to(run.device))[:, 0], answer)
        rule.zero_grad()
        loss.backward()
        rule.step()
    net.requires_grad_(False)
    return lambda images: net(images)[:, 0]


# %%
def succeeded(logit, images):
    """Whether each image leans right, for the second classifier and by its slant."""
    return (logit(images) > 0) & (slant(images) > wanted)


def shares(images, labels, logit):
    """Success, preserved digit and realism of edited images; preserved digit among the missing classes."""
    verdicts, missing = metrics.judge(judge, images), ~torch.isin(labels, torch.tensor(data.KEPT))
    same = (verdicts.digit == labels).float()
    success = succeeded(logit, images.clamp(-1, 1)).float().mean().item()
    return [success, same.mean().item(), metrics.realism(verdicts), same[missing].mean().item()]


# %%
how = {"steps": p.steps, "start": p.start, "t_edit": p.t_edit}


def invert(net, images):
    """Images at level `start`, by DDIM with `net`."""
    return diffusion.invert_ddim(nets.eps_model(net), schedule, images, p.steps, stop=p.start)


def learn(net, images, noisy, logit, seed):
    """Learn the direction of a right slant on `images`."""
    rule = {"optimizer": lambda weights: torch.optim.Adam(weights, lr=p.lr_delta), "walks": p.walks, "batch": p.batch}
    more = {"noisy": noisy, "lambda_l1": p.lambda_l1, "seed": seed, "progress": False}
    return asyrp.learn(net, schedule, images, asyrp.toward(logit), **rule, **more, **how)[0]


def mean_difference(net, digits, noisy):
    """The direction without training; the two halves hold the same digits."""
    values = slant(digits.images)
    middle = torch.stack([values[digits.labels == k].median() if k in digits.labels else values[0] for k in range(10)])
    return asyrp.mean_difference(net, schedule, noisy, values > middle[digits.labels], **how)


# %% [markdown]
# One model on one draw: the edit at every strength, the mean difference, and the direction that was learned on the
# source.


# %%
def run_model(net, target, test, logits, of_source, seed):
    """Shares of every edit (strengths or one row, measures) by name, and the edited pictures."""
    noisy, noisy_target = (invert(net, x.to(run.device)) for x in (test.images, target.images))
    learned = learn(net, target.images.to(run.device), noisy_target, logits[0], seed)
    directions = {
        "learned": (learned, strengths),
        "mean difference": (mean_difference(net, target, noisy_target), p.strengths_mean),
        "random": (asyrp.random_like(learned, seed), [1.0]),
        "from the source": (of_source, [1.0]),
    }
    plain = diffusion.sample_ddim(nets.eps_model(net), schedule, noisy, p.steps, start=p.start)
    pictures = {k: asyrp.sweep(net, schedule, noisy, d, c, **how) for k, (d, c) in directions.items()}
    measured = {k: np.array([shares(x, test.labels, logits[1]) for x in stack]) for k, stack in pictures.items()}
    return measured, pictures["learned"].cpu(), (pictures["learned"][ZERO] - plain).abs().max().item()


# %%
printed = data.limited(data.printed(judge.size), p.shots, range(10), seed=0)
upright = torch.nonzero(slant(held_out.images) < low).flatten()


def run_seed(seed, of_source, bar):
    """Both models on one draw of target images and inputs, and the inputs themselves."""
    generator = torch.Generator().manual_seed(seed)
    test = data.select(held_out, upright[torch.randperm(len(upright), generator=generator)[: p.inputs]])
    target = data.limited(training, p.shots, seed=seed)
    logits = attribute_classifier(64, seed, True), attribute_classifier(32, seed + 500, False)
    models = {}
    for name, weight in {"naive": 0.0, "SDFT": p.lambda_sdft}.items():
        settings = {"batch": p.batch, "lr": p.lr, "seed": seed, "lambda_distill": weight, "lambda_aux": weight}
        net, _ = sdft.finetune(unet, schedule, target.images.to(run.device), p.tuning_steps, progress=False, **settings)
        models[name] = run_model(net, target, test, logits, of_source, seed)
        bar.update()
    return models, test


# %%
images = printed.images.to(run.device)
of_source = learn(unet, images, invert(unet, images), attribute_classifier(64, p.seed, True), p.seed)
with tqdm(total=2 * p.seeds, desc="models") as bar:
    runs = [run_seed(s, of_source, bar) for s in run.seed_list]
names = ("naive", "SDFT")
measures = ("success", "preserved", "realism", "preserved, missing classes")


def values(name, direction):
    """Measures of one model and direction, (seeds, strengths, measures)."""
    return np.array([models[name][0][direction] for models, _ in runs])


# %% [markdown]
# ## Result
# ### Success against preservation
# Each dot is a strength $c$; a stronger edit succeeds more often and loses more digits. Higher at the same preservation
# is better.


# %% tags=["hide-input"]
def draw_trade_off():
    figure, axis = plt.subplots(figsize=(6, 3.4))
    for k, name in enumerate(names):
        for direction, style, marker in (("learned", "-", "o"), ("mean difference", "--", "s")):
            curve = values(name, direction).mean(0)
            if direction == "mean difference":
                curve = np.concatenate([values(name, "learned").mean(0)[ZERO : ZERO + 1], curve])
            axis.plot(curve[:, 1], curve[:, 0], style, marker=marker, ms=4, color=f"C{k}", label=f"{name}, {direction}")
        for direction, marker in (("random", "x"), ("from the source", "*")):
            x = values(name, direction)[:, 0].mean(0)
            axis.plot(x[1], x[0], marker, ms=7, color=f"C{k}", label=f"{name}, {direction}, c = 1")
    axis.set(xlabel="preserved: share that keep their digit", ylabel="success: share that lean right")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


# %%
at_one = {name: values(name, "learned")[:, ONE].mean(0) for name in names}
ends = "; ".join(f"{name} {v[0]:.2f} / {v[1]:.2f}" for name, v in at_one.items())
figures.show(
    run,
    "trade-off",
    draw_trade_off,
    alt="Success of the edit against the share of preserved digits, one line a model and direction, dots at the "
    f"strengths. Learned direction at strength 1, success / preserved: {ends}.",
)

# %% [markdown]
# ### Over the strength
# The first inputs of the first seed, not selected. Upper rows: the naive model; lower rows: SDFT.

# %%
SHOWN = 8
first = {name: runs[0][0][name][1] for name in names}
originals = runs[0][1].images[:SHOWN]


def draw_strength(k):
    """Inputs, and the edits of both models at one strength."""
    rows = torch.cat([originals, first["naive"][k, :SHOWN], first["SDFT"][k, :SHOWN]])
    return figures.image_grid(rows, ncols=len(originals), row_labels=["input", *names], cell=0.55)


frames = [(f"{c:g}", lambda k=k: draw_strength(k)) for k, c in enumerate(strengths)]
success = [{name: values(name, "learned")[0, k, 0] for name in names} for k in range(len(strengths))]
words = [
    f"strength {c:g}: success {v['naive']:.2f} naive, {v['SDFT']:.2f} SDFT"
    for c, v in zip(strengths, success, strict=True)
]
figures.slider(run, "strength", frames, "strength", alt=words)

# %%
columns = torch.cat([originals[:, None], first["naive"].movedim(1, 0)[:SHOWN], first["SDFT"].movedim(1, 0)[:SHOWN]], 1)
titles = ["input", *(f"naive\n{c:g}" for c in strengths), *(f"SDFT\n{c:g}" for c in strengths)]
figures.show(
    run,
    "edits",
    lambda: figures.image_grid(columns.flatten(0, 1), ncols=len(titles), titles=titles, cell=0.55),
    alt=f"{len(originals)} inputs in rows, then the edits by the naive and by the SDFT model at strengths "
    f"{', '.join(f'{c:g}' for c in strengths)}. Success / preserved at strength 1, all seeds: {ends}.",
    kind="png",
)

# %% [markdown]
# ### In numbers
# Mean over seeds. *From the source*: the direction was learned on the unadapted source model with printed digits and
# added to the copies as it is; what it still does there shows how much of the source's h-space survived.

# %%
rows = []
for name in names:
    for direction, row in (("learned", ZERO), ("learned", ONE), ("random", 0), ("from the source", 0)):
        v = values(name, direction)[:, row]  # (seeds, measures)
        label = "unedited" if direction == "learned" and row == ZERO else direction
        rows.append({"model": name, "direction": label, **dict(zip(measures, v.mean(0).tolist(), strict=True))})
        for k, measure in enumerate(("success", "preserved", "realism", "missing")):
            run.number(f"{name}_{label}_{measure}".lower().replace(" ", "_"), v[:, k])
    for k, c in enumerate(p.strengths_mean):
        v = values(name, "mean difference")[:, k].mean(0)
        rows.append(
            {"model": name, "direction": f"mean difference, c = {c:g}", **dict(zip(measures, v.tolist(), strict=True))}
        )
run.table("edits at strength 1", rows)


# %% [markdown]
# ### At equal preservation
# SDFT's curve minus the naive one's, averaged over the preservation that both reach, seed by seed.


# %%
def gain_matched(direction):
    """Success minus the naive model's at the same share of preserved digits, one value a seed."""
    curves = {n: torch.tensor(values(n, direction)[:, :, [1, 0]]) for n in names}  # (seeds, strengths, 2)
    return [image_metrics.gain_at_equal_realism(a, b) for a, b in zip(curves["SDFT"], curves["naive"], strict=True)]


ours, naive = values("SDFT", "learned"), values("naive", "learned")  # (seeds, strengths, measures)
matched = gain_matched("learned")
print("success gained at equal preservation, learned direction:", run.number("gain_matched", matched))
source_gain = values("SDFT", "from the source")[:, 0, 0] - values("naive", "from the source")[:, 0, 0]
print("success gained with the source's direction:", run.number("gain_source", source_gain))
for name in ("inputs", "start", "t_edit", "lambda_l1", "lambda_sdft"):
    run.number(name, getattr(p, name))

# %%
run.claim(
    "S4",
    gain_matched=matched,
    gain_success=ours[:, ONE, 0] - naive[:, ONE, 0],
    gain_preserved=ours[:, ONE, 1] - naive[:, ONE, 1],
    edited=ours[:, ONE, 0] - ours[:, ZERO, 0],
    random_direction=values("SDFT", "random")[:, 0, 0] - ours[:, ZERO, 0],
    strength_zero=max(models[name][2] for models, _ in runs for name in names),
)

# %% [markdown]
# ## Limits
# - A lean to the right, judged on 16 x 16 digits, stands in for expressions and ages of faces judged by CLIP. The lean
#   is a coarse, low-frequency attribute and easy for any model; a fine one may behave otherwise.
# - The attribute (stroke weight was tried, too), the variant that carries the claim, $\lambda_{L1}$, the learning rate,
#   the range of timesteps and the strengths were chosen on seeds from 1000 upwards, which no reported run uses.
# - The official code splits the U-Net and runs its encoder once a step; ours calls the whole U-Net twice, which gives
#   the same numbers. Its quality boosting (noise at the last steps) is in the library and off here, because its noise
#   would blur a comparison of two models.
# - The interval is over draws of the target images, inputs and classifiers, with one source model and one digit
#   classifier.

# %%
run.finish()
