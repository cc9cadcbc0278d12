# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two domains, a source model and a judge
#
# ## Question
# Fine-tuning and translation need three things before any method is tried: two domains that are alike in layout and
# unlike in detail, a diffusion model that knows the first domain well, and a judge that tells which digit and which
# domain an image shows. Are the three made here good enough to measure with?

# %% [markdown]
# ## Claim
# No claim of a paper is tested here. The papers on fine-tuning and editing all suppose that both domains share their
# coarse structure; the numbers below say how far that is true of the data that the other notebooks use, how faithful
# the source model is, and how often the judge errs.

# %% [markdown]
# ## Method
# *Handwritten* digits are the UCI set in scikit-learn, enlarged from 8x8. *Printed* digits are glyphs of the fonts
# inside matplotlib. Each glyph takes a random handwritten digit of its class as a template and is moved, scaled,
# slanted and thickened to the same centre, second moments and amount of ink. We compare block means at 4x4 resolution.
#
# The source is a DDPM (Ho et al. 2020: linear schedule, 1,000 steps, noise prediction) of the printed digits' training
# part, sampled ancestrally in few of its steps. The judge is a small convolutional network with two heads, trained on
# the training parts of both domains with a little noise. Distances are clean-fid's functions in its 64 features.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 0  # first seed
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
size: PositiveInt = 16  # side of an image, a multiple of 8
channels: list[PositiveInt] = [16, 32, 64]  # channels of the U-Net, a resolution each
steps: PositiveInt = 1600  # training steps of the source model
batch: PositiveInt = 32  # images a training step
lr: PositiveFloat = 2e-3  # learning rate
ema: PositiveFloat = 0.995  # decay of the averaged weights
classifier_steps: PositiveInt = 400  # training steps of the judge
seeds: PositiveInt = 3  # sets of samples
samples: PositiveInt = 100  # samples a set
sampling_steps: PositiveInt = 40  # sampling steps

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import torch

from lib.ground import diffusion, nets
from lib.measures.distances import frechet_distance, nearest
from lib.record import figures, run as record
from lib.worlds import digits as data, judge as metrics, sources

run = record.start("50_source", globals())
p = run.parameters

# %% [markdown]
# ### The two domains

# %%
# NBVAL_CHECK_OUTPUT
handwritten, printed, plain = data.handwritten(p.size), data.printed(p.size), data.plain(p.size)
printed_train, printed_held = data.split(printed)
handwritten_train, handwritten_held = data.split(handwritten)
print(f"{len(handwritten.labels)} handwritten, {len(printed.labels)} printed from {len(data.FONTS)} fonts")
print(f"held out: {len(handwritten_held.labels)} handwritten, {len(printed_held.labels)} printed")
print("printed images a digit:", torch.bincount(printed.labels).tolist())
print("classes of the biased target:", data.limited(handwritten).labels.unique().tolist())

# %% jupyter={"source_hidden": true} tags=["hide-input"]
gap = data.coarse_gap(handwritten.images, printed.images)
gap_plain = data.coarse_gap(handwritten.images, plain.images)
for name, g in (("matched", gap), ("plain", gap_plain)):
    run.number(f"gap_mean_{name}", g.mean)
    run.number(f"gap_spread_{name}", 100 * g.spread, "%")
    means, spreads = run.text(f"gap_mean_{name}"), run.text(f"gap_spread_{name}")
    print(f"{name}: block means differ by up to {means}, spreads by {spreads}")

shown = [(handwritten, 0), (handwritten, 9), (handwritten, 21), (printed, 3), (printed, 97), (printed, 171), (plain, 3)]
rows = [digits.images[digits.labels == k][offset] for digits, offset in shown for k in range(10)]
labels = ["handwritten", "", "", "printed", "", "", "not matched"]
alt = (
    "Digits 0 to 9 in seven rows: three rows of soft handwritten strokes, three rows of sharp printed glyphs in the "
    f"same places, one row of small unmatched glyphs. Block means differ by at most {gap.mean:.2f} when matched, "
    f"{gap_plain.mean:.2f} when not."
)
figures.show(run, "domains", lambda: figures.image_grid(torch.stack(rows), 10, row_labels=labels), alt=alt, kind="png")

# %% [markdown]
# ### The judge

# %% jupyter={"source_hidden": true} tags=["hide-input"]
judge = sources.classifier(run.artefacts / "classifier", p.size, p.classifier_steps, p.seed, run.device)
held = {"printed": printed_held, "handwritten": handwritten_held}
table = []
for domain, (name, digits) in enumerate(held.items()):
    digit, right_domain = metrics.accuracy(judge, digits, domain)
    run.number(f"accuracy_digit_{name}", 100 * digit, "%", digits=4)
    run.number(f"accuracy_domain_{name}", 100 * right_domain, "%", digits=4)
    table.append({"held-out images": name, "digit right (%)": 100 * digit, "domain right (%)": 100 * right_domain})

