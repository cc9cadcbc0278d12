# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DDS: editing digits
# ## Question
# A diffusion model of printed and handwritten digits knows twenty prompts, a digit and its domain each. Delta Denoising
# Score (Hertz, Aberman, Cohen-Or, ICCV 2023) is to turn a handwritten 3 into a handwritten 8, without a mask and
# without training. Does it, what does it leave alone, and what do score distillation (SDS), another optimiser, more
# steps and another guidance scale do instead?

# %% [markdown]
# ## Claim
# **D2** (supplement, Sec. C and Fig. 3). Adam updates the pixels nearly uniformly and changes more that the edit does
# not concern; SGD puts most of the energy where the edit is; both are better than SDS. Quality is not measured: the
# change outside the edit stands for it, each arm at its best learning rate, when the edit is equally far.
#
# **D4** (supplement, Sec. C and Fig. 2). 200 steps suffice for most edits; large structural or colour changes need
# more (the paper's example takes 400).

# %% [markdown]
# ## Method
# The input $\hat z$ is a held-out picture of $16 \times 16$ pixels in $[-1, 1]$; there is no encoder, the latent is the
# picture. One network predicts the noise for every prompt $y$, and for the null prompt $\varnothing$ that training put
# in place of some of them. With $z_t = \alpha_t z + \sigma_t \epsilon$ and
# $\epsilon^\omega(z_t, y) = \epsilon(z_t, \varnothing) + \omega[\epsilon(z_t, y) - \epsilon(z_t, \varnothing)]$, one
# step is $z \leftarrow z - \eta\, g$ from $z = \hat z$, with
#
# - **DDS**: $g = \epsilon^\omega(z_t, y) - \epsilon^\omega(\hat z_t, \hat y)$, same $t$ and $\epsilon$ in both;
# - **SDS**: $g = \epsilon^\omega(z_t, y) - \epsilon$;
# - **regularised SDS** (supplement, Fig. 4): SDS plus $\lambda (z - \hat z)$.
#
# The step is the one of the authors' notebook, 0.0488 on $g$, where no other is named, and so are the timesteps, 50 to
# 948. *Success* is the
# share of pictures that a classifier of digit and domain reads as the target. The *strokes* that an edit concerns are
# the pixels in which the mean images of the two digits differ by more than 0.4, a fifth of the way from paper to ink
# (training data alone); *change outside* is the root-mean-square difference to the input in all other pixels, of the
# picture as one sees it, values beyond paper and ink cut off. *Spread kept* is the standard deviation of the outputs
# around their mean image over that of the inputs; *slant* the correlation of slants, input to output. *Detail kept* is
# the energy in what half the resolution cannot show, output over input: blur lowers it.
#
# A seed is a model with prompts and a judge, both trained from it, a draw of held-out inputs, and a noise sequence for
# each. The guidance scale and the grids of learning rates were chosen on seeds from 1000 upwards; 7.5, the paper's
# scale for text, is in the sweep.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

