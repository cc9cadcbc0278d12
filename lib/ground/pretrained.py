"""The one loader of models in diffusers' layout: every tensor comes from the file, or the model is refused by name."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils import logging
from safetensors.torch import load_file

from lib.ground import diffusion
from lib.ground.diffusion import Schedule
from lib.ground.nets import noise_from_velocity
from lib.record.files import UserError, listed, reading

NAME = "diffusion_pytorch_model"
KINDS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")  # the best first; .bin as weights only
PREFIXES = ("_orig_mod.", "module.", "model.", "unet.")  # that torch.compile and parallel wrappers leave in the names
PREDICTIONS = ("epsilon", "v_prediction")
AGAIN = "download or copy it again"


def load(place: Path, parameter: str) -> tuple[UNet2DModel, DDPMScheduler, Schedule, list[str]]:
    """Load a DDPM from a folder in one of three layouts: U-Net, scheduler, the same noise levels, what was assumed.

    A pipeline (``unet/`` and ``scheduler/``), both at the top (google/ddpm-*), or a UNet2DModel alone (the noise levels
    of Ho et al. 2020 are then assumed). Weights are safetensors or old .bin files, whole or in shards, of any variant.
    Messages call the model `parameter`.
    """
    unet_place = place / "unet" if (place / "unet").is_dir() else place
    config = read_json(unet_place / "config.json", parameter)
    kind, of, to = (config.get(key, "") for key in ("_class_name", "in_channels", "out_channels"))
    wrong = ""
    if kind not in ("UNet2DModel", "") or (place / "vqvae").is_dir():
        wrong = f"a latent or conditional model ({kind}); name a pixel-space UNet2DModel"
    elif config.get("class_embed_type") or config.get("num_class_embeds"):
        wrong = "conditioned on classes; name an unconditional UNet2DModel"
    elif of not in (1, 3) or to not in (of, 2 * of):
        wrong = f"a map from {of} to {to} channels; images have 1 or 3, a variance as many again"
    else:
        wrong = _wrong_size(config)
    if wrong:
        raise UserError(f"{parameter}: {place} is {wrong}")
    levels, notes = scheduler(place, parameter)
    if to == 2 * of:
        notes.append("the model also predicts a variance: it is kept as it is, but neither trained nor used")
    unet, schedule = denoiser(unet_place, levels, parameter)
    return unet, levels, schedule, notes


def denoiser(place: Path, scheduler: Any, parameter: str, remedy: str = AGAIN) -> tuple[Any, Schedule]:
    """Load a U-Net that returns the noise, whatever it predicts, and the noise levels of its scheduler."""
    unet, schedule = network(UNet2DModel, place, parameter, remedy).eval(), diffusion.from_diffusers(scheduler)
    if scheduler.config["prediction_type"] == "v_prediction":
        noise_from_velocity(unet, schedule)
    return unet, schedule


def shape(unet: Any) -> tuple[int, int, int]:
    """Return the shape of a U-Net's images, (c, h, w): what it was built for."""
    size = unet.config["sample_size"]
    h, w = (size, size) if isinstance(size, int) else size
    return unet.config["in_channels"], h, w


def _wrong_size(config: dict[str, Any]) -> str:
    """Say what is wrong with the size that a U-Net was built for."""
    size, halvings = config.get("sample_size"), len(config.get("block_out_channels", (224, 448, 672, 896))) - 1
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        return f"without a size (sample_size {size!r}); write into config.json the side of the images it was trained on"
    step = 2**halvings
    if any(side % step for side in sides):
        low = max(min(sides) // step, 1) * step
        return f"for images of {size}, but halves them {halvings} times; its sample_size may be {low} or {low + step}"
    return ""


def read_json(path: Path, parameter: str, remedy: str = AGAIN) -> dict[str, Any]:
    """Return the content of a file of a model's folder."""
    with reading(path, f"{parameter}: expected a model in diffusers' layout, {remedy}"):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no settings; {parameter}: {remedy}")
    return found


def weights(place: Path) -> list[Path]:
    """Return the files of a network's weights in a folder, of the best kind that is there."""
    for kind in KINDS:
        plain = place / f"{NAME}{kind}"
        found = [plain] if plain.is_file() else sorted(place.glob(f"{NAME}.*{kind}"))
        if found := [file for file in found if "-of-" not in file.name]:
            return found
    return []


def network(kind: Any, place: Path, parameter: str, remedy: str = AGAIN) -> Any:
    """Load a network of diffusers whose file has just its weights; names with a wrapper's prefix are read, too."""
    found = weights(place)
    if len(found) != 1:
        names = listed(file.name for file in found)
        what = f"the variants {names}; keep one, or" if found else f"no weights; expected {NAME}.safetensors or .bin;"
        raise UserError(f"{parameter}: {place} holds {what} {remedy}")
    options: dict[str, Any] = {"use_safetensors": ".safetensors" in found[0].name, "output_loading_info": True}
    variant = found[0].name.removeprefix(f"{NAME}.").split(".")[0]
    if variant not in ("safetensors", "bin"):
        options["variant"] = variant
    loud = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with reading(found[0], f"{parameter}: {remedy}"):
            model, info = kind.from_pretrained(place, low_cpu_mem_usage=False, **options)
            if info["missing_keys"] or info["unexpected_keys"]:
                _unwrapped(model, found[0], info, parameter)
    finally:
        logging.set_verbosity(loud)
    return model


def _unwrapped(model: Any, file: Path, info: dict[str, Any], parameter: str) -> None:
    """Load weights whose names bear a prefix; refuse a file that lacks some, or has others."""
    missing, more = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    prefix = next((p for p in PREFIXES if more and all(key.startswith(p) for key in more)), "")
    if prefix and not file.name.endswith(".json"):
        loaded = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        stripped = {key.removeprefix(prefix): value for key, value in loaded.items()}
        if stripped.keys() == model.state_dict().keys():
            model.load_state_dict(stripped)
            return
    parts = {"lacks": missing, "has besides": more}
    what = " and ".join(f"{word} {len(names)} weights ({listed(names[:2])})" for word, names in parts.items() if names)
    raise UserError(f"{parameter}: {file} {what}; give the weights of the network that config.json describes")


def scheduler(place: Path, parameter: str, remedy: str = AGAIN) -> tuple[DDPMScheduler, list[str]]:
    """Return the scheduler of a model's folder, or Ho et al.'s with a note."""
    found = next((p for p in (place / "scheduler", place) if (p / "scheduler_config.json").is_file()), None)
    if found is None:
        note = "no scheduler beside the model: linear noise levels of Ho et al. 2020 are assumed"
        return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear"), [note]
    config = read_json(found / "scheduler_config.json", parameter, remedy)
    if "num_train_timesteps" not in config or "beta_schedule" not in config:
        kind = config.get("_class_name", "unknown")
        raise UserError(f"{parameter}: {place} has noise levels of another kind ({kind}); name a DDPM or DDIM model")
    if (predicts := config.get("prediction_type", "epsilon")) not in PREDICTIONS:
        raise UserError(
            f"{parameter}: {place} predicts '{predicts}'; name a model with one of {', '.join(PREDICTIONS)}"
        )
    try:
        return DDPMScheduler.from_config({k: v for k, v in config.items() if k != "_class_name"}), []
    except Exception:  # as many as there are settings
        what = f"noise levels that diffusers does not know ('{config['beta_schedule']}')"
        raise UserError(f"{parameter}: {place} has {what}; name a DDPM or DDIM model") from None
