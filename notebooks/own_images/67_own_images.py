# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images
#
# ## Question
# You have ten images, or a thousand, and a diffusion model of something else. What do the methods of this companion
# make of them, and what will it cost?
#
# ## Claim
# This notebook judges none. It is the way to test two of them at the paper's size, with the profile `paper` and the job
# files in `notebooks/own_images/jobs`:
#
# - **S2** (SDFT): with MetFaces or AAHQ as target, `method` SDFT against naive, at equal steps;
# - **A3** (ANT): with the ten images of a task as target, `method` ANT against "ANT without noise", adaptor and naive.
#
# ## Method
# One job takes a source model and images; it leaves a folder with the adapted model, its samples, a sample sheet, a
# file of metrics, curves for TensorBoard and checkpoints. Stopped at any time and started again, it goes on.
#
# `source` and `images` are folders or ids of the Hugging Face hub. Without `images` the example writes ten faces by
# Twemoji into a folder; without `source` the model of Noto's emoji in this repository is taken; the rest is as for
# yours. Values left at `None` are those of the method's paper; the example has a shorter training at a higher rate.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeInt, PositiveInt

from lib.jobs.settings import OptionalCount, OptionalFloat, OptionalInt, OptionalStr

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 20  # of everything random
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # folder of the notebook's own results; empty: runs/PROFILE
images: str = ""  # your images: folder, data set on disk, or id of one on the hub; empty: ten faces by Twemoji
source: str = ""  # model to start from: folder in diffusers' layout or id on the hub; empty: models/noto
model: str = ""  # folder that the job fills; empty: artefacts/own-job in the run's folder
reference: str = ""  # more images like yours, for FID, KID, precision and recall
method: str = "SDFT"  # naive, SDFT, adaptor, ANT without noise, ANT
steps: OptionalInt = None
batch: OptionalInt = None  # images a step, over all processes
lr: OptionalFloat = None  # learning rate of AdamW
ema: OptionalFloat = None  # decay of averaged weights, which are then the result
lambda_distill: OptionalFloat = None  # SDFT
lambda_aux: OptionalFloat = None
gamma_distill: OptionalFloat = None
gamma_aux: OptionalFloat = None
dropout: OptionalFloat = None  # of the student in training; SDFT and naive
gamma: OptionalFloat = None  # ANT: strength of the guidance
omega: OptionalFloat = None  # step of the ascent on the noise
J: OptionalCount = None  # its steps
d: OptionalInt = None  # channels of the adaptor's bottleneck
samples: OptionalInt = None
sampler: OptionalStr = None  # ddim or ancestral
sampling_steps: OptionalInt = None
grid_every: OptionalCount = None  # steps between pictures in the logs
score_every: OptionalCount = None  # steps between KIDs against the reference; the best model is then kept, too
precision: str = "no"  # no or bf16
accumulate: PositiveInt = 1  # passes a step, for less memory
gradient_checkpointing: bool = False  # less memory still, a third more time
processes: PositiveInt = 1  # GPUs, or processes on CPUs
damaged: str = "refuse"  # or skip: what to do about files that cannot be read
recursive: bool = False  # read sub-folders, too
split: str = "train"  # of a data set
column: str = ""  # of a data set, with the images; empty: the only one

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from pathlib import Path

from safetensors.torch import load_file

from lib.ground import folder
from lib.jobs import estimate, gate, job, report, settings
from lib.record import figures, run as record
from lib.worlds import emoji, emoji_judge, sources

run = record.start("67_own_images", globals())
p = run.parameters

# %% [markdown]
# ### What a method costs
# Passes of one image through network and classifier in a step, at the paper's settings: ANT needs many, but few steps.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
for name in settings.METHODS:
    example = settings.settings(method=name, source="model", images="images", out="job")
    forward, backward, classifier = estimate.passes(example)
    print(f"{name:18} {forward:3} forward {backward:3} backward {classifier:2} classifier, {example.steps:6,} steps")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
