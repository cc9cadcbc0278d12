"""ANT on images: arms are paired, only what is in training moves, and the helpers of claim A5 match hand counts."""

import math

import pytest
import torch

from lib.ground import diffusion, nets
from lib.ground.noised_classifier import NoisedClassifier
from lib.papers.ant import images as ant_images
from lib.papers.ant import method as ant
from lib.record.files import UserError

SCHEDULE = diffusion.linear()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return nets.small_unet(size=8, channels=(16, 32)).eval()


def run(unet, seed=0, steps=3, **arm):
    images = torch.linspace(-1, 1, 5 * 64).view(5, 1, 8, 8)
    seen = []
    student = ant_images.finetune(
        unet,
        SCHEDULE,
        images,
        steps,
        batch=4,
        lr=1e-3,
        seed=seed,
        on_step=lambda i, net: seen.append((i, net.training)),
        progress=False,
        **arm,
    )
    assert seen == [(i + 1, False) for i in range(steps)]
    return student


def guidance(unet):
    torch.manual_seed(1)
    classifier = NoisedClassifier(unet).requires_grad_(False).eval()
    torch.nn.init.normal_(classifier.head.weight)
    return ant.classifier_guidance(classifier)


def test_full_fine_tuning_moves_a_copy_and_leaves_the_source(unet):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    student = run(unet, J=0)
    assert student.adaptor is None
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert not torch.equal(student.unet.conv_out.weight, unet.conv_out.weight)


def test_with_an_adaptor_the_net_keeps_its_weights_and_detaches_to_the_source(unet):
    student = run(unet, J=2, adaptor={"c": 2}, guidance=guidance(unet))
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in student.unet.state_dict().items())
    assert student.adaptor.settings == {"c": 2, "d": 8, "heads": 4}
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 900])
    with torch.no_grad():
        source, adapted = unet(x, t).sample, student.unet(x, t).sample
        student.adaptor.detach()
        detached = student.unet(x, t).sample
    assert not torch.allclose(adapted, source, atol=1e-4)
    torch.testing.assert_close(detached, source, rtol=0, atol=1e-5)  # equal weights, another memory layout


def test_arms_are_paired_and_repeatable(unet):
    plain, adaptor, guided, again = (
        run(unet, J=0, **arm).history.values
        for arm in ({}, {"adaptor": {}}, {"adaptor": {}, "guidance": guidance(unet)}, {"adaptor": {}})
    )
    assert plain["plain"][0] == pytest.approx(adaptor["plain"][0], rel=1e-5)  # the adaptor begins as the source
    assert guided["plain"][0] == pytest.approx(adaptor["plain"][0], rel=1e-5)
    assert adaptor == again
    assert guided["shift"][0] > 0 == adaptor["shift"][0]
    assert run(unet, J=0, seed=1).history.values["plain"] != plain["plain"]


def test_adversarial_noise_has_a_larger_error(unet):
    plain, adversarial = (run(unet, J=J, adaptor={}, omega=0.2, steps=1).history.values["plain"][0] for J in (0, 5))
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
    torch.testing.assert_close(ant.ascent_direction(nets.eps_model(unet), SCHEDULE, x0, t, eps), with_weights)
    unet.requires_grad_(True)


def test_evaluations_count_the_ascents_and_the_update():
    assert ant_images.evaluations(32, 10) == 352
    assert ant_images.evaluations(7, 0) == 7


def test_first_handwritten_counted_by_hand():
    handwritten = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]]).bool()  # checkpoints, noises
    times = ant_images.first_handwritten(handwritten, [2, 4, 8])
    assert times.tolist() == [2, 16, 4, 8]
    assert ant_images.spread(times) == pytest.approx(torch.tensor([1.0, 4, 2, 3]).std().item())
    assert ant_images.spread(torch.full((3,), 8.0)) == 0


@pytest.mark.parametrize("iterations", [[2, 4], [4, 2, 8], [0, 2, 4], [2, 2, 4]])
def test_iterations_that_do_not_fit_are_refused(iterations):
    with pytest.raises(UserError, match=r"^(handwritten|iterations): "):
        ant_images.first_handwritten(torch.zeros(3, 5).bool(), iterations)


def test_first_transferred():
    assert ant_images.first_transferred([0.1, 0.8, 0.7, 0.9]) == 1
    assert ant_images.first_transferred([0.1, 0.79]) is None
    assert ant_images.first_transferred([math.nan]) is None


def test_copies_are_nearer_than_real_images_are():
    shots = torch.zeros(1, 1, 2, 2)
    distances = torch.linspace(0.1, 1.1, 101)
    real = torch.cat([shots, distances.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)])  # the shot itself is left out
    radius = ant_images.copy_radius(shots, real)
    assert radius == pytest.approx(0.11, abs=1e-3)
    samples = torch.tensor([0.0, 0.05, 0.105, 0.2]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    assert ant_images.copies(samples, shots, radius) == 0.75


def test_a_radius_needs_images_beside_the_shots():
    shots = torch.randn(3, 1, 2, 2)
    with pytest.raises(UserError, match=r"^real: "):
        ant_images.copy_radius(shots, shots.clone())
