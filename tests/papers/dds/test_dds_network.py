"""The image-to-image network: its ramps, its gradient, its start, where it ends in a world with a closed form."""

import copy
import json
import math
import os
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d import UNet2DModel
from PIL import Image

from lib.ground import diffusion
from lib.ground.nets import small_unet
from lib.jobs.stable_diffusion import model as stable_diffusion
from lib.jobs.stable_diffusion import network as dds_network_files
from lib.jobs.stable_diffusion.tiny import tiny_pipeline
from lib.papers.dds import method as dds
from lib.papers.dds import network as dds_network
from lib.papers.dds.gaussian import GaussianWorld
from lib.papers.dds.network import PAPER, Settings, Tasks, direction, guidance, identity_weight, rate_share, student_of
from lib.record.files import UserError

SCHEDULE = diffusion.scaled_linear()
QUICK = Settings(iterations=6, batch=3, lr=1e-3, lr_warmup=3, omega=4.0, omega_warmup=4, lambda_cooldown=4)


def class_unet(classes=4, size=8):
    config = {k: v for k, v in small_unet(size, (8, 32)).config.items() if not k.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(**config | {"num_class_embeds": classes}).eval().requires_grad_(False)


def class_teacher(unet):
    return lambda z_t, t, y: unet(z_t, t, class_labels=y).sample


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def world(size=8):
    """Prompts: null and source N(0, 1), two targets whose means differ in one half of the picture each."""
    mean = torch.zeros(4, 1, size, size)
    mean[2, :, :, : size // 2] = 0.5
    mean[3, :, : size // 2] = -0.5
    return GaussianWorld(mean, torch.ones_like(mean), SCHEDULE)


TASKS = Tasks(torch.tensor([2, 3]), torch.tensor([1]), torch.tensor([0]))


def test_the_defaults_are_the_papers():
    assert Settings(125_000, 2, 1e-5, 10_000, 25.0, 20_000, 3.0, 0.1, 20_000, "dds", (50, 948)) == PAPER


def test_ramps_at_their_ends_and_middle():
    assert [guidance(PAPER, i) for i in (0, 20_000, 124_999)] == [1.0, 25.0, 25.0]
    assert guidance(PAPER, 10_000) == pytest.approx(13.0)
    assert guidance(PAPER, 5_000) == pytest.approx(25 - 24 * (1 + math.cos(math.pi / 4)) / 2)
    assert [identity_weight(PAPER, i) for i in (0, 20_000, 124_999)] == [3.0, 0.1, 0.1]
    assert identity_weight(PAPER, 10_000) == pytest.approx(1.55)
    assert [rate_share(PAPER, i) for i in (0, 4_999, 9_999, 10_000, 99_999)] == [1e-4, 0.5, 1.0, 1.0, 1.0]


def test_without_a_ramp_everything_is_constant():
    flat = replace(PAPER, lr_warmup=0, omega_warmup=0, lambda_cooldown=0)
    for i in (0, 1, 124_999):
        assert (rate_share(flat, i), guidance(flat, i), identity_weight(flat, i)) == (1.0, 25.0, 0.1)


def test_scaled_settings_keep_the_shares_of_the_ramps():
    small = PAPER.scaled(500, batch=8, lr=1e-3)
    assert (small.iterations, small.lr_warmup, small.omega_warmup, small.lambda_cooldown) == (500, 40, 80, 80)
    assert (small.batch, small.lr, small.omega) == (8, 1e-3, 25.0)
    assert guidance(small, 40) == pytest.approx(guidance(PAPER, 10_000))
    assert PAPER.scaled(500, omega_warmup=0).omega_warmup == 0


@pytest.mark.parametrize("method", ["dds", "sds"])
@pytest.mark.parametrize("omega", [1.0, 5.0])
def test_direction_is_the_formula(method, omega):
    teacher, z, z_hat, eps = world(), noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1), noise(3, 1, 8, 8, seed=2)
    t, y = torch.tensor([60, 400, 900]), torch.tensor([2, 3, 2])

    def guided(x, prompt):
        null, full = (teacher(SCHEDULE.add_noise(x, eps, t), t, p.expand(3)) for p in (TASKS.null, prompt))
        return null + omega * (full - null)

    other = guided(z_hat, TASKS.y_hat) if method == "dds" else eps
    expected = guided(z, y) - other + 0.7 * (z - z_hat)
    found = direction(teacher, SCHEDULE, z, z_hat, y, TASKS.y_hat, TASKS.null, omega, 0.7, t, eps, method)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "omega", "images"), [("dds", 5, 4), ("dds", 1, 2), ("sds", 5, 2), ("sds", 1, 1)])
