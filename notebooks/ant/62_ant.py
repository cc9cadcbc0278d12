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
# | no guidance (if asked for) | adaptor | no | yes |
# | ANT | adaptor | yes | yes |
# | flipped (control) | adaptor | opposite sign | no |
#
# A *draw* takes ten other faces and new randomness everywhere. All arms of a draw see the same pictures, timesteps and
# first noises in the same order, and are sampled with the same noises at the start and at each step (ancestral
# sampling, clamped). At every checkpoint we measure:
#
# - *realism*: share of samples that a small classifier of our own takes for Twemoji's;
# - *Frechet*: distance to Twemoji's other faces, 108 of them, in 32 components of the features of a network that nobody
#   here trained (EfficientNet-Lite0 on ImageNet);
# - *Intra-LPIPS* in that network's features: each sample goes to its nearest shot; mean distance of two samples in a
#   cluster;
# - *closeness*: distance to the nearest of the ten pictures over that to the nearest other face; below what Twemoji's
#   other faces have among themselves a model repeats the ten.
#
# Intra-LPIPS alone says little: the source, which knows nothing of the target, is diverse too. An ANT step costs $J+1$
# evaluations of the network, a plain one 1: we compare at equal iterations and at equal evaluations, for which the
# plain arms run longer, and A3 takes each arm at the iteration that was best on draws that no reported run uses.
# All errors are those of the network's own prediction, the velocity.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 20  # first draw; those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = ""  # folder of the source model in diffusers' layout; empty: the one that 50_source trained
source_steps: PositiveInt = 1600  # its training steps, if there is none yet
judge_steps: PositiveInt = 400  # training steps of the digit-and-domain classifier, if there is none yet
seeds: PositiveInt = 2  # draws of the ten shots
gamma: NonNegativeFloat = 5.0  # strength of the guidance; the paper's
omega: NonNegativeFloat = 0.02  # step size of the ascent; the paper's
ascents: PositiveInt = 10  # J; the paper's
c: PositiveInt = 4  # pooling of the adaptor; the paper's for pixels
d: PositiveInt = 8  # its bottleneck channels; the paper's
batch: PositiveInt = 10  # images a step; the paper has 40
lr_full: PositiveFloat = 1e-4  # learning rate of full fine-tuning
lr_adaptor: PositiveFloat = 1e-3  # of every arm with an adaptor
checkpoints: list[PositiveInt] = [2, 4, 8, 16, 32]  # iterations at which every arm is sampled
checkpoints_plain: list[PositiveInt] = [176]  # further ones of `full` and `adaptor`
no_guidance: bool = False  # also train the arm with adversarial noise and no guidance
classifier_steps: PositiveInt = 150  # training steps of the noised classifier; the paper has 300
classifier_batch: PositiveInt = 64  # the paper's
classifier_lr: PositiveFloat = 1e-4  # the paper's
samples: PositiveInt = 60  # images sampled at each checkpoint
sampling_steps: PositiveInt = 16  # of ancestral sampling

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from functools import partial

import matplotlib.pyplot as plt
import torch

from lib.ground.nets import eps_model
from lib.papers.ant import adaptor, experiments, method as ant
from lib.record import figures, run as record
from lib.record.intervals import Shares
from lib.worlds.sources import shared

run = record.start("62_ant", globals())
p = run.parameters
world = shared(p)  # source, schedule, judge

# %% [markdown]
# One step in code, here with the source itself as the student:

# %%
draw = experiments.Draw(p.seed, p, *world)
model, schedule = eps_model(draw.unet), draw.schedule
guidance = ant.classifier_guidance(draw.classifier())
x0 = draw.shots.to(run.device)  # (10, 1, h, w)
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
values = run.replicates(experiments.limited_data, shared)  # each (draws, stops) or (draws,)

# %% jupyter={"source_hidden": true} tags=["hide-input"]
short = arms["ANT"].stops  # those that all arms have; 0 is the source
last, early = len(short) - 1, (len(short) + 1) // 2
cost = {name: [n * (arm.J + 1) for n in arm.stops] for name, arm in arms.items()}  # the network's
budget = cost["full"][-1]
same_cost = max(i for i, evaluations in enumerate(cost["ANT"]) if evaluations <= budget)
rows = {"source": ("full", 0), **{name: (name, last) for name in arms}}  # what is compared at equal iterations

