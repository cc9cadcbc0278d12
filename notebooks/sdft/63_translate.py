# ---
# jupyter:
#   companion:
#     needs:
#     - 60_finetune
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SDFT: translating pictures with a fine-tuned model
#
# ## Question
# A model of Noto's emoji was fine-tuned on a hundred yellow faces and people by Twemoji. It can now redraw a Noto
# picture in Twemoji's way: noise the input and sample back (SDEdit), guide the sampling with the input (ILVR, EGSDE),
# or go to noise and back with two models (DDIB, CycleDiffusion). Does what the picture shows survive better when the
# model was fine-tuned with SDFT (Hur et al., WACV 2024)? And are samples of source and fine-tuned model from one
# noise pairs?
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
# The right answer is known: Twemoji's own drawing of the same emoji, the *partner*. Inputs are drawings of the test
# part, of which neither drawing was seen in any training. Of every output we ask
#
# - *realism*: does a small classifier of our own take it for Twemoji's?
# - *partner found*: of Twemoji's 123 plain drawings of the test part, is the partner among the five most alike, in the
#   features of a network that nobody here trained? Chance is .04; *first* counts only the most alike;
# - *distance to the truth* and *to the input*: root mean square over the pixels.
#
# A later start time gives a more realistic picture that has less to do with the input, for any model. So students are
# compared at the paper's two start times, 0.5 T and 0.625 T, and where their realism is equal: the difference of the
# two curves over the start time, averaged over the realism that both reach. Students share pictures, order and noise;
# the control is a second naive student that saw the same pictures in another order. The low-pass is coarse enough not
# to hand over the answer: what it leaves of an input is judged beside the outputs.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Share = Annotated[float, Field(gt=0, lt=1)]
profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 100  # first seed, the same as of 60_finetune; those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = "noto"  # source model: a name in models/, or a folder in diffusers' layout
seeds: PositiveInt = 1  # draws of the target pictures
shots: PositiveInt = 100  # target pictures; this and what follows up to `lr` as in 60_finetune, whose students serve
lambda_sdft: PositiveFloat = 1.0
gamma_distill: NonNegativeFloat = 3.0
gamma_aux: NonNegativeFloat = 50.0
checkpoints: list[PositiveInt] = [8, 40, 180]
batch: PositiveInt = 16
lr: PositiveFloat = 3e-5
inputs: PositiveInt = 24  # pictures translated
steps: PositiveInt = 24  # of a whole trajectory; the paper has 40
eta: NonNegativeFloat = 1.0  # 1: ancestral steps, as the three methods have them; 0: as SDFT's code
starts: list[Share] = [0.0834, 0.25]  # start times as shares of T; the paper's two are always among them
left: PositiveInt = 4  # side of what the low-pass leaves
lambda_i: NonNegativeFloat = 0.5  # EGSDE's weight of the low frequencies; the authors have 2 with 1,000 steps
classifier_steps: PositiveInt = 200  # training steps of EGSDE's classifier
classifier_batch: PositiveInt = 32
classifier_lr: PositiveFloat = 1e-3
told_at: Share = 0.25  # where that classifier is judged
iterations: PositiveInt = 2  # of the implicit equation of each step backwards in DDIB
cycle_start: Share = 0.85  # start of CycleDiffusion
pairs: PositiveInt = 32  # pairs from one noise

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np

from lib.ground.diffusion import linear
from lib.papers.sdft import on_emoji, students as fine_tuned
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds import emoji_measures

run = record.start("63_translate", globals())
p = run.parameters
starts = on_emoji.starts(p)

# %% [markdown]
# What a start time leaves of the input, as a share of the variance:

# %%
# NBVAL_CHECK_OUTPUT
print({f"{t / 1000:g} T": f"{linear().alpha_bar[t]:.3f}" for t in (250, 375, 500, 625)})

# %% [markdown]
# `translations` does all of one seed: it takes the three students, trains EGSDE's classifier, translates the inputs by
# the five methods, and lets source and student decode one noise by deterministic DDIM. A start
# time is a step of the trajectory: with 24 steps, 0.5 and 0.625 are the steps 12 and 15.

