# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A translator of your own
#
# ## Question
# You have two folders of pictures that are not paired: some to be translated, and some like those that are to come out.
# What does RDMD make of them, and what will it cost?
#
# ## Claim
# This notebook judges none. RDMD's claims on pictures (R4 to R6) are tested in `11_rdmd_images`; their test at the
# paper's size, cats to wild animals at 64 pixels, is the job file `notebooks/own_images/jobs/rdmd-cat-wild.yaml`.
#
# ## Method
# One job takes two folders and, if there is one, a diffusion model of the target's pictures; without it, one is trained
# on the second folder first. For each $\lambda$, the weight of staying near the input, it leaves a translator that
# needs one call of its network. Stopped at any time and started again, the job goes on.
#
# Without folders the example writes faces, people, animals and things by Noto and by Twemoji, different ones, and takes
# the model of Twemoji's in this repository. Its training is a sixth of that in `11_rdmd_images`, at a higher rate. What
# is left out otherwise is as in `lib.jobs.settings.Translation`.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from lib.jobs.settings import OptionalCount, OptionalFloat, OptionalInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 20  # of everything random
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # folder of the notebook's own results; empty: runs/PROFILE
source_images: str = ""  # what is to be translated: folder, data set on disk, or id on the hub; empty: by Noto
target_images: str = ""  # pictures like those that are to come out; empty: by Twemoji
target_model: str = ""  # model of these, folder in diffusers' layout or id on the hub; empty: trained first
translator: str = ""  # folder that the job fills; empty: artefacts/own-translator in the run's folder
method: str = "RDMD"
lambdas: list[NonNegativeFloat] = []  # weights of staying near the input, a translator for each
cost: str = "L2"  # or LPIPS, in the features of EfficientNet-Lite0
sigma: OptionalFloat = None  # noise level at which the generator is held
steps: OptionalInt = None  # for each lambda
batch: OptionalInt = None  # pictures a step, over all processes
lr: OptionalFloat = None  # learning rate of the generator
fake_updates: OptionalInt = None  # of the fake before each of the generator
fake_lr: OptionalFloat = None
weight_decay: OptionalFloat = None
warmup: OptionalCount = None  # steps of rising learning rates
clip: OptionalFloat = None  # largest norm of a gradient; 0: any
ema: OptionalFloat = None  # decay of the averaged weights, which are the result; 0: the last ones
flip: bool = True  # mirror half of the pictures
size: OptionalInt = None  # side of the pictures, if the target's model is trained here
channels: list[PositiveInt] = []  # its channels, from the full resolution to the lowest
model_steps: OptionalInt = None  # its training
model_batch: OptionalInt = None
model_lr: OptionalFloat = None
translated: OptionalInt = None  # source pictures that are translated in the end, the first of them
save_every: OptionalCount = None  # steps between checkpoints
grid_every: OptionalCount = None  # steps between pictures in the logs
precision: str = "no"  # no or bf16
processes: PositiveInt = 1  # GPUs, or processes on CPUs
damaged: str = "refuse"  # or skip: what to do about files that cannot be read
recursive: bool = False  # read sub-folders, too
split: str = "train"  # of a data set
column: str = ""  # of a data set, with the pictures; empty: the only one

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import torch

from lib.jobs import estimate, gate, job, report, settings, translation
from lib.record import figures, run as record
from lib.worlds import emoji, sources

run = record.start("68_own_translator", globals())
p = run.parameters

# %% [markdown]
# ### What a step costs
# Passes of one picture through the network: the generator; the fake's own update, once or several times; fake and
# teacher where they are compared.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
for k in (1, 5):
    example = settings.settings("RDMD", source_images="a", target_images="b", out="job", fake_updates=k)
    forward, backward, _ = estimate.passes(example)
    print(f"fake_updates {k}: {forward} forward, {backward} backward")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
fields, example = settings.Translation.model_fields, not (p.source_images or p.target_images)
given = {name: value for name, value in vars(p).items() if name in fields and value not in (None, "", [])}
given |= {"out": p.translator or run.artefacts / "own-translator"}
if example:
    for name, house, part in (("source_images", "noto", "source"), ("target_images", "twemoji", "target")):
        given[name] = str(run.folder / f"{house}-pictures")
        pictures = emoji.plain(house, part).images
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(p.seed))
        report.write_images(run.folder / f"{house}-pictures", pictures[order])
    small = {"lambdas": [0.05, 1.0], "steps": 100, "batch": 8, "lr": 1e-4, "fake_lr": 5e-4, "translated": 200}
    small |= {"target_model": str(sources.MODELS / "twemoji")}
    given = small | given | {"device": run.device.type}

# %%
chosen = settings.settings(**given)
opened = gate.check(chosen)
print(opened)
print(estimate.estimate(chosen, opened.source))

# %% [markdown]
# ### The job
# The same as `python -m lib.jobs.job FOLDER/job.json`.

# %%
anew = example and not p.translator
result = job.anew(chosen, opened) if anew else job.run(chosen, opened)

# %% [markdown]
# ## Result
# The first pictures of the first folder, and what each translator makes of them.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = result["translators"]
alt = "Rows of eight pictures: inputs, and their translations with one network call. Lambda, root mean square distance "
alt += "to the input, kernel distance to the target's pictures: "
alt += "; ".join(f"{row['lambda']:g}, {row['distance']:.2f}, {row['kernel']:.2f}" for row in rows)
alt += f"; the inputs' own kernel distance is {result['kernel_of_inputs']:.2f}."
figures.show(run, "sheet", lambda: translation.sheet(chosen.out / translation.SHEET), alt, "png")

# %% [markdown]
# *Distance* is the root mean square over the pixels, from -1 to 1; *kernel* is the kernel distance of the features of a
# network that nobody here trained, lower is nearer to the second folder. A smaller $\lambda$ goes farther from the
# input. Whether it also comes nearer to the target, look: for two houses of emoji that network finds sharp inputs
# nearer than blurred outputs. FID and KID are there if Inception's weights are.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
columns = ["distance", "psnr", "kernel", *(() if result["missing"] else ("fid", "kid"))]
inputs = {"distance": 0.0, "kernel": result["kernel_of_inputs"]}
table = [dict.fromkeys(["translator", *columns], "") | {"translator": "none (the inputs)"} | inputs]
for i, row in enumerate(rows):
    table.append({"translator": f"lambda {row['lambda']:g}", **{key: row[key] for key in columns}})
    for key in ("distance", "kernel"):
        run.number(f"{key}_{i}", row[key])
run.table("translators", table, result["protocol"])
run.number("kernel_of_inputs", result["kernel_of_inputs"])

# %% [markdown]
# ### Use it
# One call translates a batch:

# %%
generator = translation.load(chosen.out / "translators" / f"{chosen.lambdas[0]:g}")
x = opened.reads["source_images"].images[:8]
y = generator(x).clamp(-1, 1)

# %% [markdown]
# ## Limits
# - One job is one run of one seed: its numbers have no interval.
# - What $\lambda$ means depends on the weighting; the paper's is not known to us. Give several and look.
# - A model that is trained on few pictures repeats them, and so will its translator; name a model of many if you can.
# - The hours of the estimate are those of this machine, for one process. None has been run on a GPU yet.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