def test_teacher_sees_no_more_images_than_needed(method, omega, images):
    seen = []

    def teacher(z_t, t, y):
        seen.append(len(z_t))
        assert len(t) == len(y) == len(z_t)
        return world()(z_t, t, y)

    z = noise(3, 1, 8, 8)
    t = torch.tensor([60, 400, 900])
    direction(teacher, SCHEDULE, z, z, TASKS.y[:1], TASKS.y_hat, TASKS.null, omega, 0.0, t, noise(3, 1, 8, 8), method)
    assert seen == [3 * images]


def first_gradient(teacher_unet, s):
    """Gradient of the first update, caught when the optimizer would use it."""
    student = student_of(class_unet(), TASKS.y)
    torch.nn.init.normal_(student.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    start = {name: value.clone() for name, value in student.state_dict().items()}
    z_hat = noise(5, 1, 8, 8)
    dds_network.train_network(
        student, class_teacher(teacher_unet), SCHEDULE, z_hat, TASKS, replace(s, iterations=1), seed=7, progress=False
    )
    gradient = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.load_state_dict(start)
    return student, z_hat, gradient


def test_gradient_is_that_of_the_inner_product_with_a_fixed_direction():
    unet = class_unet()
    s = replace(QUICK, omega_warmup=0, lambda_cooldown=0)  # omega 4 and lambda 0.1 from the first update on
    student, z_hat, gradient = first_gradient(unet, s)
    generator = torch.Generator().manual_seed(7)  # the batch that the training drew
    x = z_hat[torch.randint(5, (3,), generator=generator)]
    k = torch.randint(2, (3,), generator=generator)
    t = torch.randint(50, 949, (3,), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    z = student(x, k)
    g = direction(class_teacher(unet), SCHEDULE, z, x, TASKS.y[k], TASKS.y_hat, TASKS.null, 4.0, 0.1, t, eps)
    inner = torch.zeros(())
    for i in range(3):
        inner = inner + torch.dot(z[i].flatten(), g[i].flatten())
    names = [name for name, _ in student.named_parameters()]
    expected = dict(zip(names, torch.autograd.grad(inner / 3, student.parameters(), allow_unused=True), strict=True))
    assert gradient["unet.conv_in.weight"].abs().max() > 0
    for name, value in gradient.items():
        gap = (value - expected[name]).norm()
        assert gap <= 1e-3 * expected[name].norm() + 1e-5, name  # rounding of sums in another order


def test_no_gradient_reaches_the_teacher():
    unet = class_unet().requires_grad_(True)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    student, _, gradient = first_gradient(unet, QUICK)
    assert gradient
    assert all(p.grad is None for p in unet.parameters())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert not {p.data_ptr() for p in unet.parameters()} & {p.data_ptr() for p in student.parameters()}


def test_student_starts_as_the_identity_bit_for_bit():
    unet, z_hat = class_unet(), noise(5, 1, 8, 8)
    student = student_of(unet, TASKS.y)
    for k in range(2):
        assert torch.equal(dds_network.apply(student, z_hat, k, batch=2), z_hat)
    assert unet.conv_out.weight.abs().max() > 0  # the teacher keeps its own


def test_trained_student_tells_the_tasks_apart():
    student, z_hat = student_of(class_unet(), TASKS.y), noise(5, 1, 8, 8)
    dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, QUICK, progress=False)
    first, second = (dds_network.apply(student, z_hat, k) for k in range(2))
    assert not torch.equal(first, z_hat)
    assert not torch.equal(first, second)
    assert not student.training


def test_variants_see_the_same_batches(monkeypatch):
    drawn = {}

    def spied(method):
        def record(model, schedule, z, z_hat, y, y_hat, null, omega, lambda_id, t, eps, kind):
            drawn.setdefault(method, []).append(torch.cat([z_hat.flatten(), y.float(), t.float(), eps.flatten()]))
            return torch.zeros_like(z)

        monkeypatch.setattr(dds_network, "direction", record)
        s = replace(QUICK, method=method, omega_warmup=0 if method == "sds" else 4)
        student = student_of(class_unet(), TASKS.y)
        dds_network.train_network(student, world(), SCHEDULE, noise(5, 1, 8, 8), TASKS, s, seed=3, progress=False)

    spied("dds")
    spied("sds")
    assert len(drawn["dds"]) == 6
    assert torch.equal(torch.stack(drawn["dds"]), torch.stack(drawn["sds"]))


def test_stopped_and_resumed_training_ends_with_the_same_weights(tmp_path):
    z_hat = noise(5, 1, 8, 8)

    def trained(folder, on_step=None):
        student = student_of(class_unet(), TASKS.y)
        options = {"seed": 1, "folder": folder, "save_every": 1, "progress": False, "on_step": on_step}
        dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, QUICK, **options)
        return student.state_dict()

    def stop(i):
        if i == 4:
            raise KeyboardInterrupt

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", stop)
    assert (tmp_path / "parts" / "step-000003").is_dir()
    for name, value in trained(tmp_path / "parts").items():
        assert torch.equal(value, whole[name]), name


