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
# # SDFT: translating images with a fine-tuned model
#
# ## Question
# A model of printed digits was fine-tuned on one hundred handwritten ones of five classes. It can now redraw a printed
# digit by hand: noise the input and sample back (SDEdit), guide the sampling with the input (ILVR, EGSDE), or go to
# noise and back with two models (DDIB, CycleDiffusion). Does the digit survive better when the model was fine-tuned
# with SDFT (Hur et al., WACV 2024)? And are samples of source and fine-tuned model from one noise pairs?
#
# ## Claim
# **S3** (supplement, Sec. 4). SDEdit, ILVR and EGSDE keep the input better with an SDFT model than with a naive one, at
# equal realism.
#
# **S5** (supplement, Sec. 1). Samples of source and SDFT model from one noise are aligned, as a DDIB translation is;
# naive fine-tuning aligns less.
#
# ## Method
# - **SDEdit**: $x_{t_0} = \sqrt{\bar\alpha_{t_0}}\,x + \sqrt{1 - \bar\alpha_{t_0}}\,\epsilon$, then sample down from
#   the start time $t_0$.
# - **ILVR**: sample from pure noise; after each step down to the time $t_0$,
#   $x_t \leftarrow x_t - \phi(x_t) + \phi(y_t)$, with the noised input $y_t$ and a low-pass $\phi$.
# - **EGSDE**: SDEdit from $t_0$; each mean moves by $-\beta_t/\sqrt{\alpha_t}$ times the gradient of
#   $\lambda_s \cos(E(x_t), E(y_t)) + \lambda_i \|\phi(x_t) - \phi(y_t)\|^2$, with $E$ the features of a noised
#   classifier of the two domains.
# - **DDIB**: DDIM backwards with the source model, then forwards with the student.
# - **CycleDiffusion**: the noises with which the source model would make the input, given to the student.
#
# A later start time gives a more handwritten picture that has less to do with the input, for any model. So we draw
# *digit kept* (share of inputs whose output shows the input's digit) against *realism* (share of outputs that a
# classifier takes for handwritten) over the start time, and compare students where their realism is equal: the
# difference of the two curves, averaged over the realism that both reach. Inputs are held-out printed digits of all ten
# classes. Students share images, order and noise; the control is a second naive student whose training saw the same
# images in another order, with other noise. A seed is a new draw of target images, inputs and all noise.
#
# For the pairs, both models decode one noise by deterministic DDIM. The source was trained for minutes, and what it
# predicts at the highest noise is not exact enough for that, so the noise is put in at a later time (`pair_start`),
# where next to nothing of an image is left, and every estimate of the clean image is clamped.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 20  # first seed; those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = ""  # folder of the source model in diffusers' layout; empty: the one that 50_source trained
source_steps: PositiveInt = 1600  # its training steps, if there is none yet
judge_steps: PositiveInt = 400  # training steps of the judge (digit and domain), if there is none yet
seeds: PositiveInt = 2  # draws of the target images
shots: PositiveInt = 100  # target images
lambda_sdft: PositiveFloat = 3.0  # weight of both terms of the SDFT student
checkpoints: list[PositiveInt] = [6, 12, 24, 48]  # fine-tuning steps at which pairs are sampled; it ends with the last
batch: PositiveInt = 16  # images a step
lr: PositiveFloat = 1e-4  # learning rate of AdamW; the paper has 2e-5
inputs: PositiveInt = 50  # printed digits to translate, equally many of each class
steps: PositiveInt = 16  # of a whole trajectory of SDEdit, ILVR and EGSDE; multiples of 8 hit all start times
starts: list[PositiveFloat] = [0.125, 0.25, 0.375, 0.5, 0.625]  # start times as shares of T; 0.5 and 0.625 must be in
eta: Annotated[float, Field(ge=0, le=1)] = 1.0  # randomness of their steps; 1 as in their authors' codes, 0 in SDFT's
lambda_i: NonNegativeFloat = 1.0  # EGSDE's weight of the low frequencies; the authors' 2 overshoots in 16 steps
classifier_steps: PositiveInt = 100  # training steps of EGSDE's noised classifier
classifier_lr: PositiveFloat = 1e-3  # its learning rate
pairs: PositiveInt = 60  # noises decoded by both models
pair_steps: PositiveInt = 16  # of a whole trajectory of DDIM; the paper has 40
pair_start: PositiveFloat = 0.75  # time of the pairs' noise and of DDIB's turn, as a share of T
iterations: PositiveInt = 3  # model calls a step on DDIB's way to noise
cycle_start: PositiveFloat = 0.85  # CycleDiffusion's start, as a share of T

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np

