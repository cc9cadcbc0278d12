"""Settings of a job: every one named, typed and with a default, which is the paper's where it has one."""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from lib.record.files import UserError, expanded, reading
from lib.record.parameters import ParameterError, explain

# None stands for the paper's value; papermill reads such names in a notebook's parameters, but no `|`.
OptionalInt, OptionalCount = PositiveInt | None, NonNegativeInt | None
OptionalFloat, OptionalStr = NonNegativeFloat | None, str | None

Beta = Annotated[float, Field(ge=0, lt=1)]
Method = Literal["naive", "SDFT", "adaptor", "ANT without noise", "ANT"]
METHODS: tuple[str, ...] = get_args(Method)

# What a method takes that is not given: the paper's values, or its official code's.
_FULL = {"steps": 10_000, "batch": 16, "lr": 2e-5, "dropout": 0.1, "sampler": "ddim", "sampling_steps": 40}
_ADAPTOR = {
    **{"steps": 300, "batch": 40, "lr": 5e-5, "betas": (0.5, 0.999), "weight_decay": 0.01, "clip": 1.0, "warmup": 50},
    **{"sampler": "ancestral", "sampling_steps": 500},
}
PAPER: dict[str, dict[str, Any]] = {method: _FULL if method in ("naive", "SDFT") else _ADAPTOR for method in METHODS}


class Job(BaseModel):
    """Settings of any job."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # Settings that a job may change when it is started again; all others decide what is trained.
    FREE: ClassVar[tuple[str, ...]] = ("steps", "out", "device", "shown", "save_every", "grid_every")
    PARTS: ClassVar[str] = "processes"  # of a batch, which are computed apart

    out: Path  # folder for all results
    split: str = "train"  # of a data set
    column: str = ""  # of a data set, with the images; empty: the only one
    damaged: Literal["refuse", "skip"] = "refuse"  # what to do about files that cannot be read
    recursive: bool = False  # read sub-folders, too
    steps: PositiveInt
    batch: PositiveInt  # images a step, over all processes
    lr: PositiveFloat  # of AdamW
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    warmup: NonNegativeInt = 0  # steps of rising learning rate
    clip: NonNegativeFloat = 0.0  # largest norm of a gradient; 0: any
    ema: NonNegativeFloat = Field(0.0, lt=1)  # decay of averaged weights, which are then the result; 0: the last ones
    flip: bool = True  # mirror half of the images
    precision: Literal["no", "bf16"] = "no"  # bf16: half the memory of activations; fp16 would need loss scaling
    processes: PositiveInt = 1  # GPUs, or processes on CPUs
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: NonNegativeInt = 0
    shown: PositiveInt = 8  # columns of the sheet
    save_every: NonNegativeInt = 500  # steps between checkpoints
    grid_every: NonNegativeInt = 0  # steps between pictures in the logs; 0: none

    @field_validator("source", "images", "source_images", "target_images", check_fields=False)
    @classmethod
    def _given(cls, name: str) -> str:  # pydantic's own bound wants UTF-8
        if not name:
            raise ValueError("name a folder, or an id on the hub")
        return name

    @field_validator("out")
    @classmethod
    def _expanded(cls, out: Path) -> Path:
        return expanded(out, "out")

    @property
    def passes(self) -> int:
        """Parts of a batch that are computed one by one or in processes."""
        return self.processes

    @property
    def fixed(self) -> dict[str, Any]:
        """What a job that is started again must have in common with its beginning."""
        return self.model_dump(mode="json", exclude=set(self.FREE))

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.batch % self.passes:
            raise ValueError(f"batch: {self.batch} given; a multiple of {self.PARTS} = {self.passes} is needed")
        return self


class Settings(Job):
    """Settings of a job that adapts a model; what is not given is what the method's paper has (``PAPER``)."""

    FREE = (*Job.FREE, "samples", "sampler", "sampling_steps", "reference", "judge", "score_every", "score_samples")
    PARTS = "processes x accumulate"

    method: Method = "SDFT"
    source: str  # folder of diffusers, or id on the hub
    images: str  # folder, data set on disk, or id of a data set
    reference: str = ""  # images for FID, KID, precision and recall, read like `images`
    dropout: NonNegativeFloat = Field(0.0, lt=1)  # of the student's residual blocks; naive and SDFT
    lambda_distill: NonNegativeFloat = 0.1  # SDFT
    lambda_aux: NonNegativeFloat = 0.1
    gamma_distill: NonNegativeFloat = 3.0
    gamma_aux: NonNegativeFloat = 50.0
    gamma: NonNegativeFloat = 5.0  # ANT: strength of the similarity guidance
    omega: NonNegativeFloat = 0.02  # step of the ascent on the noise
    J: NonNegativeInt = 10  # its steps
    c: PositiveInt = 4  # pooling of the adaptor
    d: PositiveInt = 8  # channels of its bottleneck
    heads: PositiveInt = 4
    classifier_steps: PositiveInt = 300
    classifier_batch: PositiveInt = 64
    classifier_lr: PositiveFloat = 1e-4
    classifier_images: PositiveInt = 100  # samples of the source that stand for its domain
    accumulate: PositiveInt = 1  # passes a step, each with batch / accumulate images
    gradient_checkpointing: bool = False  # less memory, a third more time
    samples: PositiveInt = 1000
    sampler: Literal["ddim", "ancestral"]  # deterministic, or with fresh noise at every step
    sampling_steps: PositiveInt
    judge: str = ""  # folder of the digit classifier of 50_source for Intra-LPIPS; empty: LPIPS itself
    score_every: NonNegativeInt = 0  # steps between KIDs against `reference`, whose best model is kept too; 0: none
    score_samples: int = Field(500, ge=2)  # samples of each

    @model_validator(mode="before")
    @classmethod
    def _paper(cls, values: dict[str, Any]) -> dict[str, Any]:
        return PAPER.get(values.get("method", "SDFT"), {}) | values

    @property
    def passes(self) -> int:
        """Parts of a batch that are computed one by one or in processes."""
        return self.processes * self.accumulate

    @model_validator(mode="after")
    def _scored(self) -> Self:
        if self.score_every and not self.reference:
            raise ValueError("score_every: there is no reference to score against; give one, or 0")
        return self


