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
# # SDFT: fine-tuning on a hundred biased images
#
# ## Question
# A diffusion model knows ten printed digits. It is fine-tuned on one hundred handwritten ones, and five of the ten
# classes are missing from them. What is left of the five classes afterwards, and does holding the model near its
# source (Self-Distillation based Fine-Tuning, SDFT; Hur et al., WACV 2024) keep more of them at the same realism?

# %% [markdown]
# ## Claim
# **S2** (abstract; Supplement, Fig. 7). Fine-tuned on limited, biased data, SDFT gives more diverse samples than
# naive fine-tuning, better aligned with the source's sample from the same noise, without harming the quality on the
# target.

# %% [markdown]
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
# - *Frechet* and *kernel distance* to all 1,797 handwritten digits, missing classes included, in the classifier's
#   features.
#
# Every method can trade agreement for realism by training longer, so one point says little. We draw agreement against
# realism over the training steps, and compare both at equal steps and at equal realism. At this size (a small
# network, some dozens of steps) the paper's $\lambda = 0.1$ has little effect; our SDFT arm uses a larger one, chosen
# on seeds from 1000 upwards, which this notebook's runs do not use. The paper's value is shown as its own arm.

# %% tags=["parameters"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 10  # first seed; 0 to 2 and those from 1000 served to choose settings
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
source: str = ""  # folder of the source model in diffusers' layout; empty: the one that 50_source trained
source_steps: PositiveInt = 1600  # its training steps, if there is none yet
judge_steps: PositiveInt = 400  # training steps of the classifier, if there is none yet
seeds: PositiveInt = 3  # draws of the target images
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

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from tqdm.auto import tqdm

from lib.ground import diffusion, nets
from lib.measures import distances as image_metrics
from lib.papers.sdft import method as sdft
from lib.record import figures, run as record
from lib.worlds import digits as data, judge as metrics
from lib.worlds.sources import shared

run = record.start("60_finetune", globals())
p = run.parameters

# %%
unet, schedule, judge = shared(run.artefacts, p.source, p.source_steps, p.judge_steps, run.device)
digits = data.handwritten(judge.size)
missing = [k for k in range(10) if k not in data.KEPT]
full_target = metrics.judge(judge, digits.images).features

# %%
# NBVAL_CHECK_OUTPUT
example = data.limited(digits, n=100, seed=0)
print(f"target: {len(example.labels)} of {len(digits.labels)} images, classes {example.labels.unique().tolist()}")
print(f"missing: {missing}")

# %% [markdown]
# The arms differ in their two lambdas and gammas only.

# %%
terms = ("lambda_distill", "gamma_distill", "lambda_aux", "gamma_aux")
L, d, a = p.lambda_sdft, p.gamma_distill, p.gamma_aux
arms = {  # in the order of `terms`
    "naive": (0, d, 0, a),
    "distill": (L, d, 0, a),
    "aux": (0, d, L, a),
    "SDFT": (L, d, L, a),
    "gamma 0": (L, 0, L, 0),
    **{f"SDFT, {other:g}": (other, d, other, a) for other in p.lambdas_more},
}
measures = ("realism", "agreement", "coverage", "frechet", "kernel")
checkpoints = sorted(set(p.checkpoints))


# %%
def sample(net, noise, seed):
    """Images by ancestral sampling; every network gets the same noise at the start and at each step."""
    later = torch.Generator().manual_seed(seed)
    options = {"steps": p.sampling_steps, "generator": later, "clip": True}
    return diffusion.sample_ddpm(nets.eps_model(net), schedule, noise, **options).clamp(-1, 1)


def measure(images, source_verdicts):
    """The five measures, in the order of `measures`."""
    v = metrics.judge(judge, images)
    shares = metrics.realism(v), metrics.agreement(v, source_verdicts), metrics.coverage(v, missing)
    kinds = (image_metrics.frechet_distance, image_metrics.kernel_distance)
    return [*shares, *(distance(v.features, full_target) for distance in kinds)]


