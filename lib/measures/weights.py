"""Weights of networks that others trained, fetched once into torch's cache."""

from pathlib import Path

import torch

from lib.record.files import UserError


def fetched(url: str, name: str, what: str, licence: str) -> Path:
    """Return the file `name` of torch's cache, downloaded from `url` if it is not there: complete or not at all.

    Raises
    ------
    UserError
        It cannot be downloaded: what needs it, where to put it, under which licence it stands.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=False)
    except (OSError, RuntimeError) as error:
        reason, place = str(error).strip().split("\n")[0], str(file).replace(str(Path.home()), "~")
        raise UserError(
            f"{what} the weights {name}, and they cannot be downloaded ({reason}); put {url} at {place} ({licence})"
        ) from None
    return file
