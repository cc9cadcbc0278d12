# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Translators of your own, there and back
#
# ## Question
# You have two folders of pictures that are not paired. What do U-GAT-IT, UNIT or LaDiffGAN make of them, and what will
# it cost?
#
# ## Claim
# This notebook judges none. LaDiffGAN's claims on pictures are not tested yet; their test at the paper's size is in the
# job files `notebooks/own_images/jobs/ladiffgan-*.yaml`.
#
# ## Method
# One job takes two folders and trains two translators at once, from the first to the second and back, each of one
# network call. With `method = "LaDiffGAN"` an autoencoder and a diffusion model of latents are trained on each folder
# first; two more losses come from them, and they are not needed afterwards. Stopped at any time and started again, the
# job goes on.
#
# Without folders the example writes faces, people, animals and things by Noto and by Twemoji, different ones, and
# trains a small U-GAT-IT on them for minutes: long enough to see what a job leaves, not to translate well. What is left
# out otherwise is as in `lib.jobs.settings.TwoPlayer`.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeInt, PositiveInt

from lib.jobs.settings import OptionalCount, OptionalFloat, OptionalInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 20  # of everything random
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # folder of the notebook's own results; empty: runs/PROFILE
source_images: str = ""  # folder, data set on disk, or id on the hub; empty: by Noto
target_images: str = ""  # the other domain; empty: by Twemoji
translators: str = ""  # folder that the job fills; empty: artefacts/own-gan in the run's folder
method: str = "U-GAT-IT"  # or UNIT, LaDiffGAN
base: str = ""  # of LaDiffGAN: U-GAT-IT or UNIT
size: OptionalInt = None  # side of the pictures
width: OptionalInt = None  # channels of the networks' first layers
blocks: OptionalInt = None  # residual ones
light: bool = False  # U-GAT-IT's light version
noised: bool = False  # Diffusion-GAN's noise on all that discriminators see
kimg: OptionalFloat = None  # thousand pictures from its least to its most noise
steps: OptionalInt = None
batch: OptionalInt = None  # pictures of each domain a step, over all processes
lr: OptionalFloat = None  # constant, then falling to 0 at the last step
weight_decay: OptionalFloat = None
clip: OptionalFloat = None  # largest norm of a gradient; 0: any
ema: OptionalFloat = None  # decay of averaged generators, which are then the result; 0: the last ones
flip: bool = True  # mirror half of the pictures
lambda_ldg: OptionalFloat = None  # LaDiffGAN: weight of the latent diffusion GAN loss
lambda_hcd: OptionalFloat = None  # of the heterogeneous conditional denoising loss
reading: str = ""  # of that one: source, self or cross
condition: str = ""  # of the latent denoisers: grey or small
perceptual: str = ""  # features of the autoencoders' loss: neutral, or VGG-19, which is downloaded
ae_width: OptionalInt = None  # autoencoders: channels, steps, batch
ae_steps: OptionalInt = None
ae_batch: OptionalInt = None
ldm_width: OptionalInt = None  # latent diffusion models: the same
ldm_steps: OptionalInt = None
ldm_batch: OptionalInt = None
translated: OptionalInt = None  # pictures of each domain that are translated in the end, the first of them
shown: PositiveInt = 8  # columns of the sheet
save_every: OptionalCount = None  # steps between checkpoints
grid_every: OptionalCount = None  # steps between pictures in the logs, in which a collapse is seen
precision: str = "no"  # no or bf16
processes: PositiveInt = 1  # GPUs, or processes on CPUs
damaged: str = "refuse"  # or skip: what to do about files that cannot be read
recursive: bool = False  # read sub-folders, too
split: str = "train"  # of a data set
column: str = ""  # of a data set, with the pictures; empty: the only one

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import torch

from lib.jobs import estimate, gan, gate, job, report, settings
from lib.record import figures, run as record
from lib.worlds import emoji

run = record.start("69_own_gan", globals())
p = run.parameters

