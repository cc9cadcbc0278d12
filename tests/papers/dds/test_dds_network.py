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
from lib.jobs.stable_diffusion import model as stable_diffusion, network as dds_network_files
from lib.jobs.stable_diffusion.tiny import tiny_pipeline
from lib.papers.dds import method as dds, network as dds_network
from lib.papers.dds.gaussian import GaussianWorld
from lib.papers.dds.network import PAPER, Settings, Tasks, guidance, identity_weight, rate_share, student_of
from lib.record.files import UserError
from tests.rounding import assert_same

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
    assert Settings(125_000, 2, 1e-5, 10_000, 25.0, 20_000, 3.0, 0.1, 20_000) == PAPER


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


def first_gradient(teacher_unet, s):
    """Gradient of the first update, caught when the optimizer would use it."""
    student = student_of(class_unet(), TASKS.y)
    torch.nn.init.normal_(student.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    start = {name: value.clone() for name, value in student.state_dict().items()}
    z_hat = noise(5, 1, 8, 8)
    one = replace(s, iterations=1)
    dds_network.train_network(student, class_teacher(teacher_unet), SCHEDULE, z_hat, TASKS, one, seed=7)
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
    noisy = [SCHEDULE.add_noise(part, eps, t) for part in (z.detach(), x)]
    g = dds.dds_direction(class_teacher(unet), *noisy, TASKS.y[k], TASKS.y_hat, TASKS.null, 4.0, t)
    g = g + 0.1 * (z.detach() - x)
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
    dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, QUICK)
    first, second = (dds_network.apply(student, z_hat, k) for k in range(2))
    assert not torch.equal(first, z_hat)
    assert not torch.equal(first, second)
    assert not student.training


def test_variants_see_the_same_batches(monkeypatch):
    drawn = {}

    def spied(method):
        def record(model, z_t, *others):
            y, t = (others[0], others[3]) if method == "sds" else (others[1], others[5])
            drawn.setdefault(method, []).append(torch.cat([z_t.flatten(), y.float(), t.float()]))
            return torch.zeros_like(z_t)

        monkeypatch.setattr(dds_network, f"{method}_direction", record)
        s = replace(QUICK, method=method, omega_warmup=0 if method == "sds" else 4)
        student = student_of(class_unet(), TASKS.y)
        dds_network.train_network(student, world(), SCHEDULE, noise(5, 1, 8, 8), TASKS, s, seed=3)

    spied("dds")
    spied("sds")
    assert len(drawn["dds"]) == 6
    assert torch.equal(torch.stack(drawn["dds"]), torch.stack(drawn["sds"]))


def test_stopped_and_resumed_training_ends_with_the_same_weights(tmp_path):
    z_hat = noise(5, 1, 8, 8)

    def trained(folder, on_step=None):
        student = student_of(class_unet(), TASKS.y)
        options = {"seed": 1, "folder": folder, "save_every": 1, "on_step": on_step}
        dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, QUICK, **options)
        return student.state_dict()

    def stop(i, history):
        if i == 4:
            raise KeyboardInterrupt

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", stop)
    assert (tmp_path / "parts" / "step-000004").is_dir()
    for name, value in trained(tmp_path / "parts").items():
        assert torch.equal(value, whole[name]), name


def test_resume_with_other_settings_is_refused(tmp_path):
    student, z_hat = student_of(class_unet(), TASKS.y), noise(5, 1, 8, 8)
    dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, QUICK, folder=tmp_path)
    with pytest.raises(UserError, match=r"'omega' is 5.0 in this run, but the checkpoint was made with 4.0"):
        dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, replace(QUICK, omega=5.0), folder=tmp_path)


def test_a_value_that_is_not_finite_stops_the_training():
    def broken(z_t, t, y):
        return torch.full_like(z_t, math.nan)

    student = student_of(class_unet(), TASKS.y)
    with pytest.raises(UserError, match="step 1: 'direction' is nan; training stopped"):
        dds_network.train_network(student, broken, SCHEDULE, noise(2, 1, 8, 8), TASKS, QUICK)


class Affine(torch.nn.Module):
    """A network that can hold the end of the Gaussian world: one factor and one shift a task."""

    def __init__(self, tasks):
        super().__init__()
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
        dds_network.train_network(student, world(), SCHEDULE, z_hat, TASKS, replace(s, method=method))
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
    with pytest.raises(
        UserError, match=r"truncated or damaged .*; (student: )?train the student again, or name another"
    ):
        dds_network_files.load(place)
    (place / name).unlink()
    with pytest.raises(UserError, match=r"student: .*; train the student again, or name another folder"):
        dds_network_files.load(place)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds what no run made"):
        dds_network_files.save(student_of(class_unet(), TASKS.y), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(place)
    return stable_diffusion.load(place)


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        pixels = torch.randint(256, (40, 48, 3), generator=torch.Generator().manual_seed(i)).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


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
        tiny, pictures, out, "Photo of a cat.", TARGETS, replace(QUICK, iterations=2)
    )
    assert (len(done.z_hat), len(done.held_out)) == (4, 1)
    assert len(done.history.values["direction"]) == 2
    edited = dds_network.apply(done.student, done.held_out, 1)
    assert not torch.equal(edited, done.held_out)
    loaded = dds_network_files.load(out / "student")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in done.student.state_dict().items())
    assert_same(dds_network.apply(loaded, done.held_out, 1), edited)
    assert json.loads((out / "student" / "training.json").read_text())["targets"] == TARGETS
    again = dds_network_files.train_on_folder(  # finished: nothing is left to train
        tiny, pictures, out, "Photo of a cat.", TARGETS, replace(QUICK, iterations=2)
    )
    assert torch.equal(dds_network.apply(again.student, done.held_out, 1), edited)
    with pytest.raises(UserError, match=r"'source' is 'Photo of a dog.' in this run"):
        dds_network_files.train_on_folder(tiny, pictures, out, "Photo of a dog.", TARGETS, QUICK)
    os.utime(pictures / "0.png", (0, 0))  # another picture of that name
    with pytest.raises(UserError, match="'images' is"):
        dds_network_files.train_on_folder(tiny, pictures, out, "Photo of a cat.", TARGETS, QUICK)


def test_teachers_are_told_apart(tiny):
    other = copy.deepcopy(tiny.unet.unet)
    assert dds_network_files.fingerprint(other) == dds_network_files.fingerprint(tiny.unet.unet)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert dds_network_files.fingerprint(other) != dds_network_files.fingerprint(tiny.unet.unet)


def test_a_folder_of_something_else_is_refused_before_the_training(tiny, pictures, tmp_path):
    (tmp_path / "out" / "student").mkdir(parents=True)
    (tmp_path / "out" / "student" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds what no run made"):
        dds_network_files.train_on_folder(tiny, pictures, tmp_path / "out", "Photo of a cat.", TARGETS, QUICK)
    assert not (tmp_path / "out" / "training").exists()


def test_mixed_precision_keeps_weights_and_latents_in_float32(tiny):
    instructions = torch.cat([tiny.embed(text) for text in TARGETS])
    tasks = Tasks(instructions, tiny.embed("Photo of a cat."), tiny.embed(""))
    student, s = student_of(tiny.unet.unet, instructions), replace(QUICK, iterations=2, precision="bf16")
    dds_network.train_network(student, tiny.model, tiny.schedule, noise(2, 4, 32, 32), tasks, s)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert dds_network.apply(student, noise(1, 4, 32, 32), 0).dtype == torch.float32


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
    with pytest.raises(UserError, match=r"1 of 1 files cannot be read: 0\.png"):
        call(pictures)