class Translation(Job):
    """Settings of a job that makes a translator of one network call from two folders of pictures, with RDMD.

    The defaults are those that served on emoji of 32 x 32; the paper's are not known to us.
    """

    FREE = (*Job.FREE, "lambdas", "translated")

    method: Literal["RDMD"] = "RDMD"
    source_images: str  # what is to be translated: folder, data set on disk, or id of a data set
    target_images: str  # pictures like those that are to come out
    target_model: str = ""  # diffusion model of these: folder of diffusers, or id on the hub; empty: trained first
    size: PositiveInt | None = None  # side of the pictures, 64; this and the next four are of a model trained here
    channels: list[PositiveInt] = [64, 128, 192]  # from the full resolution to the lowest
    model_steps: PositiveInt = 20_000
    model_batch: PositiveInt = 32
    model_lr: PositiveFloat = 5e-4
    lambdas: list[NonNegativeFloat] = Field([0.2], min_length=1)  # weights of the cost: a translator for each
    cost: Literal["L2", "LPIPS"] = "L2"  # L2 is the paper's; LPIPS in the features of EfficientNet-Lite0
    sigma: PositiveFloat = 1.0  # noise level at which the generator is held; the paper's
    steps: PositiveInt = 2000  # of the generator, for each lambda
    batch: PositiveInt = 16
    lr: PositiveFloat = 3e-5
    fake_updates: PositiveInt = 1  # of the fake before each of the generator
    fake_lr: PositiveFloat = 3e-4
    clip: NonNegativeFloat = 1.0
    ema: NonNegativeFloat = Field(0.99, lt=1)
    translated: int = Field(1000, ge=2)  # source pictures that each translator is shown on, the first of them

    @property
    def side(self) -> int:
        """Side of the pictures of a model that is trained here."""
        return self.size or 64

    @field_validator("lambdas")
    @classmethod
    def _different(cls, lambdas: list[float]) -> list[float]:
        if len(set(lambdas)) < len(lambdas):
            raise ValueError("a lambda is given twice; give each once")
        return lambdas


