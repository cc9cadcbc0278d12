"""Parameters of a notebook: read from its annotated parameters cell, coerced, checked, frozen.

Papermill passes `-p flag false` as the string `'false'` and `x: 1e-3` from YAML as `'1e-3'`, and only warns of a name
that the notebook does not have. So everything a notebook receives passes through `validate` before any computation.
"""

from __future__ import annotations

import difflib
import math
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lib.record.files import PROFILES, UserError

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


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """Return `value` as `annotation` asks (a pydantic type), or raise `ParameterError` naming the parameter."""
    if isinstance(value, bool) and annotation is not bool:
        raise ParameterError(f"parameter '{name}': {value} given, but it is not a yes/no parameter")
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = yaml.safe_load(value)
    try:
        return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        reason = first["msg"].replace("Input should be", "it should be")
        raise ParameterError(f"parameter '{name}{place}': {first['input']!r} given; {reason}") from None


def validate(namespace: dict[str, Any]) -> SimpleNamespace:
    """Check the parameters that a notebook's first cell declares as `name: type = value`.

    Parameters
    ----------
    namespace
        The notebook's `globals()`. The coerced values are written back to it.

    Returns
    -------
    SimpleNamespace
        One attribute a parameter.

    Raises
    ------
    ParameterError
        An unknown name (with the nearest known one), a wrong type or range, an unknown profile or device.
    """
    declared = dict(namespace.get("__annotations__", {}))
    if "profile" not in declared:
        raise ParameterError("no parameters found: the first cell must declare them as `name: type = value`")
    if "__companion_checked__" not in namespace:  # later calls in one kernel see the notebook's own variables
        for name, value in namespace.items():
            known = name.startswith("_") or name in declared or name in IPYTHON_NAMES
            if not known and isinstance(value, DATA_TYPES):
                near = difflib.get_close_matches(name, declared, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(declared)}"
                raise ParameterError(f"unknown parameter '{name}'; {hint}")
    values = {name: coerce(name, namespace[name], annotation) for name, annotation in declared.items()}
    if values["profile"] not in PROFILES:
        raise ParameterError(f"parameter 'profile': {values['profile']!r} given; one of {', '.join(PROFILES)}")
    if values.get("device", "auto") not in DEVICES:
        raise ParameterError(f"parameter 'device': {values['device']!r} given; one of {', '.join(DEVICES)}")
    if values.get("device") == "cuda" and not torch.cuda.is_available():
        raise ParameterError("parameter 'device': 'cuda' given, but this machine offers none; use 'cpu' or 'auto'")
    namespace.update(values)
    namespace["__companion_checked__"] = True
    return SimpleNamespace(**values)
