"""The noised classifier: the encoder is the U-Net's own, training tells two domains apart, and it guides."""

import pytest
import torch
from diffusers import UNet2DModel

from lib.ground import diffusion, nets
from lib.ground.noised_classifier import NoisedClassifier, accuracy, train_noised
from lib.papers.ant import method as ant
from lib.record.files import UserError

SCHEDULE = diffusion.linear()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return nets.small_unet(size=8, channels=(16, 32)).eval()


def batch(n=4, size=8, channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, size, size, generator=generator), torch.tensor([0, 300, 700, 999])[:n]


def middle(unet, x, t):
    """The U-Net's own map after its middle block, read off while the whole net runs."""
    seen = []
    handle = unet.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        unet(x, t)
    handle.remove()
    return seen[0]


NETS = {
    "small": lambda: nets.small_unet(size=8, channels=(16, 32)),
    "three channels, centred, scale-shift": lambda: UNet2DModel(
        sample_size=16,
        center_input_sample=True,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
    ),
    "score SDE blocks": lambda: UNet2DModel(
        sample_size=16,
        time_embedding_type="fourier",
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_features_are_those_of_the_net_itself(name):
    torch.manual_seed(0)
    unet = NETS[name]().eval()
    classifier = NoisedClassifier(unet).eval()
    x, t = batch(size=unet.config["sample_size"], channels=unet.config["in_channels"])
    t = t + 1  # the Fourier embedding takes a logarithm
    with torch.no_grad():
        assert torch.equal(classifier.features(x, t), middle(unet, x, t))
        assert torch.equal(classifier(x, t), torch.zeros(4, 2))  # a new head knows nothing: p = 1/2


def two_domains():
    """Images that differ in one half: brighter left or brighter right."""
    ramp = torch.linspace(-0.8, 0.8, 8).expand(20, 1, 8, 8) + 0.05 * torch.randn(20, 1, 8, 8)
    return ramp, -ramp[:5]


def trained(unet, seed=0, steps=40):
    classifier = NoisedClassifier(unet)
    history = train_noised(classifier, SCHEDULE, *two_domains(), steps=steps, batch=16, lr=1e-3, seed=seed)
    return classifier, history


def test_training_tells_the_domains_apart_and_freezes(unet):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    torch.manual_seed(0)
    classifier, history = trained(unet)
    images = torch.cat([images[:5] for images in two_domains()])
    t = torch.full((10,), 100)
    with torch.no_grad():
        logits = classifier(SCHEDULE.add_noise(images, torch.randn(images.shape), t), t)
    assert logits.argmax(1).tolist() == [0] * 5 + [1] * 5
    assert history.values["cross_entropy"][0] == pytest.approx(0.6931, abs=1e-4)  # log 2
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_step_along_the_guidance_looks_more_like_the_target(unet):
    torch.manual_seed(0)
    classifier, _ = trained(unet)
    x0, t = two_domains()[0][:8], torch.full((8,), 200)
    x_t = SCHEDULE.add_noise(x0, torch.randn(x0.shape), t)
    gradient = ant.classifier_guidance(classifier)(x_t, t)
    step = 1e-2 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        before, after = (classifier(x, t).softmax(-1)[:, 1] for x in (x_t, x_t + step))
    assert (after > before).all()


def test_accuracy_counts_each_domain_by_itself(unet):
    classifier = NoisedClassifier(unet)
    torch.nn.init.constant_(classifier.head.bias[:1], 1.0)  # says source, whatever it sees
    assert accuracy(classifier, SCHEDULE, *two_domains(), t=100) == (1.0, 0.0)
    trained_one, _ = trained(unet)
    told = accuracy(trained_one, SCHEDULE, *two_domains(), t=20)
    assert min(told) > 0.8


def test_training_is_repeatable_and_the_seed_counts(unet):
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        losses.append(trained(unet, seed=seed, steps=4)[1].values["cross_entropy"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("wrong", [0, 7])
def test_an_odd_batch_is_refused(unet, wrong):
    with pytest.raises(UserError, match=f"^batch: {wrong} given"):
        train_noised(NoisedClassifier(unet), SCHEDULE, *two_domains(), batch=wrong)