def test_resume_with_other_settings_is_refused(tmp_path):
    student, z_hat = student_of(class_unet(), TASKS.y), noise(5, 1, 8, 8)
    options = {"folder": tmp_path, "progress": False}
    dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, QUICK, **options)
    with pytest.raises(UserError, match=r"'omega' is 5.0 in this run, but the checkpoint was made with 4.0"):
        dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, replace(QUICK, omega=5.0), **options)


def test_a_value_that_is_not_finite_stops_the_training():
    def broken(z_t, t, y):
        return torch.full_like(z_t, math.nan)

    student = student_of(class_unet(), TASKS.y)
    with pytest.raises(UserError, match="step 1: 'direction' is nan; training stopped"):
        dds_network.train_network(student, broken, SCHEDULE, noise(2, 1, 8, 8), TASKS, QUICK, progress=False)


class Affine(torch.nn.Module):
    """A network that can hold the end of the Gaussian world: one factor and one shift a task."""

    def __init__(self, tasks):
        super().__init__()
        self.unet = torch.nn.Module()
        self.unet.config = {"in_channels": 1}
        self.register_buffer("instructions", tasks)
        self.factor = torch.nn.Parameter(torch.ones(len(tasks), 1, 1, 1))
        self.shift = torch.nn.Parameter(torch.zeros(len(tasks), 1, 8, 8))

    def forward(self, z_hat, k):
        return self.factor[k] * z_hat + self.shift[k]


@pytest.fixture(scope="module")
def gaussian_ends():
    """Outputs of networks trained by DDS and SDS in the Gaussian world, and their inputs."""
    z_hat, ends = noise(64, 1, 8, 8), {}
    s = Settings(400, 32, 2e-2, 30, 4.0, 60, 3.0, 0.0, 60)
    for method in ("dds", "sds"):
        student = Affine(TASKS.y)
        options = {"settings": replace(s, method=method), "progress": False}
        dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, **options)
        ends[method] = [dds_network.apply(student, z_hat, k) for k in range(2)]
    return z_hat, ends


def test_dds_ends_at_the_input_plus_the_guided_shift(gaussian_ends):
    z_hat, ends = gaussian_ends
    for k in range(2):
        target = z_hat + 4.0 * (world().mean[2 + k] - world().mean[1])
        assert (ends["dds"][k] - target).square().mean().sqrt() < 0.1


def test_sds_ends_at_one_picture(gaussian_ends):
    z_hat, ends = gaussian_ends
    for k in range(2):
        assert ends["sds"][k].var(0).mean().sqrt() < 0.2 * z_hat.var(0).mean().sqrt()
        assert (ends["sds"][k].mean(0) - 4.0 * world().mean[2 + k]).square().mean().sqrt() < 0.2


# Folders, and Stable Diffusion in small


