"""ANT on images: arms are paired, only what is in training moves, a seed is a draw."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.ground import diffusion, nets
from lib.ground.finetune import Options, finetune
from lib.ground.noised_classifier import NoisedClassifier
from lib.papers.ant import experiments, method as ant
from lib.worlds import emoji_judge, emoji_measures
from tests.rounding import assert_same

SCHEDULE = diffusion.linear()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return nets.small_unet(size=8, channels=(16, 32)).eval()


def run(unet, seed=0, steps=3, adaptor=None, guidance=None, **options):
    """A fine-tuned copy of the net, what was trained, and the values of the losses."""
    shots = torch.linspace(-1, 1, 5 * 64).view(5, 1, 8, 8)
    net, trained = experiments.student(unet, adaptor, seed)
    model, settings = nets.eps_model(net), Options(batch=4, lr=1e-3, seed=seed)

    def loss(x0, t, eps):
        return ant.loss(model, guidance, SCHEDULE, x0, t, eps, **options)

    return net, trained, finetune(trained, SCHEDULE, shots, loss, steps, settings).values


def guidance(unet):
    torch.manual_seed(1)
    classifier = NoisedClassifier(unet).requires_grad_(False).eval()
    torch.nn.init.normal_(classifier.head.weight)
    return ant.classifier_guidance(classifier)


def test_full_fine_tuning_moves_a_copy_and_leaves_the_source(unet):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    net, trained, _ = run(unet, J=0)
    assert trained is net
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert not torch.equal(net.conv_out.weight, unet.conv_out.weight)


def test_with_an_adaptor_the_net_keeps_its_weights_and_detaches_to_the_source(unet):
    net, adaptor, _ = run(unet, J=2, adaptor={"c": 2}, guidance=guidance(unet))
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in net.state_dict().items())
    assert adaptor.settings == {"c": 2, "d": 8, "heads": 4}
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 900])
    with torch.no_grad():
        source, adapted = unet(x, t).sample, net(x, t).sample
        adaptor.detach()
        detached = net(x, t).sample
    assert not torch.allclose(adapted, source, atol=1e-4)
    assert_same(detached, source)  # equal weights, another memory layout


def test_arms_are_paired_and_repeatable(unet):
    plain, adaptor, guided, again = (
        run(unet, J=0, **arm)[2]
        for arm in ({}, {"adaptor": {}}, {"adaptor": {}, "guidance": guidance(unet)}, {"adaptor": {}})
    )
    first = {name: torch.tensor(values["plain"][0]) for name, values in (("plain", plain), ("guided", guided))}
    for value in first.values():  # the adaptor begins as the source
        assert_same(value, torch.tensor(adaptor["plain"][0]))
    assert adaptor == again
    assert guided["shift"][0] > 0 == adaptor["shift"][0]
    assert run(unet, J=0, seed=1)[2]["plain"] != plain["plain"]


def test_adversarial_noise_has_a_larger_error(unet):
    plain, adversarial = (run(unet, J=J, adaptor={}, omega=0.2, steps=1)[2]["plain"][0] for J in (0, 5))
    assert adversarial > plain


def test_the_ascent_computes_no_gradient_of_the_weights(unet):
    """Its gradient is that of frozen weights, and no weight receives one."""
    x0, eps, t = torch.zeros(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([100, 600])
    asked = []
    weight = unet.conv_in.weight
    handle = weight.register_hook(lambda gradient: asked.append(gradient))
    with_weights = ant.ascent_direction(nets.eps_model(unet), SCHEDULE, x0, t, eps)
    handle.remove()
    assert not asked
    assert all(p.grad is None for p in unet.parameters())
    unet.requires_grad_(False)
    assert_same(ant.ascent_direction(nets.eps_model(unet), SCHEDULE, x0, t, eps), with_weights)
    unet.requires_grad_(True)


def parameters(**more):
    training = {"batch": 2, "lr_full": 1e-3, "lr_adaptor": 1e-3, "c": 2, "d": 4, "gamma": 5.0, "omega": 0.02}
    classifier = {"classifier_steps": 1, "classifier_batch": 4, "classifier_lr": 1e-3}
    lengths = {"ascents": 1, "checkpoints": [1], "checkpoints_plain": [2], "samples": 4, "sampling_steps": 2}
    return SimpleNamespace(**training, **classifier, **lengths, kind="faces")


def test_the_arms_take_parts_of_ant_away():
    arms = experiments.arms(parameters())
    assert {name: (arm.adaptor, arm.gamma, arm.J) for name, arm in arms.items()} == {
        "full": (False, 0, 0),
        "adaptor": (True, 0, 0),
        "no noise": (True, 5, 0),
        "ANT": (True, 5, 1),
        "flipped": (True, -5, 0),
    }
    assert arms["full"].stops == (0, 1, 2)
    assert arms["ANT"].stops == (0, 1)


def test_a_draw_depends_on_its_seed_alone():
    unet = nets.seeded(0, lambda: nets.small_unet(32, (16, 32), image_channels=3)).eval()
    axes = torch.linalg.qr(torch.randn(1280, 64, generator=torch.Generator().manual_seed(1)))[0]
    world = unet, SCHEDULE, emoji_judge.load(), emoji_measures.Space({}, torch.zeros(1280), axes)
    torch.manual_seed(0)
    draw = experiments.few_pictures(3, parameters(), *world)
    assert draw["full samples"].shape == (3, 4, 3, 32, 32)
    assert draw["ANT frechet"].shape == (2,)
    for measure in experiments.MEASURES:  # all arms begin as the source
        np.testing.assert_equal(draw[f"full {measure}"][0], draw[f"ANT {measure}"][0])
    torch.manual_seed(1)
    again = experiments.few_pictures(3, parameters(), *world)
    for key, value in draw.items():
        np.testing.assert_equal(value, again[key])


def test_closeness_by_hand():
    shots, others = torch.zeros(1, 3, 2, 2), torch.ones(2, 3, 2, 2)
    samples = torch.full((1, 3, 2, 2), 0.25)
    assert (experiments._near(samples, shots) / experiments._near(samples, others)).item() == pytest.approx(1 / 3)
    assert experiments._near(others, others).isinf().all()  # equal pictures are one picture


def test_the_classifier_sees_mirrored_and_shifted_pictures():
    picture = torch.arange(48.0).view(1, 3, 4, 4)
    moved = experiments._moved(picture)
    assert len(moved) == 18
    for wanted in (picture, picture.flip(-1), picture.roll((2, -2), (2, 3))):
        assert (moved == wanted).flatten(1).all(1).any()


def test_a_branch_sees_more_than_one_position_at_32_pixels():
    unet = nets.seeded(0, lambda: nets.small_unet(32, (16, 32, 32), image_channels=3)).eval()
    seen = []
    net, adaptor = experiments.student(unet, {"c": 4, "d": 8})
    for branch in adaptor.branches.values():
        branch.block.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32), torch.tensor([500]))
    assert len(seen) == len(adaptor.branches)
    assert min(seen) >= 4  # 2 x 2 pooled positions