Digit = Annotated[int, Field(ge=0, le=9)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Several = Annotated[int, Field(ge=2, le=35)]

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 200  # first seed; smaller ones and those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = ""  # folder of a model with prompts in diffusers' layout; empty: one trained for each seed
size: PositiveInt = 16  # height and width of its pictures; a multiple of 8
channels: list[PositiveInt] = [16, 32, 64]  # its channels, from the full resolution to the lowest
prompt_steps: PositiveInt = 1600  # its training steps
batch: PositiveInt = 32  # pictures a training step
lr: PositiveFloat = 2e-3  # learning rate of AdamW
ema: Decay = 0.995  # decay of the moving average of its weights
judge_steps: PositiveInt = 400  # training steps of the judge (digit and domain)
seeds: PositiveInt = 1  # models, judges, draws of inputs and noise
images: Several = 12  # inputs a seed; at least 35 of each digit are held out
source_digit: Digit = 3  # the edit of all comparisons: from this handwritten digit
target_digit: Digit = 8  # to that one
omega: PositiveFloat = 3.0  # guidance scale
iterations: PositiveInt = 200  # updates of an edit
iterations_long: PositiveInt = 400  # updates where the number of steps is the question
small_eta: PositiveFloat = 0.008  # their step size: the edit of all comparisons then takes about 150
sgd_etas: list[PositiveFloat] = [0.006, 0.012, 0.025, 0.05, 0.1]  # step sizes of SGD, for DDS and SDS
adam_etas: list[PositiveFloat] = [0.0025, 0.005, 0.01, 0.02, 0.04]  # learning rates of Adam
sweep_seeds: PositiveInt = 1  # seeds of the two sweeps that follow
lambdas: list[PositiveFloat] = [0.1, 0.3, 0.5, 1.0]  # weights of regularised SDS
omegas: list[PositiveFloat] = [1.0, 7.5, 15.0]  # further guidance scales

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.papers.dds import digit_experiments as experiments, fast, figures as drawings, method as dds
from lib.papers.dds.experiments import key_of
from lib.record import figures, run as record
from lib.record.files import UserError
from lib.record.intervals import Shares
from lib.worlds import digits, judge as judges, prompts as digit_prompts
from lib.worlds.sources import seconds as trained_in

run = record.start("41_dds_digits", globals())
p, HANDWRITTEN = run.parameters, judges.HANDWRITTEN
if p.source_digit == p.target_digit:
    raise UserError(f"source_digit, target_digit: both are {p.source_digit}; give two digits that differ")

# %%
unet, schedule, judge = digit_prompts.trained(p, p.seed)
chosen = p.source_digit, p.target_digit
region = experiments.strokes_of(p, judge.size)

# %%
# NBVAL_CHECK_OUTPUT
held_out = digits.split(digits.handwritten(16))[1].labels.bincount()
pair = SimpleNamespace(source_digit=3, target_digit=8)
pixels = experiments.strokes_of(pair, 16).sum()
print("3 to 8 concerns", int(pixels), "of 256 pixels")
print("held out:", held_out.tolist())

# %% [markdown]
# One edit of ten iterations, as the method is written, and without evaluations whose result is known: at the first step
# the null prompt cancels.

# %%
# NBVAL_CHECK_OUTPUT
three = experiments.threes(judge.size)[1][:1].to(run.device)
model, null = digit_prompts.prompt_model(unet), digit_prompts.null()
y_hat, y = (digit_prompts.prompt(digit, HANDWRITTEN) for digit in (3, 8))
for form in (dds, fast):
    done = form.edit(model, schedule, three, y, y_hat, null, omega=p.omega, iterations=10)
    print(form.__name__, done.evaluations, "evaluations")

# %% [markdown]
# One replicate trains its model and its judge, draws inputs and noises, and makes every edit of this page. The
# predictions for the noised inputs serve every target, guidance scale and optimiser, so they are computed once.

# %%
found = run.replicates(experiments.digit_edits, own=digit_prompts.trained)
arms = run.replicates(experiments.optimisers, own=digit_prompts.trained)
steps = run.replicates(experiments.lengths, own=digit_prompts.trained)

# %% [markdown]
# ## Result
# ### DDS, SDS and regularised SDS
# The first inputs of the first seed, not selected.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
HEADS = {"success": "success", "outside": "change outside", "spread": "spread kept", "detail": "detail kept"}
note = f"{p.images} inputs a seed; mean and 95 % interval over {p.seeds} seeds"


def mean(name: str, key: str) -> float:
    """Return a measure of a run, mean over its seeds."""
    return found[f"{key_of(name)}_{key}"].mean()


def table(title: str, names: list[str], heads: dict[str, str], note: str) -> None:
    """Record the measures of some runs and show them."""
    rows = []
    for name in names:
        keys = {head: f"{key_of(name)}_{key}" for key, head in heads.items()}
        for key in keys.values():
            shares = key.endswith(("success", "kept"))
            run.number(key, Shares(found[key], p.seeds * p.images) if shares else found[key])
        rows.append({"run": name.removeprefix("written ")} | {head: run.text(key) for head, key in keys.items()})
    run.table(title, rows, note)


def rows_of_digits(figure: str, rows: dict[str, np.ndarray], words: str, cell: float = 0.52) -> None:
    """Show rows of pictures (n, 1, h, w), each with its label."""
    shown, n = np.concatenate(list(rows.values())), len(next(iter(rows.values())))
    alt = f"Rows of {n} digits: {', '.join(rows)}. {words}.".replace("$", "").replace("\\", "")
    figures.show(run, figure, lambda: figures.image_grid(shown, n, row_labels=list(rows), cell=cell), alt, "png")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
names = ["DDS", "SDS", *(f"SDS, lambda {v:g}" for v in sorted(p.lambdas))]
rows = {"input": found["inputs"][0]}
rows |= {m.replace("SDS, lambda", "$\\lambda$ ="): found[f"{key_of(m)}_z"][0] for m in names}
words = "; ".join(f"{m} {mean(m, 'success'):.2f} and {mean(m, 'spread'):.2f}" for m in names)
rows_of_digits("methods", rows, f"Handwritten {chosen[0]}s to {chosen[1]}s; success and spread kept: {words}")
text = f"{note}, lambda over {p.sweep_seeds}; slant: correlation of input and output"
table("methods", names, HEADS | {"slant": "slant"}, text)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_trade() -> Figure:
    """Draw faithfulness and variety against success."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.0), sharex=True)
    labels = {"outside": "change outside the strokes (RMS)", "spread": "spread of the inputs kept"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        points = [(mean(m, "success"), mean(m, key)) for m in names[1:]]
        axis.plot(*zip(*points, strict=True), "s-", color="C1", lw=0.8, ms=4, label=r"SDS, $\lambda$ at the points")
        for point, value in zip(points, [0, *sorted(p.lambdas)], strict=True):
            axis.annotate(f"{value:g}", point, (4, 5), textcoords="offset points")
        axis.plot(mean("DDS", "success"), mean("DDS", key), "o", color="C0", ms=7, label="DDS")
        axis.set(xlabel="success", ylabel=label, xlim=(-0.05, 1.1), ylim=(0, None))
    axes[1].set_ylim(0, 1.05)
    axes[0].legend(loc="upper left")
    return figure


words = "; ".join(f"{m} {mean(m, 'success'):.2f}, {mean(m, 'outside'):.2f}, {mean(m, 'spread'):.2f}" for m in names)
figures.show(run, "trade", draw_trade, alt=f"Success, change outside the strokes and spread kept: {words}.")

# %% [markdown]
# A penalty on SDS would do what DDS does if a point of its line lay beside DDS's point in both panels.
#
# ### SGD and Adam
# An optimiser with small steps takes longer, averages over more noises and changes less elsewhere; so each arm has a
# grid of learning rates, and all are compared at the first step at which nine in ten inputs read as the target. What
# does not come so far in 200 steps has no dot. The line is the mean over the seeds, the star the least change of a
# seed's arm, mean over the seeds.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
ARMS = {"sgd": "DDS, SGD", "adam": "DDS, Adam", "sds": "SDS, SGD"}
rates = experiments.rates(p)
best = {arm: np.nan_to_num(arms[f"{arm}_outside"], nan=np.inf).argmin(1)[:, None] for arm in ARMS}  # (seeds, 1)


def at_best(arm: str, key: str) -> np.ndarray:
    """Return a measure of an arm at its best rate, (seeds,)."""
    return np.take_along_axis(arms[f"{arm}_{key}"], best[arm], 1)[:, 0]


def draw_arms() -> Figure:
    """Draw the change outside and the share of the energy inside over the rates."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.0))
    labels = {"outside": "change outside the strokes (RMS)", "share": "share of update energy inside"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for i, (arm, name) in enumerate(ARMS.items()):
            values, whole = arms[f"{arm}_{key}"], np.isfinite(arms[f"{arm}_{key}"]).all(0)
            axis.plot(np.array(rates[arm])[whole], values[:, whole].mean(0), color=f"C{i}", label=name)
            axis.plot(rates[arm], values.T, "os^"[i], color=f"C{i}", ms=3, alpha=0.5)
            place = np.exp(np.log(np.array(rates[arm])[best[arm]]).mean())
            axis.plot(place, at_best(arm, key).mean(), "*", color=f"C{i}", ms=11, markeredgecolor="w")
        axis.set(xlabel="learning rate", ylabel=label, xscale="log", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = []
for arm, name in ARMS.items():
    row = {"run": name, "best rate, median": float(np.median(np.array(rates[arm])[best[arm]]))}
    for key, head in (("step", "steps"), ("outside", "change outside"), ("share", "share of update energy inside")):
        run.number(f"best_{arm}_{key}", at_best(arm, key))
        row[head] = run.text(f"best_{arm}_{key}")
    rows.append(row)
alt = "Change outside the strokes and share of the update energy inside, over learning rates, when nine in ten inputs "
alt += "read as the target. At the best rates: "
alt += "; ".join(f"{row['run']} {row['change outside']} and {row['share of update energy inside']}" for row in rows)
figures.show(run, "rates", draw_arms, alt + ".")
run.table("optimisers", rows, f"each arm at its best rate of a seed; mean and 95 % interval over {p.seeds} seeds")

# %% [markdown]
# How the updates are spread over the pixels, each arm at its best rate. Left columns: size of the update of a step,
# mean of the ten steps up to the one named, because the size goes with the timestep drawn; right columns: difference to
# the input so far; half-way and when nine in ten inputs read as the target. Each of the two kinds has one colour scale
# for all rows. First input of the first seed; the line bounds the strokes.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
panels = {name: (arms[f"{arm}_z"][0, 0], arms[f"{arm}_maps"][0]) for arm, name in ARMS.items()}
alt = "Saliency maps of one digit for DDS with SGD, DDS with Adam and SDS with SGD, half-way and at equal completion. "
alt += f"Share of the update energy inside the strokes, {region.mean():.0%} of the pixels: "
alt += "; ".join(f"{name} {at_best(arm, 'share').mean():.0%}" for arm, name in ARMS.items()) + "."
figures.show(run, "saliency", lambda: drawings.saliency(panels, ["half-way", "end"], region.numpy()), alt, "png")
rows = {"input": arms["inputs"][0]} | {name: arms[f"{arm}_z"][0] for arm, name in ARMS.items()}
words = "; ".join(f"{name} {at_best(arm, 'outside').mean():.2f}" for arm, name in ARMS.items())
rows_of_digits("optimisers", rows, f"When nine in ten read as {chosen[1]}; change outside the strokes: {words}")

# %%
outside, share = ({arm: at_best(arm, key) for arm in ARMS} for key in ("outside", "share"))
run.claim(
    "D2",
    outside_gap=outside["adam"] - outside["sgd"],
    share_gap=share["sgd"] - share["adam"],
    sds_gap=outside["sds"] - np.maximum(outside["sgd"], outside["adam"]),
    noise_share=arms["share_noise"],
)

# %% [markdown]
# ### How many steps
# The chosen pair and the pair of digits that are farthest apart by mean image. Steps have no meaning without their
# size: at the notebook's, 0.0488, both edits are done within a few dozen, and 200 or 400 is no question. So the step is
# made smaller, such that the chosen edit takes about 150. Line: share of the inputs read as the target after each step,
# mean over seeds; band: from the lowest to the highest seed.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
farthest = digit_prompts.farthest_pair(HANDWRITTEN, judge.size)
edits = {kind: f"{a} to {b}" for kind, (a, b) in (("small", chosen), ("large", farthest))}
longest, half = p.iterations_long, p.iterations_long // 2
rows = []
for kind, edit in edits.items():
    share = steps[f"{kind}_success"]  # (seeds, n + 1)
    row = {"edit": edit, "never read as the target": int(steps[f"never_{kind}"].sum())}
    row["steps until it is"] = f"{steps[f'steps_{kind}'].mean():.0f}"
    shown_at = (longest // 8, longest // 4, half, longest)
    rows.append(row | {f"success after {k}": float(share[:, k].mean()) for k in shown_at})
    run.number(f"steps_{kind}", steps[f"steps_{kind}"])
    for key, k in ((f"success_{kind}", half), (f"success_{kind}_long", -1)):
        run.number(key, Shares(share[:, k], p.seeds * p.images))
text = f"{p.seeds} x {p.images} inputs of each; an input never read as the target counts {longest} steps"
run.table("steps", rows, text)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_steps() -> Figure:
    """Draw success over the steps."""
    figure, axis = plt.subplots(figsize=(6, 3.0))
    for index, (kind, edit) in enumerate(edits.items()):
        share = steps[f"{kind}_success"]
        axis.plot(share.mean(0), ls=["-", "--"][index], label=edit)
        axis.fill_between(np.arange(longest + 1), share.min(0), share.max(0), color=f"C{index}", alpha=0.2, lw=0)
    axis.axvline(half, color=figures.ink(), lw=0.8, ls=":")
    axis.set(xlabel="step", ylabel="success", ylim=(-0.02, 1.05))
    axis.legend(loc="upper left")
    return figure


words = "; ".join(f"{row['edit']}: {row['steps until it is']} steps on average" for row in rows)
figures.show(run, "steps", draw_steps, alt=f"Share of inputs read as the target over the steps. {words}.")


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def draw_at(index: int) -> Figure:
    """Draw the first inputs of both pairs, and what they are at one of the steps shown."""
    pictures = np.concatenate([steps[f"{kind}_path"][0][i] for kind in edits for i in (0, index)])
    labels = [text for edit in edits.values() for text in (edit.split()[0], edit[2:])]
    return figures.image_grid(pictures, min(8, p.images), row_labels=labels, cell=0.5)


def say(k: int) -> str:
    """Text of one frame."""
    parts = (f"{edit} {steps[f'{kind}_success'][:, k].mean():.2f}" for kind, edit in edits.items())
    return f"Inputs and edits of both pairs after {k} steps. Success: {'; '.join(parts)}."


ticks = experiments.path_steps(p)
frames = [(str(k), lambda i=i: draw_at(i)) for i, k in enumerate(ticks)]
figures.slider(run, "over-steps", frames, "step", [say(k) for k in ticks], start=-1)

# %%
small, large = steps["small_success"], steps["large_success"]
few = min(held_out.tolist())  # distinct pictures of a digit, which seeds share
run.claim(
    "D4",
    needs_more=large[:, longest] - large[:, half],
    suffice=Shares(small[:, half], few),
    reached=Shares(large[:, longest], few),
    early=Shares(small[:, longest // 8], few),
)

# %% [markdown]
# ### Guidance
# Success against what the edit changes elsewhere. *Peak* is the largest absolute value in $z$, mean over the inputs: a
# picture ends at 1, and what is beyond is cut off when one looks at it.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
scales = dict(sorted(({w: f"DDS, omega {w:g}" for w in p.omegas} | {p.omega: "DDS"}).items()))
text = f"{note}, omega with a number over {p.sweep_seeds}; DDS: omega = {p.omega:g}"
heads = {k: HEADS[k] for k in ("success", "outside", "spread")} | {"peak": "peak"}
table("guidance", list(scales.values()), heads, text)
rows = {"input": found["inputs"][0]} | {f"$\\omega$ = {w:g}": found[f"{key_of(m)}_z"][0] for w, m in scales.items()}
words = "; ".join(f"{w:g}: {mean(m, 'success'):.2f} and {mean(m, 'outside'):.2f}" for w, m in scales.items())
rows_of_digits("guidance", rows, f"Success and change outside by guidance scale: {words}")

# %% [markdown]
# ### From print to handwriting
# The same digit in the other domain: a prompt of its own for each input, all ten digits in one batch. Such an edit has
# no strokes of its own, so the *change* is that of the whole picture.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
heads = {k: k.replace("_", " ") for k in ("success", "digit_kept", "change")}
table("print to handwriting", ["written DDS", "written SDS"], heads, note)
rows = {"printed": found["printed"][0], "DDS": found["written_dds_z"][0], "SDS": found["written_sds_z"][0]}
words = "; ".join(f"{m} {mean(f'written {m}', 'success'):.2f}" for m in ("DDS", "SDS"))
rows_of_digits("written", rows, f"Handwritten versions by both; success: {words}", cell=0.4)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.number("area", 100 * region.mean().item(), "%")
run.number("seconds_training", trained_in(p.source or run.artefacts / "prompts" / str(p.seed)), "s")
for key in ("omega", "images", "seeds", "prompt_steps", "small_eta"):
    run.number(key, getattr(p, key))

# %% [markdown]
# ## Limits
# - Digits of $16 \times 16$ pixels and class numbers stand in for photographs and sentences; colour is not tested.
# - The network was trained for minutes on 3,117 pictures. Its errors are part of what DDS cancels and of what guidance
#   multiplies.
# - The region is the same for every input, although the inputs lean and shift: a faithful edit of a leaning 3 changes
#   pixels outside it too.
# - Success is the verdict of a small classifier. It reads half-formed digits as well, so the first step at which it
#   reads the target is earlier than the step at which a person would stop.
# - There are 35 to 37 held-out pictures of a digit, which seeds share; model, judge and noises are a seed's own.
# - We did not find the paper's learning rate of Adam. Each arm has its best of five, for each seed anew.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