# %% [markdown]
# ### What a step costs
# Operations of a step of U-GAT-IT at its authors' size, of its light version, and of LaDiffGAN, without computing any:

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
folders = {"source_images": "a", "target_images": "b", "out": "job"}
for name, more in {"U-GAT-IT": {}, "light": {"light": True}, "LaDiffGAN": {"method": "LaDiffGAN"}}.items():
    full = settings.settings(**{"method": "U-GAT-IT"} | more | folders)
    load = gan.count(full, gan.begin(full, torch.device("cpu")))
    print(f"{name}: {load.flops:.1e} operations a picture, {load.trained / 1e6:.0f} M parameters in training")

# %% jupyter={"source_hidden": true} tags=["hide-input"]
fields, example = settings.TwoPlayer.model_fields, not (p.source_images or p.target_images)
given = {name: value for name, value in vars(p).items() if name in fields and value not in (None, "", [])}
given |= {"out": p.translators or run.artefacts / "own-gan"}
if example:
    for name, house, part in (("source_images", "noto", "source"), ("target_images", "twemoji", "target")):
        given[name] = str(run.folder / f"{house}-pictures")
        pictures = emoji.plain(house, part).images
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(p.seed))
        report.write_images(run.folder / f"{house}-pictures", pictures[order])
    small = {"size": 32, "width": 16, "blocks": 2, "steps": 200, "batch": 8, "lr": 4e-4, "ema": 0.98, "translated": 200}
    given = small | given | {"device": run.device.type, "light": True}

# %%
chosen = settings.settings(**given)
opened = gate.check(chosen)
print(opened)
print(estimate.estimate(chosen, opened.source))

# %% [markdown]
# ### The job
# The same as `python -m lib.jobs.job FOLDER/job.json`.

# %%
anew = example and not p.translators
result = job.anew(chosen, opened) if anew else job.run(chosen, opened)

# %% [markdown]
# ## Result
# The first pictures of each folder, and what the translators make of them.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
rows = result["translators"]
alt = (
    "Rows of pictures: of the first folder, translated into the second's domain, of the second folder, translated into "
)
alt += "the first's. Root mean square distance to the input, kernel distance to real pictures of the domain: "
alt += "; ".join(f"into the {row['name']} {row['distance']:.2f}, {row['kernel']:.2f}" for row in rows) + "."
figures.show(run, "sheet", lambda: gan.sheet(chosen.out / gan.SHEET), alt, "png")

# %% [markdown]
# *Distance* is the root mean square over the pixels, from -1 to 1; *kernel* is the kernel distance to the real pictures
# of the domain in the features of a network that nobody here trained, lower is nearer, beside that of the inputs;
# *varies* is how much translations differ among themselves, over how much their inputs do: near 0 all are alike, a
# collapse. FID and KID are there if Inception's weights are.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
columns = ["distance", "psnr", "kernel", "kernel_of_inputs", "varies", *(() if result["missing"] else ("fid", "kid"))]
run.table(
    "translators", [{"into": row["name"], **{key: row[key] for key in columns}} for row in rows], result["protocol"]
)
for row in rows:
    for key in ("distance", "kernel", "kernel_of_inputs", "varies"):
        run.number(f"{row['name']}_{key}", row[key])

# %% [markdown]
# ### Use it
# One call translates a batch:

# %%
translator = gan.load(chosen.out / "translators" / "target")
x = opened.reads["source_images"].images[:8]
y = translator(x).clamp(-1, 1)

# %% [markdown]
# ## Limits
# - One job is one run of one seed: its numbers have no interval.
# - Defaults are U-GAT-IT's, for a million steps at 256 x 256: some 140 hours of a GPU. LaDiffGAN's losses are a
#   reconstruction, their weights ours.
# - On a GPU a run that was stopped goes on from its checkpoint, but not bit for bit: there the gradient of reflected
#   borders is summed in no fixed order.
# - The hours of the estimate are those of this machine, for one process. None has been run on a GPU yet.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
run.finish()