# %% [markdown]
# ## Result
# ### Quality and diversity over the iterations
# The mean over the draws; iteration 0 is the source. Low is good in the upper left panel, high in the two beside and
# below it. The distance to the nearest shot tells new digits from copies.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def at(name, measure, i=last):
    return values[f"{name} {measure}"][:, i]  # (draws,)


def draw_lines(measures, x, label):
    """One panel a measure: the mean over the draws of each arm over its x (stops,)."""
    figure, axes = plt.subplots(len(measures) // 2, 2, figsize=(7, 1.4 + 0.9 * len(measures)), sharex=True)
    for axis, measure in zip(axes.flat, measures, strict=True):
        for marker, name in zip("osD^vP", arms, strict=False):
            axis.plot(x[name], values[f"{name} {measure}"].mean(0), marker=marker, ms=3.5, label=name)
        axis.set_xscale("symlog", base=2, linthresh=x["full"][1], linscale=0.6)
        axis.set(xticks=x["full"], xticklabels=x["full"], ylabel=experiments.MEASURES[measure], ylim=(0, None))
        axis.minorticks_off()
    figure.supxlabel(label, fontsize="medium")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(arms))
    return figure


def ends(measure, digits, chosen):
    """The means over the draws in words."""
    return ", ".join(f"{key} {at(name, measure, i).mean():.{digits}f}" for key, (name, i) in chosen.items())


over = {name: arm.stops for name, arm in arms.items()}
alt = f"Four measures over the iterations, one line an arm. After {short[-1]} iterations, Frechet distance: "
alt += f"{ends('frechet', 0, rows)}; Intra-LPIPS: {ends('intra_lpips', 3, rows)}."
shown = ("frechet", "intra_lpips", "realism", "distance")
figures.show(run, "iterations", lambda: draw_lines(shown, over, "iterations"), alt)

# %% [markdown]
# ### At equal network evaluations
# The same points, drawn over what they cost.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
equal = {"ANT": ("ANT", same_cost), "full": ("full", -1), "adaptor": ("adaptor", -1)}
alt = f"The same over network evaluations. Frechet distance after about {budget}: {ends('frechet', 0, equal)}."
draw_costs = partial(draw_lines, ["frechet", "intra_lpips"], cost, "network evaluations (forward and backward)")
figures.show(run, "evaluations", draw_costs, alt)

for title, chosen in {"equal iterations": rows, "equal evaluations": equal}.items():
    lines = [
        {"arm": key, "iterations": over[name][i], "evaluations": cost[name][i], **experiments.row(values, name, stop=i)}
        for key, (name, i) in chosen.items()
    ]
    run.table(title, lines, experiments.protocol(p))
for key, (name, i) in rows.items():
    for measure in experiments.MEASURES:
        found = at(name, measure, i)
        found = Shares(found, p.seeds * p.samples) if measure == "realism" else found
        run.number(f"{key.lower().replace(' ', '_')}_{measure}", found)
# %% jupyter={"source_hidden": true} tags=["hide-input"]
best = {name: values[f"{name} frechet"][:, 1:].min(1) for name in arms}
for name in ("full", "adaptor"):
    run.number(f"equal_cost_gain_{name}", at(name, "frechet", -1) - at("ANT", "frechet", same_cost))
    run.number(f"equal_cost_diversity_{name}", at("ANT", "intra_lpips", same_cost) / at(name, "intra_lpips", -1))
    run.number(f"best_gain_{name}", best[name] - best["ANT"])
run.number("early_gain_adaptor", at("adaptor", "frechet", early) - at("ANT", "frechet", early))
counts = {"iterations": short[-1], "early": short[early], "ascents": p.ascents, "budget": budget}
counts["evaluations"] = cost["ANT"][same_cost]
counts |= {f"told_{d}": Shares(values[f"told_{d}"], p.seeds * p.samples) for d in ("source", "target")}
for key, value in counts.items():
    run.number(key, value)
