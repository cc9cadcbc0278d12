"""The image-to-image network of `lib.papers.dds` as a folder, and its training on a folder of one's own images."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.ground import folder as image_folder
from lib.ground.train import History
from lib.jobs.stable_diffusion.model import StableDiffusion, enough_memory
from lib.papers.dds.network import PAPER, UNETS, DistilledNetwork, Settings, Tasks, student_of, train_network
from lib.record.files import UserError, write_atomic

CONFIG, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"
INSTRUCTIONS, TRAINING = "instructions.safetensors", "training.json"
CHUNK = 64  # images decoded at a time


def save(student: DistilledNetwork, place: str | Path, training: Mapping[str, Any] | None = None) -> None:
    """Write a student as a folder: ``unet`` in diffusers' layout and its instructions, all safetensors.

    The folder appears complete, by one rename, in the place of an older student's.

    Parameters
    ----------
    training
        What it was trained with, as JSON, for the reader; kept in ``training.json``.

    Raises
    ------
    UserError
        The folder cannot be written, or holds something that is not a student.
    """
    place = Path(place)
    refuse_others(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    except OSError as error:
        raise UserError(f"cannot write to folder {place.parent}: {error.strerror}; choose another") from None
    try:
        student.unet.save_pretrained(draft / "unet", safe_serialization=True)
        save_file({"instructions": student.instructions.cpu().contiguous()}, draft / INSTRUCTIONS)
        write_atomic(draft / TRAINING, json.dumps(dict(training or {}), indent=1) + "\n")
        draft.chmod(0o755)
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_others(place: Path) -> None:
    """Refuse a folder that exists and is not a student's.

    Raises
    ------
    UserError
        With the folder.
    """
    if place.exists() and not (place / INSTRUCTIONS).is_file():
        raise UserError(f"{place}: holds something else than a trained student; name another folder")


def load(place: str | Path, device: torch.device | str = "cpu") -> DistilledNetwork:
    """Load a student written by `save`, in evaluation mode.

    Raises
    ------
    UserError
        A file is missing or damaged, or weights do not have the shapes of the config.
    """
    place = Path(place)
    for name in (CONFIG, WEIGHTS, INSTRUCTIONS):
        if not (place / name).is_file():
            raise UserError(f"student {place}: {name} is missing; train it first, or name another folder")
    try:
        kind = UNETS[json.loads((place / CONFIG).read_text(encoding="utf-8"))["_class_name"]]
        unet, info = kind.from_pretrained(
            place / "unet", low_cpu_mem_usage=False, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            raise ValueError("weights are missing or of another shape")
        student = DistilledNetwork(unet, load_file(place / INSTRUCTIONS)["instructions"])
    except UserError:
        raise
    except Exception as error:  # the libraries report a damaged file in many ways
        why = "weights of other shapes" if "shape" in str(error) or "size mismatch" in str(error) else "a damaged file"
        raise UserError(f"student {place}: {why}; delete the folder and train it again") from None
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
    save_every: int = 1000,
    progress: bool = True,
) -> Trained:
    """Train one network for several edits of a folder's images, with Stable Diffusion as the teacher (Fig. 6).

    Images are encoded once; training is in latent space and keeps checkpoints in ``out/training``. Stopped at any time
    and called again, it goes on; the trained student is then in ``out/student``.

    Parameters
    ----------
    teacher
        As from `lib.jobs.stable_diffusion.model.load`. The student starts from its U-Net, in float32.
    images
        Folder of images, which all show what `source` says.
    source
        Prompt of the images, such as "Photo of a cat."
    targets
        Instruction and target prompt of each task, such as {"Change to a lion.": "Photo of a lion."}.
    size
        Side of the images in pixels; None: the model's own.
    held_out
        Share of the images that training leaves out, at least one.

    Raises
    ------
    UserError
        No target; fewer than two images; and what `lib.ground.folder`, `lib.jobs.stable_diffusion.model` and training
        raise.
    """
    if not targets:
        raise UserError("targets: none given; name an instruction and a target prompt for each task")
    out = Path(out).expanduser()
    refuse_others(out / "student")  # before the training, not after it
    with torch.no_grad():
        prompts = Tasks(
            torch.cat([teacher.embed(y) for y in targets.values()]), teacher.embed(source), teacher.embed("")
        )
        instructions = torch.cat([teacher.embed(text) for text in targets])  # (K, 77, d)
    z = encoded(teacher, images, teacher.checked_size(size))
    left_out = max(1, round(held_out * len(z)))
    if left_out >= len(z):
        raise UserError(f"images: {len(z)} in {images}; give 2 or more, a share of {held_out:g} is held out")
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    held, kept = z[order[:left_out]], z[order[left_out:]]
    student = student_of(teacher.unet.unet, instructions).to(teacher.device)
    asked = {"source": source, "targets": dict(targets), "held_out": held_out}
    asked |= {"teacher": fingerprint(teacher.unet.unet), "images": fingerprint(images)}
    with enough_memory("batch, or size, or take precision bf16"):
        history = train_network(
            student,
            teacher.model,
            teacher.schedule,
            kept,
            prompts,
            settings,
            seed,
            out / "training",
            save_every,
            progress,
            parameters=asked,
        )
    save(student, out / "student", asdict(settings) | asked | {"seed": seed, "seconds": round(history.seconds, 1)})
    return Trained(student, kept, held, history)


def fingerprint(what: Any) -> str:
    """Return a digest of a network (the first weights of every tensor) or of an image folder (names, sizes, times).

    A training that was begun with another one is refused by it, instead of being continued.
    """
    digest = hashlib.sha256()
    if isinstance(what, nn.Module):
        for value in what.parameters():
            digest.update(value.detach().flatten()[:64].float().cpu().numpy().tobytes())
    else:
        for file in image_folder.image_files(Path(what).expanduser()):
            found = file.stat()
            digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def encoded(teacher: StableDiffusion, images: str | Path, size: int) -> Tensor:
    """Return latents (n, 4, h, w) of a folder's images, on the CPU, some images at a time: pixels take much memory."""
    place = Path(images).expanduser()
    files = image_folder.image_files(place) if place.is_dir() else []
    if not files:
        image_folder.read(place, size)  # says what is wrong
    parts = []
    with enough_memory("size"):
        for i in range(0, len(files), CHUNK):
            named = [(file.name, file) for file in files[i : i + CHUNK]]
            found = image_folder.collect(named, size, 3, "refuse", str(place))
            parts.append(teacher.encode(found.images).cpu())
    return torch.cat(parts)