from lib.papers.sdft import experiments
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds import digits, sources

run = record.start("63_translate", globals())
p = run.parameters
world = sources.shared(p)
starts, checkpoints = experiments.starts(p), sorted(set(p.checkpoints))

# %%
# NBVAL_CHECK_OUTPUT
target = digits.limited(digits.handwritten(), n=100, seed=0)
held_out = digits.split(digits.printed())[1]
print(f"target: {len(target.labels)} handwritten digits of {target.labels.unique().tolist()}")
print(f"inputs: from {len(held_out.labels)} printed digits of {held_out.labels.unique().tolist()}")

# %% [markdown]
# `translations` does all of one seed: it fine-tunes the three students, lets source and student decode one noise at
# each checkpoint, translates the inputs with the five methods at every start time, and measures the outputs. A start
# time is the step of a trajectory nearest to its share of $T$: with 40 steps, 0.5 and 0.625 are the steps 20 and 25, as
# in the paper. Four controls come with it: SDEdit from time 0, the source's own round trip through DDIB, pairs of
# different noises, and the share of source samples that are unusable, that is farther from every training image of
# the source than any held-out printed digit.

# %%
found = run.replicates(experiments.translations, sources.shared)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
methods, others = ("SDEdit", "ILVR", "EGSDE"), ("DDIB", "CycleDiffusion")
students, measures = ("naive", "SDFT"), experiments.KEEPING
columns = [(method, name) for method in (*methods, *others) for name in students]
HALF = starts.index(0.5)


def column(method, name, measure, at=None):
    """One measure at every start time, (seeds, starts), or at one, (seeds,); methods with one setting have that."""
    values = found[f"{method} {name}"][..., measures.index(measure)]
    return values if at is None else values[:, at if method in methods else 0]


def mean(*chosen):
    """Mean of a column over the seeds."""
    return column(*chosen).mean(0)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_trade_off(measure="kept", label="share that keep the digit"):
    figure, axes = plt.subplots(1, 3, figsize=(7, 3), sharex=True, sharey=True)
    named = [HALF, starts.index(0.625)]
    for axis, method in zip(axes, methods, strict=True):
        for i, name in enumerate((*students, "naive again") if method == "SDEdit" else students):
            x, y = mean(method, name, "realism"), mean(method, name, measure)
            axis.plot(x, y, ("o-", "s-", "^:")[i], ms=4, color=f"C{i}", mfc=figures.paper(), label=name)
            axis.plot(x[named], y[named], "os^"[i], ms=4, color=f"C{i}")
        for marker, other in zip("PX", others, strict=True):
            for i, name in enumerate(students):
                point = mean(other, name, "realism"), mean(other, name, measure)
                axis.plot(*point, marker, color=f"C{i}", ms=6, label=f"{other}, {name}")
        axis.set(title=method, xlabel="realism")
    axes[0].set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def at_half(*chosen, of=methods):
    """Measures of both students at 0.5 T, in words."""
    ends = ((m, n, " / ".join(f"{mean(m, n, c, HALF):.2f}" for c in chosen)) for m in of for n in students)
    return "; ".join(f"{method}, {name} {values}" for method, name, values in ends)


# %% [markdown]
# ## Result
# ### Digit kept against realism
# Each line is a student, each dot a start time, from left to right as the start moves up; mean over seeds. Higher at
# the same realism is better. Filled marks are the start times 0.5 T and 0.625 T. DDIB and CycleDiffusion have one
# setting each and are single points, the same in the three panels.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = "Share of inputs that keep their digit against realism, one panel each for SDEdit, ILVR and EGSDE, one line a "
alt += f"student, dots at {len(starts)} start times from {starts[0]} T to {starts[-1]} T; DDIB and CycleDiffusion as "
alt += f"points. Realism / digits kept at 0.5 T: {at_half('realism', 'kept')}."
figures.show(run, "trade-off", draw_trade_off, alt)

