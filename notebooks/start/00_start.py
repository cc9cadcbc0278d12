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
# # Start here
#
# Each notebook of this companion takes claims of one paper, measures them, and says whether they stand.
#
# ## Question
# How do I read a result here, how do I change an experiment, and how do I run a method on my own images?

# %% [markdown]
# ## Claim
# This notebook tests no claim of a paper. To show how the others do, here is a claim about dice, in the form in which
# `claims.yaml` holds every claim: a sentence, and *checks* with rules that were written down before the run, as was the
# number of replicates. One check is the *primary* one, the claim's own sentence; a *control* is a run in which the
# effect must be absent, or must be there.
#
# A rule looks at the 95 % interval over the replicates: `equal` wants the whole of it within `delta` of the value,
# `above` and `below` on that side. An interval that lies neither inside nor outside is *undecided*, and so is then the
# claim. Ten replicates, then the card:

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import numpy as np
from IPython.display import HTML

from lib.record import claims


def dice():
    """Return a claim about dice, judged."""
    fair = {"rule": "equal", "value": 3.5, "delta": 0.1}
    entry = {
        "paper": "Dice",
        "where": "an example",
        "claim": "The mean of a fair die is 3.5; a loaded die gives itself away.",
        "expected": "3.5",
        "kind": "toy",
        "differs": "no die was thrown",
        "unit": "600 throws",
        "n": 10,
        "checks": [
            {"name": "fair", "role": "primary", "what": "mean of the throws", **fair},
            {"name": "loaded", "role": "control", "what": "the same, loaded", "rule": "above", "value": 3.6},
        ],
    }
    faces, throw = np.arange(1, 7), [np.random.default_rng(s) for s in range(10)]
    loads = {"fair": None, "loaded": np.array([1, 1, 1, 1, 1, 2]) / 7}
    measured = {name: [draw.choice(faces, 600, p=load).mean() for draw in throw] for name, load in loads.items()}
    return claims.judge("Z0", entry, measured)


HTML(claims.card("Z0", dice()))

# %%
# NBVAL_CHECK_OUTPUT
print(claims.card_text("Z0", dice()))

# %% [markdown]
# ### Parameters

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 0  # first seed
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
images: str = ""  # folder of your images; empty: ten handwritten digits
source: str = ""  # folder of a diffusers DDPM to start from; empty: the one of 50_source
steps: PositiveInt = 120  # fine-tuning steps
batch: PositiveInt = 16  # images a step
learning_rate: PositiveFloat = 1e-4  # of AdamW
lambda_sdft: NonNegativeFloat = 1.0  # weight of both distillation terms; 0 is naive fine-tuning
samples: PositiveInt = 12  # pictures to draw
sampling_steps: PositiveInt = 20  # of ancestral sampling

# %% [markdown]
# The cell above holds every parameter, with its type and its default. Papermill replaces them (`-p steps 50`, or a
# whole profile with `-f NAME.gpu.yaml`); the next cell refuses an unknown name, a wrong type or a value out of range.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import copy

import torch

from lib.ground import diffusion, folder, nets
from lib.ground.train import train
from lib.jobs import gate, hub
from lib.jobs.report import write_images
from lib.papers.sdft import method as sdft
from lib.record import figures, run as record
from lib.record.files import refuse_foreign, replacing
from lib.worlds import digits as data, sources

run = record.start("00_start", globals())
p = run.parameters

# %% [markdown]
# ## Method
# Now your own images. The methods are plain functions on tensors, and a model is any callable `eps = model(x_t, t)`.
# Without the parameters `images` and `source` the example takes ten handwritten digits, written to a folder as files
# first, and the model of `50_source`, which knows printed digits only (trained on first use, a few minutes, once).

# %% jupyter={"source_hidden": true} tags=["hide-input"]
mine, result = p.images or run.folder / "own_images", run.artefacts / "own"
gate.apart(result, images=p.images, source=p.source)
refuse_foreign(result)
if not p.images:
    digits = data.limited(data.handwritten(), n=10, seed=p.seed)
    write_images(mine, digits.images)

# %% [markdown]
# Source, student (a copy of it), schedule, images (files of any size and mode): all that a fine-tuning needs.

# %%
start = run.artefacts / "source"
if not (p.source or start.exists()):
    sources.source_model(start, device=run.device)
opened = hub.source(p.source or start, run.device)
unet, schedule, (channels, *size) = opened.unet, opened.schedule, opened.shape
own = folder.images(mine, tuple(size), channels=channels).to(run.device)
student = copy.deepcopy(unet).train().requires_grad_(True)
optimizer = torch.optim.AdamW(student.parameters(), lr=p.learning_rate)
print(f"{len(own)} images of {tuple(own.shape[1:])}, a model of {nets.parameter_count(unet) / 1e6:.2f} M parameters")

# %% [markdown]
# A batch is drawn from one generator, so that a run that was stopped goes on bit for bit. A step computes the loss
# of SDFT and updates the student. The loop does the rest: progress, checkpoints in `folder=...`, resuming.


# %%
def sample(generator):
    x0 = own[torch.randint(len(own), (p.batch,), generator=generator).to(own.device)]
    t = torch.randint(schedule.T, (p.batch,), generator=generator)
    return x0, t.to(own.device), torch.randn(x0.shape, generator=generator).to(own.device)


def step(drawn):
    models = nets.eps_model(student), nets.eps_model(unet)
    loss, parts = sdft.loss(*models, schedule, *drawn, lambda_distill=p.lambda_sdft, lambda_aux=p.lambda_sdft)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return parts


train(step, sample, {"student": student}, {"student": optimizer}, steps=p.steps, seed=p.seed)
with replacing(result) as draft:
    student.eval().save_pretrained(draft / "unet")

# %% [markdown]
# ## Result
# Source and student draw from the same noise. What the student keeps of the source's picture, and what it takes from
# your images, is the subject of `60_finetune`. `UNet2DModel.from_pretrained` loads the
# student from `artefacts/own/unet` in the run's folder.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
noise = torch.randn(p.samples, *own.shape[1:], generator=torch.Generator().manual_seed(p.seed))
shown = [own[torch.arange(p.samples) % len(own)].cpu()]
for net in (unet, student):
    later = torch.Generator().manual_seed(p.seed + 1)  # the same noise at every step, too
    model = nets.eps_model(net)
    shown.append(diffusion.sample(model, schedule, noise, p.sampling_steps, later, device=run.device))
figures.show(
    run,
    "own-images",
    lambda: figures.image_grid(torch.cat(shown), ncols=p.samples, row_labels=["yours", "source", "student"]),
    alt=f"Three rows of {p.samples} pictures: your images, samples of the source model, and samples of the student "
    f"after {p.steps} steps from the same noise.",
    kind="png",
)

# %% [markdown]
# ## Limits
# A few steps on ten small pictures show that the path works, no more. Numbers with intervals, seeds and controls are in
# the notebooks that follow; how long each takes at which profile is on the
# book's page *Costs*. A real job, with checkpoints, measures and the other methods, is `67_own_images`; the page *Your
# own images* has its command.

# %%
run.finish()
