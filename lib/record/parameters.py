"""Parameters of a notebook: read from its annotated parameters cell, coerced, checked, frozen.

Papermill passes `-p flag false` as the string `'false'` and `x: 1e-3` from YAML as `'1e-3'`, and only warns of a name
that the notebook does not have. So everything a notebook receives passes through `validate` before any computation.
"""

import difflib
import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, Literal

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lib.record.files import PROFILES, UserError, shown

DEVICES = ("auto", "cpu", "cuda")
IPYTHON_NAMES = {"In", "Out", "exit", "quit", "open", "get_ipython"}
DATA_TYPES = (bool, int, float, str, list, tuple, dict, type(None))


class ParameterError(UserError):
    """A parameter that is unknown, of the wrong type or out of range."""


def non_negative(**values: float) -> None:
    """Refuse a number that is negative or not finite, by its name."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name}: {value:g} given; it should be 0 or larger")


def explain(error: ValidationError, name: str = "", known: Iterable[str] = ()) -> ParameterError:
    """Return the first fault that pydantic found as one line: where, what was given, what would be right.

    `known` are the names among which the nearest is proposed for one that does not exist.
    """
    first = min(
        error.errors(), key=lambda fault: fault["type"] != "extra_forbidden"
    )  # a wrong name may be the missing one
    name = name or str(next(iter(first["loc"]), ""))
    place = name + "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = f"no such parameter; {nearest(place, known)}"
    elif first["type"] != "missing" and place:
        reason = f"{first['input']!r} given; {reason.replace('Input should be', 'it should be')}"
    return ParameterError(f"{place}: {reason}" if place else reason)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that was probably meant, as a question, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


def usable(device: torch.device | str, name: str = "device") -> torch.device:
    """Return a device that this machine has; refuse another one before anything is loaded."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ParameterError(f"{name}: '{device}' given; give cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ParameterError(f"{name}: '{device}' given, but this machine offers none; use 'cpu' or 'auto'")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ParameterError(f"{name}: '{device}' given, but this machine has {torch.cuda.device_count()} GPUs")
    return found


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """Return `value` as `annotation` asks (a pydantic type), or raise `ParameterError` naming the parameter."""
    if isinstance(value, bool) and annotation is not bool:
        raise ParameterError(f"{name}: {value} given, but it is not a yes/no parameter")
    if annotation in (str, str | None):
        if isinstance(value, int | float):
            raise ParameterError(f"{name}: the number {value} given where a text belongs; papermill takes it with -r")
    elif isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            how = "in single quotes write an apostrophe twice, or give the parameters in a file with -f"
            raise ParameterError(f"{name}: {shown(value)} given, which is no list; {how}") from None
    try:
        return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        raise explain(error, name) from None


def validate(namespace: dict[str, Any]) -> SimpleNamespace:
    """Check the parameters that a notebook's first cell declares as `name: type = value`; return them.

    `namespace` is the notebook's `globals()`; the coerced values are written back to it.
    """
    declared = dict(namespace.get("__annotations__", {}))
    if "profile" not in declared:
        raise ParameterError("no parameters found: the first cell must declare them as `name: type = value`")
    if "__companion_checked__" not in namespace:  # later calls in one kernel see the notebook's own variables
        for name, value in namespace.items():
            expected = name.startswith("_") or name in declared or name in IPYTHON_NAMES
            if not expected and isinstance(value, DATA_TYPES):
                raise ParameterError(f"{name}: no such parameter; {nearest(name, declared)}")
    known: dict[str, Any] = {**declared, "profile": Literal[PROFILES], "device": Literal[DEVICES]}
    values = {name: coerce(name, namespace[name], known[name]) for name in declared}
    if values.get("device") == "cuda":
        usable("cuda")
    namespace.update(values)
    namespace["__companion_checked__"] = True
    return SimpleNamespace(**values)