# %% [markdown]
# ### The source model

# %%
settings = {name: getattr(p, name) for name in ("size", "channels", "steps", "batch", "lr", "ema", "seed")}
unet, schedule = sources.source_model(run.artefacts / "source", **settings, device=run.device)
million, seconds = nets.parameter_count(unet) / 1e6, sources.seconds(run.artefacts / "source")
print(f"{million:.2f} million parameters, trained in {seconds:.0f} s")

# %%
sets = [sources.samples(unet, schedule, p.samples, s, p.sampling_steps) for s in run.seed_list]
verdicts = [metrics.judge(judge, images) for images in sets]
features = {name: metrics.judge(judge, digits.images).features for name, digits in held.items()}

# %% [markdown]
# ## Result
# Matching the layout brings the two domains together at 4x4 resolution, where glyphs as a font draws them are far
# apart. The first table says how often the judge is right on images it was not trained on; then the samples of the
# source are judged: are they printed, are all digits there, how far are they from held-out digits?
#
# The last two rows are of the same model sampled deterministically, by DDIM from the first set's noise, with every
# estimate of the clean image clamped (and the noise derived from it again) or not. This matters to experiments that
# compare two models from equal noise.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.table("judge", table)
run.number("frechet", [frechet_distance(v.features, features["printed"]) for v in verdicts])
run.number("printed_share", [100 * metrics.realism(v, metrics.PRINTED) for v in verdicts], "%")
half = metrics.judge(judge, printed_train.images[: len(printed_held.labels)]).features
floor, ceiling = (frechet_distance(x, features["printed"]) for x in (half, features["handwritten"]))
quality = {f"{p.seeds} sets of {p.samples} samples": (run.text("printed_share"), run.text("frechet"))}
quality |= {"as many training images": ("", f"{floor:.3g}"), "handwritten digits": ("", f"{ceiling:.3g}")}
noise = torch.randn(sets[0].shape, generator=torch.Generator().manual_seed(p.seed)).to(run.device)
for name, clip in (("clamped", True), ("free", False)):
    v = metrics.judge(judge, diffusion.sample_ddim(nets.eps_model(unet), schedule, noise, p.sampling_steps, clip=clip))
    share, distance = 100 * metrics.realism(v, metrics.PRINTED), frechet_distance(v.features, features["printed"])
    quality[f"{p.samples} samples by DDIM, {name}"] = f"{share:.3g} %", f"{distance:.3g}"
rows = [{"images": name, "printed": share, "Frechet distance": far} for name, (share, far) in quality.items()]
run.table("Frechet distance to held-out printed digits", rows)

# %% [markdown]
# Does the source repeat its training images? We compare the distance (root mean square over pixels) from each sample
# to the nearest training image with that from held-out printed digits, which were drawn from the same fonts.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
to_training = torch.stack([nearest(images, printed_train.images)[0] for images in sets])  # (seeds, samples)
usual = nearest(printed_held.images, printed_train.images)[0]
run.number("copies", 100 * (to_training < usual.quantile(0.01)).float().mean(1).double(), "%")
print(f"distance to the nearest training image: samples {to_training.mean():.3f},")
print(f"held-out digits {usual.mean():.3f}; nearer than 99 % of these: {run.text('copies')} of the samples")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
shares = 100 * torch.stack([metrics.histogram(v) for v in verdicts])  # (seeds, 10)
run.table("digits", [{"digit": k, "share of samples (%)": shares[:, k].mean().item()} for k in range(10)])
shown = sets[0][: 20 if p.samples >= 20 else 10]
closest = printed_train.images[nearest(shown, printed_train.images)[1]]
pairs = torch.cat([row for pair in zip(shown.split(10), closest.split(10), strict=True) for row in pair])
alt = (
    f"{len(shown)} samples of the source model, each above the nearest training image; on average "
    f"{run.numbers['frechet']['mean']:.0f} in Frechet distance from held-out printed digits, handwritten digits being "
    f"{ceiling:.0f} away."
)
grid = {"ncols": min(len(shown), 10), "row_labels": ["sample", "nearest"] * 2}
figures.show(run, "samples", lambda: figures.image_grid(pairs, **grid), alt=alt, kind="png")

# %% [markdown]
# ## Limits
# - Held-out printed digits come from the same 21 fonts as the training part, so "held out" means new layouts of known
#   glyphs.
# - The layout of the printed digits is copied from single handwritten digits. That is how the domains are made alike;
#   it also means that the source has seen the handwritten layout, though no handwritten stroke.
# - Distances live in the features of a judge trained on these very domains. They compare runs of this companion, and
#   nothing else. They also depend on the number of images.
# - At native 8x8 resolution the spreads at 4x4 differ more, because nothing is blurred by enlarging.

# %%
run.finish()