# %%
found = run.replicates(on_emoji.translations, own=fine_tuned.trained)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
methods, others = on_emoji.GUIDED, ("DDIB", "CycleDiffusion")
students, measures = fine_tuned.ARMS[:2], emoji_measures.TRANSLATED
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
def draw_trade_off(measure="partner5", label="partner found"):
    figure, axes = plt.subplots(1, 3, figsize=(7, 3), sharex=True, sharey=True)
    named = [HALF, starts.index(0.625)]
    for axis, method in zip(axes, methods, strict=True):
        for i, name in enumerate(fine_tuned.ARMS if method == "SDEdit" else students):
            x, y = mean(method, name, "realism"), mean(method, name, measure)
            axis.plot(x, y, ("o-", "s-", "^:")[i], ms=4, color=f"C{i}", mfc=figures.paper(), label=name)
            axis.plot(x[named], y[named], "os^"[i], ms=4, color=f"C{i}")
        for marker, other in zip("PX", others, strict=True):
            for i, name in enumerate(students):
                point = mean(other, name, "realism"), mean(other, name, measure)
                axis.plot(*point, marker, color=f"C{i}", ms=6, label=f"{other}, {name}")
        for style, known in ((":", "input"), ("--", "filtered")):
            level = found[known][:, measures.index(measure)].mean()
            axis.axhline(
                level, color=figures.ink(), lw=0.8, ls=style, label=f"the {known}" + " input" * (style == "--")
            )
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
# ### What comes out
# The first inputs of the first seed, not selected; SDEdit, ILVR and EGSDE from 0.5 T. The last column is the truth.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
outputs = [found[f"{method} {name} images"][0, HALF if method in methods else 0] for method, name in columns]
grid = np.concatenate(np.stack([found["input images"][0], *outputs, found["truth images"][0]], axis=1)[:8])
titles = ["input", *(f"{method.replace('Diffusion', '')}\n{name}" for method, name in columns), "truth"]
alt = "Eight Noto drawings, a row each, their translations by five methods with the naive and the SDFT student, and "
alt += f"Twemoji's drawing. Share of all inputs whose partner is found: {at_half('partner5', of=(*methods, *others))}."
figures.show(run, "outputs", lambda: figures.image_grid(grid, len(titles), titles, cell=0.58), alt, "png")

# %% [markdown]
# ### The partner found, against realism
# Each line is a student, each dot a start time, from left to right as the start moves up; mean over seeds. Higher at
# the same realism is better. Filled marks are the start times 0.5 T and 0.625 T. DDIB and CycleDiffusion have one
# setting each and are single points, the same in the three panels. The lines are what is found from the input as it is,
# and from what the low-pass leaves of it.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = "Share of inputs whose partner is found against realism, one panel each for SDEdit, ILVR and EGSDE, one line a "
alt += f"student, dots at {len(starts)} start times from {starts[0]} T to {starts[-1]} T; DDIB and CycleDiffusion as "
alt += f"points. Realism / partner found at 0.5 T: {at_half('realism', 'partner5')}."
figures.show(run, "trade-off", draw_trade_off, alt)

# %% [markdown]
# The same for the distance to the truth (root mean square over the pixels, from -1 to 1): lower is nearer.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
alt = f"Distance to Twemoji's own drawing against realism, as in the figure before. At 0.5 T: {at_half('truth')}."
figures.show(run, "distance", lambda: draw_trade_off("truth", "distance to the truth"), alt)

# %% [markdown]
# ### In numbers
# At 0.5 T, with what is known: the truth, the input as it is, what the low-pass leaves of it, and another drawing.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
table = []
known = {name: found[name].T for name in ("truth", "input", "filtered", "other")}
rows = {f"{method}, {name}": [column(method, name, m, HALF) for m in measures] for method, name in columns}
for name, values in {**known, **rows}.items():
    key, texts = name.lower().replace(", ", "_"), {}
    for measure, one in zip(measures, values, strict=True):
        share = measure in ("realism", "partner", "partner5")
        run.number(f"{key}_{measure}", Shares(one, p.seeds * p.inputs) if share else one)
        texts[measure] = run.text(f"{key}_{measure}")
    table.append({"output": name, **texts})
run.table("at 0.5 T", table)

# %% [markdown]
# ### At the paper's start times, and at equal realism
# The share of partners found along SDFT's curve minus that along the naive one's, averaged over the realism that both
# reach, seed by seed; a seed on which they reach none in common has no value, and then the mean has none. The control
# is the second naive student in SDFT's place.


# %%
def gains(method, ours="SDFT", measure="partner5"):
    """A measure, `ours` minus naive, at equal realism; (seeds,)."""
    columns = [0, measures.index(measure)]
    both = (found[f"{method} {name}"] for name in (ours, "naive"))
    return on_emoji.matched(*(curve[..., columns] for curve in both))