# %%
def run_arm(values, images, noise, source_verdicts, seed):
    """Fine-tune one arm; return its measures at every checkpoint, its last samples and the student."""
    seen = {}

    def check(i, student):
        if i in checkpoints:
            seen[i] = sample(student, noise, seed)

    settings = {"batch": p.batch, "lr": p.lr, "seed": seed} | dict(zip(terms, values, strict=True))
    student, _ = sdft.finetune(unet, schedule, images, max(checkpoints), on_step=check, progress=False, **settings)
    return [measure(x, source_verdicts) for x in seen.values()], seen[max(seen)], student


# %%
def run_seed(seed, bar):
    """All arms on one draw of the target: measures of the source and of each arm, pictures, students."""
    target = data.limited(digits, p.shots, seed=seed).images.to(run.device)
    noise = torch.randn(p.samples, *target.shape[1:], generator=torch.Generator().manual_seed(seed)).to(run.device)
    from_source = sample(unet, noise, seed)
    verdicts = metrics.judge(judge, from_source)
    points, pictures, students = {}, {"source": from_source[:ROWS]}, {}
    for name, values in arms.items():
        points[name], last, students[name] = run_arm(values, target, noise, verdicts, seed)
        pictures[name] = last[:ROWS]
        bar.update()
    return measure(from_source, verdicts), points, pictures, students


# %%
ROWS = 8  # noises in the picture grid
with tqdm(total=len(run.seed_list) * len(arms), desc="arms") as bar:
    runs = [run_seed(s, bar) for s in run.seed_list]
of_source = np.array([source_point for source_point, *_ in runs])  # (seeds, measures)
curves = {name: np.array([points[name] for _, points, *_ in runs]) for name in arms}  # (seeds, checkpoints, measures)
pictures, students = runs[0][2:]

# %% [markdown]
# ## Result
# ### Agreement against realism
# Each line is an arm, each dot a checkpoint; training goes from left to right. Higher at the same realism is better.
# The unadapted source sits in the upper left corner, with no realism and full agreement.


# %%
def mean(name, measure):
    """Mean over seeds of one measure at every checkpoint."""
    return curves[name][:, :, measures.index(measure)].mean(0)


def draw_trade_off():
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for marker, name in zip("osD^vPX*", arms, strict=False):
        axis.plot(mean(name, "realism"), mean(name, "agreement"), marker=marker, ms=4, label=name)
    axis.set(xlabel="realism: share taken for handwritten", ylabel="agreement with the source")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


# %%
ends = [f"{name} {mean(name, 'realism')[-1]:.2f} / {mean(name, 'agreement')[-1]:.2f}" for name in arms]
figures.show(
    run,
    "trade-off",
    draw_trade_off,
    alt="Agreement with the source against realism, one line an arm, dots at its checkpoints. "
    f"After {max(checkpoints)} steps, realism / agreement: {'; '.join(ends)}.",
)


# %% [markdown]
# ### Over the training steps
# The source before fine-tuning is step 0.


# %%
def draw_measure(axis, measure, title):
    """One measure over the steps, all arms."""
    start = of_source[:, measures.index(measure)].mean()
    for marker, name in zip("osD^vPX*", arms, strict=False):
        axis.plot([0, *checkpoints], [start, *mean(name, measure)], marker=marker, ms=3.5, label=name)
    axis.set(title=title, ylim=(0, None), ylabel="distance" if measure == "frechet" else "share of samples")


# %%
def draw_steps():
    figure, axes = plt.subplots(2, 2, figsize=(7, 4.6), sharex=True)
    titles = ("realism", "agreement", "coverage of the missing", "Frechet")
    for axis, measure, title in zip(axes.flat, measures, titles, strict=False):
        draw_measure(axis, measure, title)
    for axis in axes[1]:
        axis.set_xlabel("fine-tuning steps")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure


# %%
covered = ", ".join(f"{name} {mean(name, 'coverage')[-1]:.2f}" for name in arms)
quality = ", ".join(f"{name} {mean(name, 'frechet')[-1]:.1f}" for name in arms)
figures.show(
    run,
    "steps",
    draw_steps,
    alt=f"Four measures over the steps. After {checkpoints[-1]} steps, coverage of the missing digits: {covered}; "
    f"Frechet distance to all handwritten digits: {quality}.",
)

# %% [markdown]
# ### Samples from equal noise
# The first eight noises of the first seed, not selected, at the last checkpoint: a row is one initial noise.

# %%
in_rows = torch.stack(list(pictures.values()), dim=1).flatten(0, 1)  # (ROWS * arms, 1, size, size)
figures.show(
    run,
    "samples",
    lambda: figures.image_grid(in_rows, ncols=len(pictures), titles=list(pictures), cell=0.7),
    alt=f"{ROWS} rows of digits, each row from one initial noise; columns {', '.join(pictures)}. "
    f"Share of naive samples that keep the source's digit: {mean('naive', 'agreement')[-1]:.2f}; "
    f"of SDFT samples: {mean('SDFT', 'agreement')[-1]:.2f}.",
    kind="png",
)

# %% [markdown]
# ### At equal steps
# The last checkpoint, mean over seeds.

# %%
rows = [{"arm": "source", **dict(zip(measures, of_source.mean(0).tolist(), strict=True))}]
rows += [{"arm": name, **{m: float(mean(name, m)[-1]) for m in measures}} for name in arms]
sets = {"samples an arm and seed": p.samples, "handwritten digits": len(digits.labels)}
distances = "Frechet and kernel distance by clean-fid"
run.table("last checkpoint", rows, image_metrics.protocol(distances, sets, "64 of the digit classifier"))
keys = {name: name.lower().replace(", ", "_").replace(" ", "_").replace(".", "") for name in arms}  # e.g. sdft_01
for name, key in keys.items():
    for column, measure in enumerate(measures):
        run.number(f"{key}_{measure}", curves[name][:, -1, column])
for column, measure in enumerate(measures):
    run.number(f"source_{measure}", of_source[:, column])


# %% [markdown]
# ### At equal realism
# Each arm's curve minus the naive one's, averaged over the realism that both reach between their checkpoints, seed by
# seed.


# %%
def gains_at_equal_realism(name):
    """Agreement minus the naive arm's at the same realism, one value a seed."""
    pairs = zip(curves[name][:, :, :2], curves["naive"][:, :, :2], strict=True)
    return [image_metrics.gain_at_equal_realism(torch.tensor(ours), torch.tensor(naive)) for ours, naive in pairs]


matched = {name: gains_at_equal_realism(name) for name in arms if name != "naive"}
texts = [{"arm": name, "agreement gained": run.number(f"matched_{keys[name]}", v)} for name, v in matched.items()]
run.table("at equal realism", texts)

# %%
gain = curves["SDFT"][:, -1] - curves["naive"][:, -1]  # (seeds, measures)
run.number("gain_agreement", gain[:, 1])
run.number("gain_coverage", gain[:, 2])
run.number("gain_quality", -gain[:, 3])
run.number("gain_realism", gain[:, 0])
for name in ("lambda_sdft", "batch", "lr"):
    run.number(name, getattr(p, name))
run.number("steps", max(checkpoints))

# %%
run.claim(
    "S2",
    gain_agreement=gain[:, 1],
    gain_coverage=gain[:, 2],
    gain_quality=-gain[:, 3],
    gain_matched=matched["SDFT"],
    realism_lost_gamma_0=curves["SDFT"][:, -1, 0] - curves["gamma 0"][:, -1, 0],
    source_realism=of_source[:, 0],
)

# %% [markdown]
# The SDFT student of the first seed is kept in diffusers' layout: `DDPMPipeline.from_pretrained(FOLDER)` loads it.

# %%
scheduler = DDPMScheduler(num_train_timesteps=schedule.T, beta_schedule="linear", clip_sample=True)
DDPMPipeline(students["SDFT"].cpu(), scheduler).save_pretrained(run.artefacts / "sdft", safe_serialization=True)

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

# %%
run.finish()