def test_saved_student_is_the_same_and_a_diffusers_folder(tmp_path):
    student, z_hat = student_of(class_unet(), TASKS.y), noise(2, 1, 8, 8)
    torch.nn.init.normal_(student.unet.conv_out.weight)
    dds_network_files.save(student, tmp_path / "student", {"lr": 1e-3})
    dds_network_files.save(student, tmp_path / "student", {"lr": 1e-4})  # replaces the first
    loaded = dds_network_files.load(tmp_path / "student")
    assert torch.equal(dds_network.apply(loaded, z_hat, 1), dds_network.apply(student.eval(), z_hat, 1))
    assert json.loads((tmp_path / "student" / "training.json").read_text()) == {"lr": 1e-4}
    assert UNet2DModel.from_pretrained(tmp_path / "student", subfolder="unet").config.num_class_embeds == 4
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize(
    "name", ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "instructions.safetensors"]
)
def test_missing_and_damaged_files_are_named(tmp_path, name):
    place = tmp_path / "student"
    dds_network_files.save(student_of(class_unet(), TASKS.y), place)
    whole = (place / name).read_bytes()
    (place / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"student .*: a damaged file; delete the folder and train it again"):
        dds_network_files.load(place)
    (place / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; train it first"):
        dds_network_files.load(place)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a trained student; name another folder"):
        dds_network_files.save(student_of(class_unet(), TASKS.y), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(place)
    return stable_diffusion.load(place)


@pytest.fixture
def pictures(tmp_path):
    for i in range(5):
        pixels = torch.randint(256, (40, 48, 3), generator=torch.Generator().manual_seed(i)).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


TARGETS = {"Change to a lion.": "Photo of a lion.", "Change to a dog.": "Photo of a dog."}


def test_text_student_starts_as_the_identity_and_depends_on_the_instruction(tiny):
    instructions = torch.cat([tiny.embed(text) for text in TARGETS])
    student, z_hat = student_of(tiny.unet.unet, instructions), noise(2, 4, 32, 32)
    assert isinstance(student.unet, UNet2DConditionModel)
    assert torch.equal(dds_network.apply(student, z_hat, 1), z_hat)
    torch.nn.init.normal_(student.unet.conv_out.weight)
    assert not torch.equal(dds_network.apply(student, z_hat, 0), dds_network.apply(student, z_hat, 1))


def test_training_on_a_folder_with_stable_diffusion_in_small(tiny, pictures, tmp_path):
    out = tmp_path / "out"
    done = dds_network_files.train_on_folder(
        tiny, pictures, out, "Photo of a cat.", TARGETS, replace(QUICK, iterations=2), progress=False
    )
    assert (len(done.z_hat), len(done.held_out)) == (4, 1)
    assert len(done.history.values["direction"]) == 2
    edited = dds_network.apply(done.student, done.held_out, 1)
    assert not torch.equal(edited, done.held_out)
    loaded = dds_network_files.load(out / "student")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in done.student.state_dict().items())
    torch.testing.assert_close(dds_network.apply(loaded, done.held_out, 1), edited, rtol=1e-4, atol=1e-5)
    assert json.loads((out / "student" / "training.json").read_text())["targets"] == TARGETS
    again = dds_network_files.train_on_folder(  # finished: nothing is left to train
        tiny, pictures, out, "Photo of a cat.", TARGETS, replace(QUICK, iterations=2), progress=False
    )
    assert torch.equal(dds_network.apply(again.student, done.held_out, 1), edited)
    with pytest.raises(UserError, match=r"'source' is 'Photo of a dog.' in this run"):
        dds_network_files.train_on_folder(tiny, pictures, out, "Photo of a dog.", TARGETS, QUICK, progress=False)
    os.utime(pictures / "0.png", (0, 0))  # another picture of that name
    with pytest.raises(UserError, match="'images' is"):
        dds_network_files.train_on_folder(tiny, pictures, out, "Photo of a cat.", TARGETS, QUICK, progress=False)


def test_teachers_are_told_apart(tiny):
    other = copy.deepcopy(tiny.unet.unet)
    assert dds_network_files.fingerprint(other) == dds_network_files.fingerprint(tiny.unet.unet)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert dds_network_files.fingerprint(other) != dds_network_files.fingerprint(tiny.unet.unet)


def test_a_folder_of_something_else_is_refused_before_the_training(tiny, pictures, tmp_path):
    (tmp_path / "out" / "student").mkdir(parents=True)
    with pytest.raises(UserError, match="holds something else than a trained student"):
        dds_network_files.train_on_folder(
            tiny, pictures, tmp_path / "out", "Photo of a cat.", TARGETS, QUICK, progress=False
        )
    assert not (tmp_path / "out" / "training").exists()


def test_mixed_precision_keeps_weights_and_latents_in_float32(tiny):
    instructions = torch.cat([tiny.embed(text) for text in TARGETS])
    tasks = Tasks(instructions, tiny.embed("Photo of a cat."), tiny.embed(""))
    student, s = student_of(tiny.unet.unet, instructions), replace(QUICK, iterations=2, precision="bf16")
    dds_network.train_network(student, tiny.model, tiny.schedule, noise(2, 4, 32, 32), tasks, s, progress=False)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert dds_network.apply(student, noise(1, 4, 32, 32), 0).dtype == torch.float32


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iterations": 0}, "iterations: 0 given; it should be 1 or larger"),
        ({"batch": 0}, "batch: 0 given; it should be 1 or larger"),
        ({"lr": -1.0}, "lr: -1 given; it should be 0 or larger"),
        ({"omega": math.nan}, "omega: nan given; it should be 0 or larger"),
        ({"omega_warmup": -5}, "omega_warmup: -5 given; it should be 0 or larger"),
        ({"method": "ddt"}, "method: 'ddt' given; one of dds, sds"),
        ({"precision": "fp8"}, "precision: 'fp8' given; one of no, bf16"),
    ],
)
def test_bad_settings_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        replace(PAPER, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"z_hat": torch.zeros(2, 3, 8, 8)}, r"z_hat: shape \(2, 3, 8, 8\); this student takes latents \(n, 1, h, w\)"),
        ({"z_hat": torch.zeros(0, 1, 8, 8)}, r"z_hat: shape \(0, 1, 8, 8\)"),
        ({"tasks": TASKS._replace(y=torch.arange(3))}, "tasks: 3 targets for 2 instructions; give one each"),
        ({"tasks": TASKS._replace(y_hat=torch.zeros(3))}, r"y_hat: shape \(3,\) beside targets of \(2,\)"),
        ({"tasks": TASKS._replace(null=torch.zeros(1, 77, 8))}, r"null: shape \(1, 77, 8\) beside targets of \(2,\)"),
        ({"settings": replace(QUICK, t_range=(50, 1000))}, r"t_range: \(50, 1000\) is not a range inside"),
    ],
)
def test_bad_arguments_are_named(changes, words):
    arguments = {"z_hat": noise(2, 1, 8, 8), "tasks": TASKS, "settings": QUICK} | changes
    with pytest.raises(UserError, match=words):
        dds_network.train_network(student_of(class_unet(), TASKS.y), world(), SCHEDULE, **arguments, progress=False)


