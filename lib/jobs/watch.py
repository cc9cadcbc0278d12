"""What a training shows on the way: curves and pictures for TensorBoard, scores, and the weights of the best one."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from lib.ground.checkpoint import cuda_devices
from lib.ground.train import History
from lib.record.files import reading, write_atomic

BEST = "best/student.safetensors"


@dataclass
class Watch:
    """An ``on_step(i, history)`` of :func:`lib.ground.finetune.finetune`, to be closed at the end.

    Pictures and scores are taken every so many steps and after the step `last`, with the averaged weights if the run
    averages any; the random numbers of the training are left alone.
    """

    student: nn.Module
    folder: Path  # for `samples/step-000123.png` and the weights of the lowest score, see `best`
    logs: Path  # for TensorBoard
    last: int
    grid: Callable[[], Tensor] | None = None  # draws images (n, c, h, w) in [-1, 1]
    grid_every: int = 1
    score: Callable[[], float] | None = None  # lower is better
    score_every: int = 1
    name: str = "student"  # of its averaged weights in the history
    writer: Any = None
    history: History | None = None
    logged: int = 0

    def __call__(self, i: int, history: History) -> None:
        """Look at the student after step i."""
        if i == 1:  # what an earlier run left that was deleted, or never came to a checkpoint
            for path in [self.folder / BEST, *self.folder.glob("samples/step-*.png")]:
                path.unlink(missing_ok=True)
        if not self.writer:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            again = i == 1 or self._due(i, self.grid_every) or self._due(i, self.score_every)
            self.history, self.logged = history, i - again  # a resumed run replaces what it does again, and no more
            self.writer = SummaryWriter(str(self.logs), purge_step=self.logged + 1)
        self._curves(history)
        with self._averaged(history):
            if self.grid and self._due(i, self.grid_every):
                self._draw(i, self.grid())
            if self.score and self._due(i, self.score_every):
                self._judge(i, float(self.score()))

    def _due(self, i: int, every: int) -> bool:
        return i == self.last or (bool(every) and i % every == 0)

    def close(self) -> None:
        """Write the rest of the curves: losses come from the device some steps late."""
        if self.history:
            self._curves(self.history)
            self.writer.close()

    def _curves(self, history: History) -> None:
        there = min(map(len, history.values.values()), default=0)
        for k in range(self.logged, there):
            for name, values in history.values.items():
                self.writer.add_scalar(name, values[k], k + 1)
        self.logged = max(self.logged, there)

    def _draw(self, i: int, images: Tensor) -> None:
        columns, buffer = math.ceil(len(images) ** 0.5), io.BytesIO()
        picture = make_grid(images, columns, normalize=True, value_range=(-1, 1))
        to_pil_image(picture).save(buffer, "PNG")
        write_atomic(self.folder / "samples" / f"step-{i:06d}.png", buffer.getvalue())
        self.writer.add_image("samples", picture, i)

    def _judge(self, i: int, value: float) -> None:
        if value < (best(self.folder)[2] if (self.folder / BEST).exists() else math.inf):
            save_weights(self.folder / BEST, self.student, step=str(i), score=repr(value))
        self.writer.add_scalar("score", value, i)

    @contextmanager
    def _averaged(self, history: History) -> Iterator[None]:
        """The averaged weights in place of the trained ones, and random numbers of one's own."""
        average = history.ema.get(self.name, {})
        pairs = [(p, p.data, average[name]) for name, p in self.student.named_parameters() if name in average]
        with torch.random.fork_rng(devices=cuda_devices({self.name: self.student})), torch.no_grad():
            try:
                for parameter, _, mean in pairs:
                    parameter.data = mean
                yield
            finally:
                for parameter, own, _ in pairs:
                    parameter.data = own


def save_weights(path: Path, module: nn.Module, **header: str) -> None:
    """Write a module's weights as one safetensors file, complete or not at all."""
    weights = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
    write_atomic(path, safetensors.torch.save(weights, header or None))


def best(folder: str | Path) -> tuple[dict[str, Tensor], int, float]:
    """Return the weights of a run's lowest score so far (averaged ones if it averages any), its step, the score."""
    path = Path(folder) / BEST
    with reading(path, "a run with a score writes it; delete it to go on without"):
        with safetensors.safe_open(path, "pt") as file:
            found = file.metadata()
        return safetensors.torch.load_file(path), int(found["step"]), float(found["score"])