place, anew = run.artefacts / "own-job", not (p.model or p.images)  # an example is done anew each time
given = {name: value for name, value in vars(p).items() if name in settings.Settings.model_fields and value is not None}
given |= {"source": p.source or str(sources.MODELS / "noto"), "out": p.model or place}
given |= {"images": p.images or str(run.folder / "ten-faces")}
if not p.images:
    report.write_images(run.folder / "ten-faces", emoji.ten("faces", p.seed).images)
    small = {"steps": 60, "batch": 16, "lr": 1e-4, "lambda_distill": 1.0, "lambda_aux": 1.0, "dropout": 0.0}
    small |= {"samples": 64, "sampler": "ancestral", "sampling_steps": 20, "flip": True}
    given = small | given | {"device": run.device.type}

# %%
chosen = settings.settings(**given)
opened = gate.check(chosen)
print(opened)
print(estimate.estimate(chosen, opened.source))

# %% [markdown]
# ### The job
# The same as `python -m lib.jobs.job FOLDER/job.json`, which with several processes is what happens: a kernel that has
# touched the GPU cannot be split.

# %%
result = job.anew(chosen, opened) if anew else job.run(chosen, opened)

# %% [markdown]
# ## Result
# The first noises of the seed, not selected. Upper row: what the source makes of a noise; middle: what the student
# makes of the same one; below: the training image that is nearest to it, to see what was copied. A metric stands with
# its protocol, or with the reason why there is none. For the example there is a judge: what share of the samples does
# it take for Twemoji's?

# %% jupyter={"source_hidden": true} tags=["hide-input"]
pictures, distance = load_file(chosen.out / report.SHEET), result["nearest_training_distance"]
figures.show(
    run,
    "sheet",
    lambda: report.sheet(pictures),
    alt=f"Three rows of eight pictures: samples of the source, samples of the student ({chosen.method}, "
    f"{chosen.steps} steps) from the same noise, and the nearest of {result['images']['n']} training images, on "
    f"average {distance['mean']:.2f} away in root-mean-square pixel distance.",
    kind="png",
)
rows = [{"metric": "distance to the nearest training image", "value": distance["mean"], "note": distance["protocol"]}]
for name in ("intra_lpips", "fid", "kid", "precision", "recall"):
    reason = result["missing"].get(name, "").replace(str(Path.home()), "~")
    found = result[name] or {"value": "none", "protocol": reason}
    rows.append({"metric": name, "value": found["value"], "note": found["protocol"]})
if not p.images:
    drawn = folder.images(chosen.out / "samples", emoji.SIZE, channels=3)
    realism = (emoji_judge.load().judge(drawn).house == emoji.HOUSES.index("twemoji")).float().mean().item()
    rows.append({"metric": "taken for Twemoji's", "value": realism, "note": "our judge of emoji"})
    run.number("realism", realism)
run.table("metrics", rows)
run.number("nearest_training_distance", distance["mean"])
if distance["among_training"] is not None:
    run.number("distance_among_training", distance["among_training"])

# %% [markdown]
# `DDPMPipeline.from_pretrained(FOLDER / "model")` loads the student, or for the methods with an adaptor the source,
# beside which `lib.jobs.hub.source(FOLDER / "model")` puts the adaptor.
#
# ## Limits
# - One job is one run of one seed: its numbers have no interval. Compare methods over several seeds.
# - Ten faces of 32 x 32 pixels show that the path works. How the methods differ: `60_finetune` and `62_ant`.
# - FID on few images is biased upwards; KID is not, but it is noisy.
# - Intra-LPIPS is high for a source that was not adapted at all: read it beside a distance to the target.
# - The hours of the estimate are those of this machine, for one process.
# - The papers' sources were trained on FFHQ. The job files take the nearest one that diffusers can load, CelebA-HQ, and
#   say so; numbers of such a job are not the paper's.

# %%
run.finish()