def at_both(measure):
    """A measure of both students at the paper's two start times, each (methods and starts, seeds)."""
    return (np.stack([column(m, n, measure, starts.index(t)) for m in methods for t in (0.5, 0.625)]) for n in students)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
gained = {f"gain_{method.lower()}": gains(method) for method in methods}
gained["gain_matched"] = np.mean(list(gained.values()), axis=0)
gained["gain_naive_twice"] = gains("SDEdit", "naive again")
for key, measure in (("gain_same_start", "partner5"), ("realism_gained", "realism")):
    naive, ours = at_both(measure)
    gained[key] = (ours - naive).mean(0)
naive, ours = at_both("input")
gained["nearer_input"] = np.log(naive / ours).mean(0)
gained |= dict(zip(("told_source", "told_target"), found["told"].T, strict=True))
for key, values in gained.items():
    run.number(key, values)
checks = {key: gained[key] for key in ("gain_matched", "nearer_input", "realism_gained", "gain_naive_twice")}
shown = {name: dict(zip(measures, found[name].T, strict=True)) for name in ("input", "filtered")}
checks |= {"input_found": Shares(shown["input"]["partner5"], p.inputs), "told": found["told"].mean(1)}
run.claim("S3", **checks, filtered_first=Shares(shown["filtered"]["partner"], p.inputs))

# %% [markdown]
# ### The start time
# SDEdit of the first inputs; move the slider from light to heavy noise.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_start(i):
    """Inputs and SDEdit's outputs of both students at one start time."""
    shown = [found["input images"][0], *(found[f"SDEdit {name} images"][0, i] for name in students)]
    shown.append(found["truth images"][0])
    labels = ["input", *students, "truth"]
    return figures.image_grid(np.concatenate(shown), on_emoji.SHOWN, row_labels=labels, cell=0.5)


def words(i):
    share = ", ".join(f"{name} {mean('SDEdit', name, 'partner5', i):.2f}" for name in students)
    return f"SDEdit from {starts[i]} T: inputs, outputs and the truth. Share whose partner is found: {share}."


frames = [(f"{start:g} T", lambda i=i: draw_start(i)) for i, start in enumerate(starts)]
figures.slider(run, "start", frames, "start time", [words(i) for i in range(len(starts))], start=HALF)

# %% [markdown]
# ### Pairs from one noise
# Source and student decode one noise; the first noises of the first seed, not selected. *Agreement* is the share of the
# student's samples of which, of all the source's, that from the same noise is the most alike.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
labels = ["source", *students]
grid = np.concatenate([found[f"pairs{f' {name}' * (name != 'source')} images"][0] for name in labels])
for name in students:
    for k, key in enumerate(("realism", "agreement")):
        run.number(f"pairs_{name.lower()}_{key}", Shares(found[f"pairs {name}"][:, -1, k], p.seeds * p.pairs))
ends = ", ".join(f"{name} {run.text(f'pairs_{name.lower()}_agreement')}" for name in students)
alt = f"Three rows of pictures, source, naive and SDFT student, a column from one noise. Agreement: {ends}."
figures.show(run, "pairs", lambda: figures.image_grid(grid, on_emoji.SHOWN, row_labels=labels), alt, "png")

naive = found["pairs naive"]  # (seeds, checkpoints, 2)
compared = {"gain_pairs": on_emoji.matched(found["pairs SDFT"], naive)}
compared["gain_pairs_twice"] = on_emoji.matched(found["pairs naive again"], naive)
compared["gain_ddib"] = column("DDIB", "SDFT", "partner5", 0) - column("DDIB", "naive", "partner5", 0)
compared |= {"round_trip": found["round trip"]}
for key, values in {**compared, "left": p.left}.items():
    run.number(key, values)
run.claim("S5", **compared)

# %% [markdown]
# ## Limits
# - Emoji of 32 x 32 pixels stand in for faces. Partner and realism are read by networks; the distance to the truth is
#   not, but two houses differ in more than style.
# - The classifier of realism was trained on clean drawings with little noise; it takes many a blurred picture for
#   Twemoji's.
# - One source model; the interval is over target pictures, inputs and noise.
# - EGSDE's classifier is briefly trained; how well it tells the houses apart stands in the results (`told`).
# - DDIB and CycleDiffusion have one setting each.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
