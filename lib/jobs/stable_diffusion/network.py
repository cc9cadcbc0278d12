"""The image-to-image network of `lib.papers.dds` as a folder, and its training on a folder of one's own images."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.ground import folder, pretrained
from lib.ground.batching import enough_memory
from lib.ground.nets import fingerprint
from lib.ground.train import History
from lib.jobs import gate
from lib.jobs.stable_diffusion.model import StableDiffusion
from lib.papers.dds.network import PAPER, UNETS, DistilledNetwork, Settings, Tasks, student_of, train_network
from lib.record.files import UserError, expanded, reading, refuse_foreign, replacing, room, write_atomic

CONFIG, INSTRUCTIONS, TRAINING = "unet/config.json", "instructions.safetensors", "training.json"
SAVE_EVERY = 1000  # iterations between checkpoints


def save(student: DistilledNetwork, place: str | Path, training: Mapping[str, Any] | None = None) -> None:
    """Write a student as a folder: ``unet`` in diffusers' layout and its instructions, all safetensors.

    What it was trained with is kept, for the reader.
    """
    with replacing(Path(place)) as draft:
        student.unet.save_pretrained(draft / "unet", safe_serialization=True)
        save_file({"instructions": student.instructions.cpu().contiguous()}, draft / INSTRUCTIONS)
        write_atomic(draft / TRAINING, json.dumps(dict(training or {}), indent=1) + "\n")


def load(place: str | Path, device: torch.device | str = "cpu") -> DistilledNetwork:
    """Load a student written by `save`, in evaluation mode."""
    place = Path(place)
    remedy = "train the student again, or name another folder"
    with reading(place, remedy):
        kind = UNETS[json.loads((place / CONFIG).read_text(encoding="utf-8"))["_class_name"]]
        unet = pretrained.network(kind, place / "unet", "student", remedy)
        student = DistilledNetwork(unet, load_file(place / INSTRUCTIONS)["instructions"])
    return student.to(device).eval()


class Trained(NamedTuple):
    """What `train_on_folder` returns."""

    student: DistilledNetwork
    z_hat: Tensor  # (n, 4, h, w): latents it was trained on
    held_out: Tensor  # (m, 4, h, w): latents of the images that training left out
    history: History


def train_on_folder(
    teacher: StableDiffusion,
    images: str | Path,
    out: str | Path,
    source: str,
    targets: Mapping[str, str],
    settings: Settings = PAPER,
    size: int | None = None,
    held_out: float = 0.05,
    seed: int = 0,
) -> Trained:
    """Train one network for several edits of a folder's images, with Stable Diffusion as the teacher (Fig. 6).

    Images are encoded once; training is in latent space and keeps checkpoints in ``out/training``. Stopped at any time
    and called again, it goes on; the trained student is then in ``out/student``.

    Parameters
    ----------
    teacher
        The student starts from its U-Net, in float32.
    images, source
        Folder of images, and the prompt of what all of them show, such as "Photo of a cat."
    targets
        Instruction and target prompt of each task, such as {"Change to a lion.": "Photo of a lion."}.
    size
        Side of the images in pixels; None: the model's own.
    held_out
        Share of the images that training leaves out, at least one.
    """
    if not targets:
        raise UserError("targets: none given; name an instruction and a target prompt for each task")
    out = expanded(out, "out")
    refuse_foreign(out / "student")  # before the training, not after it
    gate.apart(out, images=images)
    y, instructions = (torch.cat([teacher.embed(text) for text in texts]) for texts in (targets.values(), targets))
    z = encoded(teacher, images, teacher.checked_size(size))
    left_out = max(1, round(held_out * len(z)))
    if left_out >= len(z):
        raise UserError(f"images: {len(z)} in {images}; give 2 or more, a share of {held_out:g} is held out")
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    held, kept = z[order[:left_out]], z[order[left_out:]]
    student = student_of(teacher.unet.unet, instructions).to(teacher.device)
    asked = {"source": source, "targets": dict(targets), "held_out": held_out}
    asked |= {"teacher": fingerprint(teacher.unet.unet), "images": of_images(expanded(images, "images"))}
    checkpoints: dict[str, Any] = {"folder": out / "training", "save_every": SAVE_EVERY, "parameters": asked}
    tasks = Tasks(y, teacher.embed(source), teacher.embed(""))
    with room(out), enough_memory("batch, or size, or take precision bf16"):
        history = train_network(student, teacher.model, teacher.schedule, kept, tasks, settings, seed, **checkpoints)
    save(student, out / "student", asdict(settings) | asked | {"seed": seed, "seconds": round(history.seconds, 1)})
    return Trained(student, kept, held, history)


def of_images(place: Path) -> str:
    """Return a digest of an image folder (names, sizes, times): a training begun on another one is not continued."""
    found = [(file.name, file.stat()) for file in folder.image_files(place)]
    marks = [f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape") for name, stat in found]
    return hashlib.sha256(b"".join(marks)).hexdigest()[:16]


def encoded(teacher: StableDiffusion, images: str | Path, size: int) -> Tensor:
    """Return latents (n, 4, h, w) of a folder's images, on the CPU, some images at a time: pixels take much memory."""
    with enough_memory("size"):
        return torch.cat([teacher.encode(some).cpu() for _, some in folder.chunks(images, size, 64)])
