"""The kinds of jobs: each is a module with what its settings make of the gate, the work, the results and the cost."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from lib.ground.folder import Read
from lib.jobs import finetuning, gan, translation
from lib.jobs.load import Load
from lib.jobs.settings import Job, Settings, Translation, TwoPlayer


class Kind(Protocol):
    """What a kind's module has; `start` is what a job of it begins with: a `lib.jobs.hub.Source`, or networks."""

    def begin(self, s: Any, device: torch.device) -> Any:
        """Open or make what a job begins with."""

    def open_inputs(self, s: Any, start: Any) -> tuple[dict[str, Read], dict[str, str]]:
        """Open what a job reads beside it, and say of each setting what was found."""

    def identity(self, start: Any) -> tuple[str, torch.device]:
        """Return what tells whether a job begins with the same, and the device it is on."""

    def work(
        self, s: Any, start: Any, reads: dict[str, Read], inputs: dict[str, str], a: Accelerator
    ) -> dict[str, Any]:
        """Train, and in the main process write everything and return the metrics."""

    def results(self, s: Any) -> list[str]:
        """Return the folders that a later run makes anew; the first is there when the job is done."""

    def count(self, s: Any, start: Any) -> Load:
        """Count what a job asks of its networks."""

    def one_pass(self, s: Any, start: Any) -> tuple[Callable[[], Any], float]:
        """Return a function to be timed where steps would take too long, and its operations."""

    def some_steps(self, s: Any, start: Any, steps: int, clock: Callable[..., None]) -> None:
        """Run a few steps on noise; what they train is thrown away."""


KINDS: dict[type[Job], Any] = {Settings: finetuning, Translation: translation, TwoPlayer: gan}


def of(s: Job) -> Kind:
    """Return the kind of a job."""
    return KINDS[type(s)]
