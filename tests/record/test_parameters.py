"""Every parameter that reaches a notebook is coerced or refused by name, before any computation."""

import subprocess
import sys

import pytest
from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from lib.record.files import ROOT
from lib.record.parameters import ParameterError, explain, validate

DECLARED = {
    "profile": str,
    "seed": NonNegativeInt,
    "device": str,
    "out": str,
    "steps": PositiveInt,
    "rate": NonNegativeFloat,
    "heun": bool,
    "lambdas": list[NonNegativeFloat],
}
DEFAULTS = {
    "profile": "cpu",
    "seed": 0,
    "device": "auto",
    "out": "",
    "steps": 10,
    "rate": 0.1,
    "heun": True,
    "lambdas": [0.0, 1.0],
}


def namespace(**given):
    return {"__annotations__": dict(DECLARED), **DEFAULTS, **given}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"heun": "false"}, {"heun": False}),
        ({"rate": "1e-3"}, {"rate": 0.001}),
        ({"steps": "200"}, {"steps": 200}),
        ({"lambdas": "[0, 0.5]"}, {"lambdas": [0.0, 0.5]}),
        ({"out": "[set] photos"}, {"out": "[set] photos"}),
        ({"lambdas": ["1e-1", 2]}, {"lambdas": [0.1, 2.0]}),
    ],
)
def test_papermill_strings_are_coerced(given, expected):
    values = namespace(**given)
    parameters = validate(values)
    for name, value in expected.items():
        assert getattr(parameters, name) == value
        assert type(getattr(parameters, name)) is type(value)
        assert values[name] == value  # written back for code that reads the global


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step": 5}, ["step: no such parameter", "did you mean 'steps'"]),
        ({"out": 2024}, ["out: the number 2024 given where a text belongs", "-r"]),
        ({"lambdas": "['it's']"}, ["lambdas: ['it's'] given, which is no list", "apostrophe twice", "-f"]),
        ({"zzz": 5}, ["zzz: no such parameter", "known: profile"]),
        ({"steps": -5}, ["steps: ", "-5", "greater than 0"]),
        ({"steps": 1.5}, ["steps: ", "1.5", "integer"]),
        ({"steps": True}, ["steps: ", "True"]),
        ({"rate": "fast"}, ["rate: ", "'fast'", "number"]),
        ({"rate": float("nan")}, ["rate: ", "finite"]),
        ({"lambdas": [0.1, -1]}, ["lambdas[1]: -1"]),
        ({"heun": "perhaps"}, ["heun: ", "'perhaps'"]),
        ({"profile": "huge"}, ["profile: 'huge'", "'smoke', 'cpu', 'record', 'gpu' or 'paper'"]),
        ({"device": "tpu"}, ["device: 'tpu'", "'auto', 'cpu' or 'cuda'"]),
    ],
)
def test_bad_parameters_are_refused_by_name(given, words):
    with pytest.raises(ParameterError) as caught:
        validate(namespace(**given))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_faults_of_a_model_read_like_those_of_a_parameter():
    class Model(BaseModel, extra="forbid"):
        steps: PositiveInt
        betas: tuple[float, float] = (0.9, 0.999)

        @model_validator(mode="after")
        def _whole(self):
            if self.steps == 7:
                raise ValueError("steps: 7 given; any other")
            return self

    for values, line in (
        ({"stpes": 3, "steps": 3}, "stpes: no such parameter; did you mean 'steps'?"),
        ({}, "steps: Field required"),
        ({"steps": 0}, "steps: 0 given; it should be greater than 0"),
        ({"steps": 3, "betas": (0.9, "x")}, "betas[1]: 'x' given"),
        ({"steps": 7}, "steps: 7 given; any other"),
    ):
        with pytest.raises(ValidationError) as caught:
            Model(**values)
        assert str(explain(caught.value, known=Model.model_fields)).startswith(line)


def test_a_notebook_without_declared_parameters_is_refused():
    with pytest.raises(ParameterError, match="no parameters found"):
        validate({"steps": 3})


def test_second_call_in_one_kernel_ignores_the_notebooks_own_variables():
    values = namespace()
    validate(values)
    values["result"] = 3.5
    assert validate(values).steps == 10


def test_papermill_run_stops_before_any_computation(tmp_path):
    out = tmp_path / "out.ipynb"
    source = ROOT / "notebooks" / "sdft" / "30_sdft_weights.ipynb"
    command = [sys.executable, "-m", "papermill", str(source), str(out), "-p", "gama", "3", "-p", "out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "gama: no such parameter" in done.stderr
    assert not (tmp_path / "results").exists()
