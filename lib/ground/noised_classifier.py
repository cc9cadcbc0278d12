"""The noised classifier p(y | x_t) of ANT (Wang et al., ICML 2024, Sec. 4.1): is a noised image source or target?"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.ground.train import History, train
from lib.record.files import UserError


class NoisedClassifier(nn.Module):
    """Time-dependent classifier with the encoder of a diffusion model's own U-Net and a new linear head.

    The paper takes the noised ImageNet classifiers of guided diffusion (Dhariwal and Nichol 2021), replaces the last
    layer by one with two classes, and trains for 300 iterations at learning rate 1e-4 and batch 64. Those weights have
    no form that diffusers loads, and fit no other image size. The encoder of the source model itself has also been
    trained on noised images at every timestep, and is there for any U-Net: so the classifier begins with copies of its
    input convolution, time embedding, down blocks and middle block. On top come a group normalisation, the mean over
    positions, and a linear layer, zero at the start (p = 1/2). Class 0 is the source, 1 the target.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        names = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")
        self.conv_in, self.time_proj, self.time_embedding, self.down_blocks, self.mid_block = (
            copy.deepcopy(getattr(unet, name)) for name in names
        )
        self.centred = bool(unet.config["center_input_sample"])
        width = unet.config["block_out_channels"][-1]
        self.norm = nn.GroupNorm(unet.config["norm_num_groups"] or min(width // 4, 32), width)
        self.head = nn.Linear(width, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(unet.device)

    def features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the map after the middle block (B, C, h, w) of noised images x_t (B, c, H, W), timesteps t (B,)."""
        x = 2 * x_t - 1 if self.centred else x_t
        temb = self.time_embedding(self.time_proj(t).to(x.dtype))  # (B, channels of the time embedding)
        skip, x = x, self.conv_in(x)
        for block in self.down_blocks:
            if hasattr(block, "skip_conv"):  # the blocks of score SDE nets pass the image on as well
                x, _, skip = block(x, temb, skip_sample=skip)
            else:
                x, _ = block(x, temb)
        return x if self.mid_block is None else self.mid_block(x, temb)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return logits (B, 2) of noised images x_t (B, c, H, W) with timesteps t (B,)."""
        pooled = nn.functional.silu(self.norm(self.features(x_t, t))).mean((2, 3))  # (B, C)
        return self.head(pooled)


def train_noised(
    classifier: nn.Module,
    schedule: Schedule,
    source_images: Tensor,
    target_images: Tensor,
    steps: int = 300,
    batch: int = 64,
    lr: float = 1e-4,
    seed: int = 0,
) -> History:
    """Train a noised classifier in place by cross-entropy (Sec. 4.1), timesteps uniform; afterwards it is frozen.

    ``logits = classifier(x_t, t)`` (B, 2). Images of both domains are (n, c, h, w) in [-1, 1]; half of every batch is
    drawn from each, with replacement. Steps, batch and learning rate are the paper's, the weight decay is the official
    code's.
    """
    domains = (source_images, target_images)  # 0 source, 1 target
    if batch < 2 or batch % 2:
        raise UserError(f"batch: {batch} given; it should be even, half of it comes from each domain")
    device = next(classifier.parameters()).device
    classifier.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=1e-4, fused=True)

    def sample(generator: torch.Generator) -> list[Tensor]:
        chosen = [images[torch.randint(len(images), (batch // 2,), generator=generator)] for images in domains]
        x0 = torch.cat(chosen)  # (batch, c, h, w)
        y = torch.arange(2).repeat_interleave(batch // 2)
        t = torch.randint(schedule.T, (batch,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        return [part.to(device) for part in (x0, y, t, eps)]

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        loss = classifier_loss(classifier, schedule, *drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"cross_entropy": loss.detach()}

    history = train(step, sample, {"classifier": classifier}, {"classifier": optimizer}, steps, seed)
    classifier.requires_grad_(False).eval()
    return history


@torch.no_grad()
def accuracy(
    classifier: nn.Module, schedule: Schedule, source_images: Tensor, target_images: Tensor, t: int, seed: int = 0
) -> tuple[float, float]:
    """Return the shares of noised source and of noised target images (n, c, h, w) that the classifier tells, at one t.

    On target images that it has not seen, the second number says how far it generalises from few shots.
    """
    device = next(classifier.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    shares = []
    for y, images in enumerate((source_images, target_images)):
        eps = torch.randn(images.shape, generator=generator)
        x_t = schedule.add_noise(images.cpu(), eps, t).to(device)
        told = classifier(x_t, torch.full((len(images),), t, device=device)).argmax(1) == y
        shares.append(told.float().mean().item())
    return shares[0], shares[1]


def classifier_loss(classifier: nn.Module, schedule: Schedule, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return the cross-entropy of the noised classifier p(y | x_t) (Sec. 4.1), ``logits = classifier(x_t, t)`` (B, 2).

    The samples x0 (B, ...) are of both domains, y (B,) says which: 0 source, 1 target.
    """
    logits = classifier(schedule.add_noise(x0, eps, t), t)  # (B, 2)
    return nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())