# %% [markdown]
# The same for the distance to the input (root mean square over the pixels, ink +1, paper -1): lower is nearer.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = f"Distance to the input against realism, as in the figure before. At 0.5 T: {at_half('distance')}."
figures.show(run, "distance", lambda: draw_trade_off("distance", "distance to the input"), alt)

# %% [markdown]
# ### At equal realism
# The digits kept and the distance along SDFT's curve minus those along the naive one's, averaged over the realism that
# both reach, seed by seed; a seed on which they reach none in common has no value, and then the mean has none. The
# control is the second naive student in SDFT's place.


# %%
def gains(method, ours="SDFT", measure="kept"):
    """A measure, `ours` minus naive, at equal realism; (seeds,)."""
    columns = [0, measures.index(measure)]
    both = (found[f"{method} {name}"] for name in (ours, "naive"))
    return experiments.matched(*(curve[..., columns] for curve in both))


def gains_at(start):
    """Digits kept, SDFT minus naive, mean of the methods; (seeds,)."""
    naive, ours = (np.mean([column(m, n, "kept", starts.index(start)) for m in methods], axis=0) for n in students)
    return ours - naive


# %% jupyter={"source_hidden": true} tags=["hide-input"]
gained = {f"gain_{method.lower()}": gains(method) for method in methods}
gained["gain_naive_twice"] = gains("SDEdit", "naive again")
undefined = int(sum(np.isnan(values).sum() for values in gained.values()))
at_times = {"gain_half": gains_at(0.5), "gain_five_eighths": gains_at(0.625)}
for key, values in {**gained, **at_times, "undefined": undefined}.items():
    run.number(key, values)
for method in methods:
    run.number(f"gain_{method.lower()}_distance", gains(method, measure="distance"))
print(f"comparisons of one seed without common realism: {undefined} of {(len(methods) + 1) * p.seeds}")
run.claim("S3")

# %% [markdown]
# ### Classes seen and not seen
# At 0.5 T: digits kept among inputs of the five classes that the target images show, and of the five that they do not.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
table = []
for method, name in columns:
    key, texts = f"{method}_{name}".lower() + ("_500" if method in methods else ""), {}
    for measure in ("realism", "kept_seen", "kept_missing", "distance"):
        values = column(method, name, measure, HALF)
        run.number(f"{key}_{measure}", values if measure == "distance" else Shares(values, p.seeds * p.inputs))
        texts[measure] = run.text(f"{key}_{measure}")
    table.append({"method": method, "student": name, **texts})
run.table("at 0.5 T", table)

# %% [markdown]
# ### What comes out
# One input of each even class of the first seed, the first drawn, not selected (0, 2 and 4 are in the target images, 6
# and 8 are not); SDEdit, ILVR and EGSDE at 0.5 T.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
outputs = [found[f"{method} {name} images"][0, HALF if method in methods else 0] for method, name in columns]
grid = np.concatenate(np.stack([found["inputs"][0], *outputs], axis=1)[::2])  # (5 * 11, 1, size, size)
titles = ["input", *(f"{method.replace('Diffusion', '')}\n{name}" for method, name in columns)]
alt = "Five printed digits, 0, 2, 4, 6, 8, one a row, and their translations by five methods, each with the naive "
alt += f"and the SDFT student. Share of all inputs that keep their digit: {at_half('kept', of=(*methods, *others))}."
figures.show(run, "outputs", lambda: figures.image_grid(grid, len(titles), titles, cell=0.58), alt, "png")

# %% [markdown]
# ### The start time
# SDEdit of one input of each class; move the slider from light to heavy noise.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_start(i):
    """Inputs and SDEdit's outputs of both students at one start time."""
    shown = [found["inputs"][0], *(found[f"SDEdit {name} images"][0, i] for name in students)]
    return figures.image_grid(np.concatenate(shown), 10, row_labels=["input", *students], cell=0.5)