def test_unsuitable_networks_are_refused():
    with pytest.raises(UserError, match="unet: Linear given; one of UNet2DModel, UNet2DConditionModel"):
        dds_network.DistilledNetwork(torch.nn.Linear(2, 2), TASKS.y)
    with pytest.raises(
        UserError, match="unet: 1 channels in, 2 out; an image-to-image network needs as many out as in"
    ):
        dds_network.DistilledNetwork(UNet2DModel(sample_size=8, in_channels=1, out_channels=2), TASKS.y)


def test_bad_folders_and_prompts_of_the_user_are_named(tiny, pictures, tmp_path):
    def call(images, targets=TARGETS, **options):
        dds_network_files.train_on_folder(tiny, images, tmp_path / "out", "Photo of a cat.", targets, QUICK, **options)

    with pytest.raises(UserError, match="targets: none given"):
        call(pictures, {})
    with pytest.raises(UserError, match=r"image folder .*nowhere does not exist"):
        call(tmp_path / "nowhere")
    with pytest.raises(UserError, match="size: 63 given"):
        call(pictures, size=63)
    for i in range(1, 5):
        (pictures / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"images: 1 in .*; give 2 or more"):
        call(pictures)
    (pictures / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 of 1 files in .* cannot be read: 0.png"):
        call(pictures)


def test_the_default_timesteps_are_those_of_the_edits():
    assert PAPER.t_range == dds.T_RANGE
