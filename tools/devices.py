"""One process a GPU: which of a machine's devices are taken is told by locks, which the system frees with a process."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO

_HELD: list[IO[str]] = []  # until this process ends, however it ends


def visible() -> list[str]:
    """Return the devices that this process may use: those that CUDA_VISIBLE_DEVICES names, else the machine's."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in named.split(",") if device]
    import torch

    return [str(device) for device in range(torch.cuda.device_count())]


def take(devices: list[str]) -> None:
    """Leave one device to be seen, which no other process of this user has taken; wait until one is free."""
    # Numbers are those of a machine, but jobs of Slurm may each count their own from 0.
    owner = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', 'local')}"
    while devices:
        for device in devices:
            file = (Path(tempfile.gettempdir()) / f"companion-gpu-{owner}-{device.replace('/', '_')}").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _HELD.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            return
        time.sleep(1)
