"""Fine-tuning of an image model with any of the methods: batches, one optimizer, the training loop, what to look at.

On several processes the gradients are averaged here, between the backward pass and the optimizer's step, instead of by
DistributedDataParallel: a `loss` calls the network itself, some call it several times, and the hooks of that wrapper
allow one call of the wrapper a step. It costs the overlap of communication and backward pass, and nothing else.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lib.ground.checkpoint import cuda_devices
from lib.ground.diffusion import Schedule
from lib.ground.train import History, train
from lib.record.files import UserError, write_atomic
from lib.record.parameters import non_negative

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = tuple[Tensor, Tensor, Tensor]  # x0, t, eps
Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]  # loss, parts = loss(x0, t, eps)
BEST = "best/student.safetensors"


def finetune(
    student: nn.Module,
    schedule: Schedule,
    images: Tensor,
    loss: Loss,
    steps: int,
    batch: int = 16,
    lr: float = 2e-5,
    seed: int = 0,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    on_step: Callable[[int], None] | None = None,
    progress: bool = True,
    folder: str | Path | None = None,
    save_every: int = 0,
    parameters: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    accumulate: int = 1,
    warmup: int = 0,
    clip: float | None = None,
    ema: float | None = None,
    flip: bool = False,
    logs: str | Path | None = None,
    grid: Callable[[], Tensor] | None = None,
    grid_every: int = 500,
    score: Callable[[], float] | None = None,
    score_every: int = 500,
) -> History:
    """Train those parameters of `student` that require a gradient, in place, by AdamW at a constant rate.

    Images, timesteps and noises come from `seed` alone: runs with another `loss` and the same seed see the same ones.

    Parameters
    ----------
    student
        The network in training; `loss` calls it. It is in training mode inside the loop, and in evaluation mode after.
        Its parameters and optimizer are float32, also in mixed precision.
    schedule
        Its noise schedule; timesteps are drawn uniformly from it.
    images
        Target images, (n, c, h, w) in [-1, 1], on any device; batches are moved to the student's.
    loss
        ``loss(x0, t, eps)`` returns the scalar loss and its named parts, detached.
    steps, batch, lr, betas, weight_decay
        Length of the training, images a step (drawn with replacement), and the options of AdamW.
    on_step
        ``on_step(i)`` after step i = 1, ..., steps, in every process; the student is in evaluation mode inside it.
    folder, save_every, parameters
        Checkpoints and what a resumed run must share with them, as in :func:`lib.ground.train.train`, beside the
        arguments of this function that change the training.
    accelerator
        Its processes each draw `batch` images and average their gradients; its "bf16" runs `loss` in mixed precision.
    accumulate
        Passes of `batch` images each whose mean gradient makes one step: as a batch ``accumulate`` times as large.
    warmup
        Steps in which the learning rate grows linearly to `lr`.
    clip
        Largest norm of the gradient; the norm before clipping is recorded as ``grad_norm``.
    ema
        Decay of an average of the weights. `grid` and `score` then see the student with the averaged weights.
    flip
        Mirror half of the images of a batch, at random.
    logs
        Folder for TensorBoard: all values, grids and scores.
    grid, grid_every
        ``grid()`` returns images (n, c, h, w) in [-1, 1]; in the main process, every `grid_every` steps and after the
        last, they become ``samples/step-000123.png`` in `folder`.
    score, score_every
        ``score()`` returns a number, lower is better; called like `grid`. The weights of the lowest are kept, see
        :func:`best`. Neither disturbs the random numbers of the training.

    Raises
    ------
    UserError
        An argument out of range, and what :func:`lib.ground.train.train` raises.
    """
    for name, number in {"accumulate": accumulate, "grid_every": grid_every, "score_every": score_every}.items():
        if number < 1:
            raise UserError(f"{name}: {number} given; it should be 1 or larger")
    non_negative(warmup=warmup, clip=clip or 0)
    if ema is not None and not 0 <= ema < 1:
        raise UserError(f"ema: {ema:g} given; a decay from 0 to below 1, such as 0.999")
    if (score and not folder) or (grid and not (folder or logs)):
        raise UserError("folder: none given; `score` and `grid` need one for what they keep")
    if accelerator and accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(f"mixed_precision: '{accelerator.mixed_precision}' given; choose no or bf16")
    network = accelerator.unwrap_model(student) if accelerator else student
    trained = [p for p in student.parameters() if p.requires_grad]
    if not trained:
        raise UserError("student: no parameter requires a gradient; call requires_grad_(True) on what is to be trained")
    device = trained[0].device
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    optimizers: dict[str, Any] = {"student": optimizer}
    if warmup:
        optimizers["warmup"] = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / warmup))

    def sample(generator: torch.Generator) -> Batch:
        n = accumulate * batch
        index = torch.randint(len(images), (n,), generator=generator)
        t = torch.randint(schedule.T, (n,), generator=generator)
        eps = torch.randn(n, *images.shape[1:], generator=generator)  # (n, c, h, w)
        x0 = images[index.to(images.device)].to(device)
        if flip:
            mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
            x0 = torch.where(mirrored.to(device), x0.flip(3), x0)
        return x0, t.to(device), eps.to(device)

    def step(drawn: Batch) -> dict[str, Tensor]:
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for micro in zip(*(d.split(batch) for d in drawn), strict=True):
            with accelerator.autocast() if accelerator else nullcontext():
                total, parts = loss(*micro)
            (total / accumulate).backward()
            sums = {name: sums[name] + value for name, value in parts.items()} if sums else parts
        if accelerator and accelerator.num_processes > 1:
            for p in trained:  # one by one: a copy of all gradients at once would take as much memory as the weights
                if p.grad is not None:  # in all processes or in none: they run the same loss
                    p.grad = accelerator.reduce(p.grad, "mean")
        if accumulate > 1:
            sums = {name: value / accumulate for name, value in sums.items()}
        if clip:
            sums = sums | {"grad_norm": nn.utils.clip_grad_norm_(trained, clip)}
        optimizer.step()
        if warmup:
            optimizers["warmup"].step()
        return sums

    main = accelerator is None or accelerator.is_main_process
    watch = _Watch(network, History(), None if folder is None else Path(folder), logs)

    def after(i: int, values: dict[str, float]) -> None:
        if on_step:
            student.eval()
            on_step(i)
            student.train()
        if main:
            watch.log(i, values)
            if grid and (i % grid_every == 0 or i == steps):
                watch.draw(i, grid)
            if score and (i % score_every == 0 or i == steps):
                watch.judge(i, score)

    settings = {"images": images.shape, "batch": batch, "lr": lr, "betas": betas, "weight_decay": weight_decay}
    settings |= {"accumulate": accumulate, "warmup": warmup, "clip": clip, "flip": flip, **(parameters or {})}
    student.train()
    with closing(watch), _float32_output(network, accelerator):
        history = train(
            step,
            sample,
            {"student": network},
            optimizers,
            steps,
            seed,
            None if ema is None else {"student": ema},
            folder=folder,
            save_every=save_every,
            on_step=after,
            progress=progress,
            parameters=settings,
            accelerator=accelerator,
            history=watch.history,
        )
    student.eval()
    return history


def best(folder: str | Path) -> tuple[dict[str, Tensor], int, float]:
    """Return the weights of the lowest score that a run in `folder` has had so far, its step and the score.

    They are the averaged weights if the run averages any.

    Raises
    ------
    UserError
        There is no such file, or it is damaged.
    """
    path = Path(folder) / BEST
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = file.metadata()
        return safetensors.torch.load_file(path), int(found["step"]), float(found["score"])
    except FileNotFoundError:
        raise UserError(f"{path}: missing; a run with a score writes it") from None
    except Exception as error:  # the library reports a damaged file in several ways
        raise UserError(f"{path}: truncated or damaged ({type(error).__name__}); run with another folder") from None


@dataclass
class _Watch:
    """Curves, pictures and scores of a run, written by the main process."""

    network: nn.Module
    history: History
    folder: Path | None
    logs: str | Path | None
    writer: Any = None

    def log(self, i: int, values: dict[str, float]) -> None:
        if i == 1 and self.folder:  # what an earlier run left that was deleted, or never came to a checkpoint
            for path in [self.folder / BEST, *self.folder.glob("samples/step-*.png")]:
                path.unlink(missing_ok=True)
        if self.logs and not self.writer:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.writer = SummaryWriter(str(self.logs), purge_step=i)  # a resumed run replaces what it does again
        self.scalars(i, values)

    def scalars(self, i: int, values: dict[str, float]) -> None:
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(name, value, i)

    def draw(self, i: int, grid: Callable[[], Tensor]) -> None:
        from torchvision.transforms.functional import to_pil_image  # slow to import
        from torchvision.utils import make_grid

        with self.looking():
            images = grid().detach().float().cpu()  # (n, c, h, w)
        picture = make_grid((images.clamp(-1, 1) + 1) / 2, nrow=math.ceil(len(images) ** 0.5))
        if self.folder:
            buffer = io.BytesIO()
            to_pil_image(picture).save(buffer, "PNG")
            write_atomic(self.folder / "samples" / f"step-{i:06d}.png", buffer.getvalue())
        if self.writer:
            self.writer.add_image("samples", picture, i)

    def judge(self, i: int, score: Callable[[], float]) -> None:
        assert self.folder
        with self.looking():
            value = float(score())
            lowest = best(self.folder)[2] if (self.folder / BEST).exists() else math.inf
            if value < lowest:
                weights = {name: v.cpu().contiguous() for name, v in self.network.state_dict().items()}
                packed = safetensors.torch.save(weights, {"step": str(i), "score": repr(value)})
                write_atomic(self.folder / BEST, packed)
        self.scalars(i, {"score": value})

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Evaluation mode, the averaged weights if there are any, and random numbers that leave the training alone."""
        parameters = dict(self.network.named_parameters())
        own = {name: p.data for name, p in parameters.items()}
        with torch.random.fork_rng(devices=cuda_devices({"student": self.network})), torch.no_grad():
            self.network.eval()
            try:
                for name, value in self.history.ema.get("student", {}).items():
                    parameters[name].data = value
                yield
            finally:
                for name, value in own.items():
                    parameters[name].data = value
                self.network.train()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


@contextmanager
def _float32_output(network: nn.Module, accelerator: Accelerator | None) -> Iterator[None]:
    """In mixed precision, hand the network's output to the loss as float32, so that losses are computed in it."""
    if accelerator is None or accelerator.mixed_precision == "no":
        yield
        return
    from accelerate.utils import convert_to_fp32

    hook = network.register_forward_hook(lambda module, inputs, output: convert_to_fp32(output))
    try:
        yield
    finally:
        hook.remove()