run.claim("A3")

# %% [markdown]
# ### Two noises over the training
# The first two noises of the first draw, not selected, equal steps in both arms; the left column is the source.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
pictures = {name: torch.from_numpy(values[f"{name} samples"][0, : len(short)]) for name in arms}  # of the first draw
in_rows = torch.cat([pictures[name][:, k] for k in range(2) for name in ("full", "ANT")])
titles, labels = ["source", *map(str, short[1:])], [f"{arm}, noise {k}" for k in (1, 2) for arm in ("full", "ANT")]
alt = f"Samples from two noises at iterations {', '.join(map(str, short))}, by full fine-tuning and by ANT. "
alt += f"Share of all samples taken for handwritten at the end: {ends('realism', 2, rows)}."
draw_stages = partial(figures.image_grid, in_rows, ncols=len(short), titles=titles, row_labels=labels)
figures.show(run, "two-noises", draw_stages, alt, kind="png")

# %% [markdown]
# In numbers, over all noises: when does a noise's sample become handwritten, and how many samples copy a shot when 80 %
# have transferred? A copy is nearer to a shot than 99 % of the other real digits are. *Spread* is the standard
# deviation of $\log_2$ of the iteration, without noises whose sample is handwritten from the start; *copies* are
# counted at the iteration *transferred*, and at the arm's last one.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
columns = ("spread", "copies", "transferred", "copies_end")
run.table("transfer", [{"arm": name, **experiments.row(values, name, columns)} for name in arms])
for name, unused in {"full": "transferred", "adaptor": "", "ANT": "copies_end"}.items():
    for key in set(columns) - {unused}:
        found = values[f"{name} {key}"]
        run.number(f"{name.lower()}_{key}", Shares(found, p.seeds * p.samples) if "copies" in key else found)
gain_spread, gain_copies = (values[f"full {key}"] - values[f"ANT {key}"] for key in ("spread", "copies"))
run.claim("A5")

# %% [markdown]
# ### Samples
# The first eight noises of the first draw, not selected, after the same iterations: a row is one noise.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
shown = [torch.from_numpy(values["shots"][0]), *(pictures[name][i] for name, i in rows.values())]
in_rows = torch.stack([images[:8] for images in shown], dim=1).flatten(0, 1)
draw_samples = partial(figures.image_grid, in_rows, ncols=len(shown), titles=["shots", *rows], cell=0.75)
alt = f"Eight shots and eight rows of samples from equal noise; columns shots, {', '.join(rows)}. "
alt += f"Share of all samples taken for handwritten: {ends('realism', 2, rows)}."
figures.show(run, "samples", draw_samples, alt, kind="png")

# %% [markdown]
# ## Limits
# - Digits of 16 x 16 pixels and a network of less than a million parameters stand in for faces of 256 x 256. Beside so
#   narrow a network, the adaptor with the paper's $d$ is far larger than 1.3 % of it, and pooling by 4 leaves one
#   position at the lowest resolution.
# - Settings were chosen for this size on draw 1000. Both learning rates were chosen on the plain arms, such that these
#   transfer within the iterations shown. The noised classifier's rate was first 3e-4; it was set to the paper's 1e-4
#   after a look at that draw, where the change made ANT worse and the gain by adversarial noise larger.
# - The paper has one rate for all arms. So small an adaptor, beginning at zero, moves little at the rate of full
#   fine-tuning, so these two differ in their rate as well.
# - The paper's 300 iterations of batch 40 are some dozens of batch 10 here: an ANT step costs eleven plain ones.
# - The classifier of noised images begins with the source's own encoder instead of ImageNet weights, and has seen ten
#   shots; its guidance is no better than what it makes of other handwritten digits (`told_target` in the results).
# - A Frechet distance from few samples is too large, for all arms alike. The interval is over draws of the shots, with
#   one source and one judge.
# - The transfer times are read at the checkpoints, so to within a factor of two; a noise that has not transferred at
#   the last one counts as transferred at the next.

# %%
run.finish()
