# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two houses of emoji, and a model of each
#
# ## Question
# Noto and Twemoji draw the same faces, people, animals, plants and food, each house in its own style. So for every
# picture of one house we have the picture that a perfect translation would give. How far apart are the two houses, can
# a judge that nobody here trained find the partner of a picture, and are the two diffusion models good enough to start
# from?

# %% [markdown]
# ## Claim
# No claim of a paper is tested here. The numbers below stand beside those of other notebooks as ceilings and floors.

# %% [markdown]
# ## Method
# The emoji are divided by families (a man, a woman and a person at the same task share their part): *source*, *target*
# and *test*. Noto's model was trained on the source part, Twemoji's on the target part, so no model ever saw both
# drawings of an emoji; the pairs of the test part were seen by none.
#
# The judge is EfficientNet-Lite0, trained on ImageNet. A picture's *partner* is looked for by the cosine of features,
# each set about its own mean. Frechet distances are clean-fid's, in the features' first 64 principal components; with a
# few hundred pictures they are far from 0 even between two halves of one house, which is the ceiling that we state.
# A small network of our own says which house drew a picture.
#
# Both models predict the velocity $v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,x_0$ (Salimans and Ho
# 2022). At the highest noise this is the picture itself, up to its sign, where a prediction of the noise would have to
# hide the picture in its last digits.

# %% jupyter={"source_hidden": true} tags=["parameters", "hide-input"]
from pydantic import NonNegativeInt, PositiveInt

profile: str = "cpu"  # smoke, cpu, gpu or paper
seed: NonNegativeInt = 0  # of the noise
device: str = "auto"  # auto, cpu, cuda
out: str = ""  # output folder; empty: runs/PROFILE
samples: PositiveInt = 100  # pictures drawn by each model and sampler
sampling_steps: PositiveInt = 50  # steps of a sampler

# %% jupyter={"source_hidden": true} tags=["hide-input"]
from functools import partial

import torch

from lib.ground import diffusion
from lib.ground.nets import eps_model
from lib.measures import neutral
from lib.measures.distances import nearest
from lib.record import figures, run as record
from lib.worlds import emoji, sources
from lib.worlds import emoji_judge as judges, emoji_measures as measures

run = record.start("51_emoji", globals())
p = run.parameters

# %% [markdown]
# ## Result
# ### The pictures
# Twenty emoji of the test part, Noto above, Twemoji below.

# %%
# NBVAL_CHECK_OUTPUT
pairs = {house: emoji.drawings(house, "test") for house in emoji.HOUSES}
noto, twemoji = pairs.values()
print({part: sum(one.part == part for one in emoji.table()) for part in emoji.PARTS})

# %% jupyter={"source_hidden": true} tags=["hide-input"]
plain = torch.nonzero(noto.tones == 0).flatten()
shown = plain[torch.linspace(0, len(plain) - 1, 20).long()].view(2, 10)
rows = torch.cat([torch.cat([pairs[house].images[half] for house in emoji.HOUSES]) for half in shown])
names = ", ".join(emoji.table()[number].name.replace("_", " ") for number in noto.emoji[shown.flatten()].tolist())
alt = f"Four rows of ten pictures, Noto and Twemoji in turns: {names}."
labels = ["Noto", "Twemoji"] * 2
figures.show(run, "pairs", lambda: figures.image_grid(rows, 10, row_labels=labels), alt, "png")

# %% [markdown]
# ### How far apart the houses are, and what the judges see

# %%
space = measures.space(run.artefacts)
table = emoji.table()
parts = [table[number].part for number in emoji.drawings("noto").emoji.tolist()]
tones = emoji.drawings("noto").tones


def features(house, *names):
    """Return the neutral features of the plain drawings of some parts."""
    return space.features[house][torch.tensor([part in names for part in parts]) & (tones == 0)]


# %% jupyter={"source_hidden": true} tags=["hide-input"]
judge = judges.load()
ours = torch.cat([pairs[house].images for house in emoji.HOUSES])
verdicts, houses = judge.judge(ours), torch.arange(2).repeat_interleave(len(noto.emoji))
run.number("house_accuracy", 100 * (verdicts.house == houses).double().mean(), "%", digits=3)
right = verdicts.category == judges.categories(noto).repeat(2)
run.number("category_accuracy", 100 * right.double().mean(), "%", digits=3)

everything = [features(house, *emoji.PARTS) for house in emoji.HOUSES]
index = torch.arange(len(everything[0]))
run.number("partner_first", 100 * measures.found(*everything, index), "%")
run.number("partner_five", 100 * measures.found(*everything, index, first=5), "%")
both = [emoji.select(emoji.drawings(house), tones == 0).images for house in emoji.HOUSES]
run.number("paired_rms", (both[0] - both[1]).square().mean().sqrt())
order = torch.randperm(len(both[1]), generator=torch.Generator().manual_seed(p.seed))
run.number("unpaired_rms", (both[0] - both[1][order]).square().mean().sqrt())