def words(i):
    kept = ", ".join(f"{name} {mean('SDEdit', name, 'kept', i):.2f}" for name in students)
    return f"SDEdit from {starts[i]} T: inputs and outputs. Share that keep the digit: {kept}."


frames = [(f"{start:g} T", lambda i=i: draw_start(i)) for i, start in enumerate(starts)]
figures.slider(run, "start", frames, "start time", [words(i) for i in range(len(starts))], start=len(starts) // 2)

# %% [markdown]
# ### Pairs from one noise
# Source and student decode one noise. Left: share of pairs that show one digit, against the student's realism, each
# dot a checkpoint of the fine-tuning. Right: the same over the fine-tuning steps.

# %%
pairs = {name: found[f"pairs {name}"] for name in students}
compared = {
    "gain_pairs": (pairs["SDFT"] - pairs["naive"])[:, -1, 1],
    "gain_pairs_matched": experiments.matched(pairs["SDFT"], pairs["naive"]),
    "gain_ddib": column("DDIB", "SDFT", "kept", 0) - column("DDIB", "naive", "kept", 0),
}


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_pairs():
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True)
    for marker, name in zip("os", students, strict=True):
        realism, agreement = pairs[name].mean(0).T
        axes[0].plot(realism, agreement, marker=marker, ms=4, label=name)
        axes[1].plot(checkpoints, agreement, marker=marker, ms=4)
    for axis, label in zip(axes, ("other noise", None), strict=True):
        axis.axhline(found["other_noise"].mean(), color=figures.ink(), lw=0.8, ls=":", label=label)
    axes[0].set(xlabel="realism of the student", ylabel="pairs that show one digit", ylim=(0, 1.02))
    axes[1].set(xlabel="fine-tuning steps")
    figure.legend(loc="outside right upper")
    return figure


for name in students:
    for k, key in ((1, f"pairs_{name.lower()}"), (0, f"pairs_{name.lower()}_realism")):
        run.number(key, Shares(pairs[name][:, -1, k], p.seeds * p.pairs))
ends = ", ".join(f"{n} {run.text(f'pairs_{n.lower()}')}" for n in students)
alt = f"Share of same-noise pairs that show one digit, against realism and over the steps. After {checkpoints[-1]} "
alt += f"steps: {ends}; pairs of different noises: {found['other_noise'].mean():.2f}."
figures.show(run, "pairs", draw_pairs, alt)

# %% [markdown]
# The first twelve noises of the first seed, not selected.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
labels = ["source", *students]
grid = np.concatenate([found[f"pairs {name} images"][0] for name in labels])
n = len(grid) // len(labels)
alt = f"Three rows of {n} digits, source, naive and SDFT student, a column from one noise. Share of "
alt += f"source samples farther from the training images than any held-out digit: {found['unusable'].mean():.2f}."
figures.show(run, "pair-samples", lambda: figures.image_grid(grid, n, row_labels=labels, cell=0.52), alt, "png")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
controls = {name: found[name] for name in ("other_noise", "round_trip")}
settings = {"pair_start": p.pair_start, "lambda_i": p.lambda_i, "checkpoint": checkpoints[-1]}
for key, values in {**compared, **controls, "unusable": found["unusable"], **settings}.items():
    run.number(key, values)
run.claim("S5")

# %% [markdown]
# ## Limits
# - Digits of 16 x 16 pixels stand in for faces. Whether the digit survives is one bit of what a person calls keeping
#   the input; the distance to the input is shown beside it, and falls with less change of any kind.
# - Realism and digit come from one classifier, which judges half-formed digits too. Near realism 1 the curves are
#   steep, and the comparison at equal realism there depends on few outputs.
# - One source model, one classifier of realism; the interval is over target images, inputs and noise. With few seeds it
#   is wide, and a gain may be real although its interval includes zero.
# - Numbers of steps, start times and the classifier's training were chosen on seeds from 1000 upwards; the low-pass
#   and EGSDE's weight of the features are the authors', carried over to this image size.
# - EGSDE's classifier is small and briefly trained; it tells the domains apart at low and medium noise only.
# - At equal steps the students differ in realism, and a less handwritten DDIB output keeps its digit more easily: only
#   the comparison at equal realism is free of that.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
