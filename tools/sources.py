"""Train a source model that models/ holds, and put it there: half precision, diffusers' layout, with a card.

`python -m tools.sources noto` goes on where it was stopped, in runs/sources; `make sources` does all, side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import save

from lib.record import show
from lib.record.files import ROOT, replacing, write_atomic
from lib.record.run import commit
from lib.worlds import emoji, emoji_judge as judge, sources

TRAINED = ROOT / "runs" / "sources"
CARD = ROOT / "tools" / "templates" / "model-card.md"
LICENCES = {"noto": "Apache 2.0", "twemoji": "CC BY 4.0"}


def export(name: str) -> None:
    """Write models/NAME from the trained model in runs/sources/NAME."""
    trained = TRAINED / name
    unet, _ = sources.load(trained)
    scheduler = DDPMScheduler.from_pretrained(trained, subfolder="scheduler")
    settings = json.loads((trained / sources.SETTINGS).read_text(encoding="utf-8"))
    with replacing(sources.MODELS / name) as draft:
        half = unet.half().to(memory_format=torch.contiguous_format)
        half.register_to_config(_name_or_path="")  # else the place on this machine
        DDPMPipeline(half, scheduler).save_pretrained(draft)
        weights = draft / "unet" / "diffusion_pytorch_model.safetensors"
        about = {
            "name": name,
            "drawings": name.capitalize(),
            "part": emoji.PARTS[emoji.HOUSES.index(name)],
            "licence": LICENCES[name],
            "parameters": sum(value.numel() for value in unet.parameters()),
            "hours": sources.seconds(trained) / 3600,
            "digest": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "commit": commit()["commit"],
            "settings": settings,
        }
        card = show.TEMPLATES.from_string(CARD.read_text(encoding="utf-8"))
        write_atomic(draft / "README.md", card.render(about) + "\n")
        write_atomic(draft / sources.SETTINGS, json.dumps(settings | {"digest": about["digest"]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=(*emoji.HOUSES, "judge"))
    name = parser.parse_args().name
    if name == "judge":
        weights = {key: value.half() for key, value in judge.train_judge().state_dict().items()}
        write_atomic(judge.FILE, save(weights))
    else:
        emoji.source_model(TRAINED / name, name)
        export(name)


if __name__ == "__main__":
    main()