# %% [markdown]
# ### A hundred pictures of each model, not selected
# By ancestral sampling, and below by DDIM, which takes no fresh noise. Both models begin with the same noises.
#
# Counted by eye, about 55 of Noto's hundred and 50 of Twemoji's pass for emoji: nearly all faces and people, few of the
# animals and of the food, which are often blots of the right colour.

# %%
noise = torch.randn(p.samples, 3, emoji.SIZE, emoji.SIZE, generator=torch.Generator().manual_seed(p.seed))
drawn = {}
for house in emoji.HOUSES:
    unet, schedule = sources.load(house, run.device)
    drawn[house, "ancestral"] = sources.samples(unet, schedule, p.samples, p.seed, p.sampling_steps)
    deterministic = diffusion.sample(eps_model(unet), schedule, noise, p.sampling_steps, device=run.device)
    drawn[house, "DDIM"] = deterministic

# %% jupyter={"source_hidden": true} tags=["hide-input"]
for house in emoji.HOUSES:
    grid = partial(figures.image_grid, drawn[house, "ancestral"], 20, cell=0.36)
    alt = f"{p.samples} pictures by the model of {house.capitalize()}'s drawings, not selected: people, faces, hands, "
    alt += "animals and food, about half of them whole, the rest blots."
    figures.show(run, f"samples-{house}", grid, alt, "png")

# %% [markdown]
# The first twenty noises, decoded by both models with DDIM. The two were trained apart, on other emoji.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
first = torch.cat([drawn[house, "DDIM"][10 * k : 10 * k + 10] for k in (0, 1) for house in emoji.HOUSES])
alt = "Four rows of ten pictures, in turns by Noto's and by Twemoji's model, a column of each pair from one noise."
figures.show(run, "same-noise", lambda: figures.image_grid(first, 10, row_labels=labels), alt, "png")

# %% [markdown]
# The first ten pictures of Noto's model, and below each the training picture (or its mirror image) that is nearest.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
seen = {house: emoji.drawings(house, part).images for house, part in zip(emoji.HOUSES, emoji.PARTS, strict=False)}
copies = {house: torch.cat([images, images.flip(-1)]) for house, images in seen.items()}
ours = drawn["noto", "ancestral"]
beside = torch.cat([ours[:10], copies["noto"][nearest(ours[:10], copies["noto"])[1]]])
alt = "Ten pictures of the model, and the training pictures nearest to them."
figures.show(run, "nearest", lambda: figures.image_grid(beside, 10, row_labels=["model", "nearest"]), alt, "png")

# %% [markdown]
# ### In numbers
# The Frechet distance is that to the house's drawings of the other two parts; the training pictures themselves stand
# for what is possible. The distance to the nearest training picture (root mean square, median) tells a copy from a new
# picture; that of drawings never seen stands beside it.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
described = {key: neutral.features(images) for key, images in drawn.items()}
rows = []
for number, house in enumerate(emoji.HOUSES):
    part, unseen = emoji.PARTS[number], [name for name in emoji.PARTS if name != emoji.PARTS[number]]
    held_out = features(house, *unseen)
    real = {"its training pictures": (features(house, part), None), "pictures never seen": (None, pairs[house].images)}
    for what in ("ancestral", "DDIM", *real):
        key = f"{house}_{what.lower().replace(' ', '_')}"
        found, images = (described[house, what], drawn[house, what]) if what not in real else real[what]
        one = {"house": house.capitalize(), "pictures": what}
        if found is not None:
            run.number(f"{key}_frechet", space.frechet(found, held_out))
            one["Frechet"] = run.text(f"{key}_frechet")
        if images is not None:
            right = (judge.judge(images).house == number).double().mean()
            run.number(f"{key}_house", 100 * right, "%")
            run.number(f"{key}_nearest", nearest(images, copies[house])[0].median())
            one |= {"its house (%)": run.text(f"{key}_house"), "nearest": run.text(f"{key}_nearest")}
        rows.append(dict.fromkeys(("house", "pictures", "Frechet", "its house (%)", "nearest"), "") | one)
run.table("samples", rows)
run.number("same_noise", measures.found(*(described[house, "DDIM"] for house in emoji.HOUSES), index[: p.samples]))
print(f"pictures of one noise that find each other first among {p.samples}: {run.text('same_noise')}")

# %% [markdown]
# ## Limits
# - Most emoji have one drawing a house, so these models know some four hundred objects, half of them people and faces.
# - The judge of houses was trained on clean drawings; what it says of a blot means little.
# - A Frechet distance from a hundred pictures is too large; the rows are to be compared with each other.

# %%
run.finish()