class TwoPlayer(Job):
    """Settings of a job that makes two translators, there and back, from two folders of pictures, with a GAN.

    Defaults are U-GAT-IT's, for pictures of 256 x 256; those of LaDiffGAN's latent models and of its losses are ours.
    """

    FREE = (*(name for name in Job.FREE if name != "steps"), "translated")  # the rate falls to 0 at the last step

    method: Literal["U-GAT-IT", "UNIT", "LaDiffGAN"]
    source_images: str  # folder, data set on disk, or id of a data set
    target_images: str
    size: int = Field(256, ge=32, multiple_of=8)  # side of the pictures
    width: PositiveInt = 64  # channels of the networks' first layers
    blocks: PositiveInt = 4  # residual ones, twice
    light: bool = False  # of U-GAT-IT: 10.6 M parameters a generator instead of 279 M, at 256
    noised: bool = False  # Diffusion-GAN's noise on all that discriminators see
    kimg: PositiveFloat = 100.0  # of that: thousand pictures from the least to the most noise
    steps: PositiveInt = 1_000_000
    batch: PositiveInt = 1
    lr: PositiveFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.5, 0.999)
    weight_decay: NonNegativeFloat = 1e-4
    base: Literal["U-GAT-IT", "UNIT"] = "U-GAT-IT"  # of LaDiffGAN, as the rest
    lambda_ldg: NonNegativeFloat = 1.0  # weight of the latent diffusion GAN loss
    lambda_hcd: NonNegativeFloat = 1.0  # of the heterogeneous conditional denoising loss
    reading: Literal["source", "self", "cross"] = "source"  # of that one
    condition: Literal["grey", "small"] = "grey"
    perceptual: Literal["neutral", "VGG-19"] = "neutral"  # features of the autoencoders' loss; VGG-19's are downloaded
    ae_width: PositiveInt = 32  # of the autoencoders, a multiple of 8
    ae_steps: PositiveInt = 20_000
    ae_batch: PositiveInt = 8
    ldm_width: PositiveInt = 64  # of the latent diffusion models, a multiple of 32
    ldm_steps: PositiveInt = 50_000
    ldm_batch: PositiveInt = 32
    translated: int = Field(1000, ge=2)  # pictures of each domain that are translated in the end, the first of them

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.warmup:
            raise ValueError("warmup: two players train at a rate that is constant and then falls to 0; leave it out")
        for name, unit in (("ae_width", 8), ("ldm_width", 32)):
            if getattr(self, name) % unit:
                raise ValueError(f"{name}: {getattr(self, name)} given; a multiple of {unit} is needed")
        if self.perceptual == "VGG-19" and self.size < 128:
            raise ValueError(f"perceptual: VGG-19 needs pictures of 128 pixels or more, these have {self.size}")
        return self


TRANSLATING = ("U-GAT-IT", "UNIT", "LaDiffGAN")
KINDS: dict[str, Any] = dict.fromkeys(METHODS, Settings) | {"RDMD": Translation} | dict.fromkeys(TRANSLATING, TwoPlayer)


def settings(method: str = "SDFT", **values: Any) -> Any:
    """Return checked `Settings`, for RDMD a `Translation`, for GANs a `TwoPlayer`.

    Raises
    ------
    ParameterError
        For the first wrong one, by name, with what would be right.
    """
    if method not in KINDS:
        raise ParameterError(f"method: {method!r} given; one of {', '.join(KINDS)}")
    try:
        return KINDS[method](method=method, **values)
    except ValidationError as error:
        raise explain(error, known=KINDS[method].model_fields) from None


def read_settings(path: str | Path) -> Any:
    """Return the settings in a JSON file; errors as in `settings`, and if the file is missing or no JSON."""
    with reading(path, "name a JSON file of settings"):
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {json.dumps(values)[:40]}; expected settings by name, in braces")
    return settings(**values)
