"""The adaptor: no change at the start or after detaching, only its own layers learn, a file belongs to one net."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

from lib.ground import nets
from lib.papers.ant.adaptor import GEOMETRIES, HEAD, Adaptor, Branch, counts
from lib.record.files import UserError
from tests.rounding import assert_same


def resampling(**more):
    """A net of ADM's kind: its residual blocks change the resolution too."""
    return UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attn_norm_num_groups=8,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        **more,
    )


NETS = {"small": lambda: nets.small_unet(size=8, channels=(16, 32)), "resampling": resampling}


def make(name="small", seed=0):
    torch.manual_seed(seed)
    return NETS[name]().eval()


def inputs(unet, n=2):
    x = torch.randn(n, unet.config["in_channels"], *[unet.config["sample_size"]] * 2)
    return x, torch.tensor([10, 900])[:n]


def output(unet, x, t):
    with torch.no_grad():
        return unet(x, t).sample


def woken(adaptor):
    """The same adaptor with its last convolutions no longer zero."""
    for branch in adaptor.branches.values():
        torch.nn.init.normal_(branch.up.weight, std=0.1)
    return adaptor


@pytest.mark.parametrize("c", [1, 2, 4, 16])
@pytest.mark.parametrize("name", NETS)
def test_the_net_is_unchanged_at_the_start_and_after_detaching(name, c):
    unet = make(name)
    x, t = inputs(unet)
    before, keys = output(unet, x, t), list(unet.state_dict())
    adaptor = Adaptor.attach(unet, c=c)
    assert torch.equal(output(unet, x, t), before)
    woken(adaptor)
    assert not torch.allclose(output(unet, x, t), before, atol=1e-3)
    assert list(unet.state_dict()) == keys
    adaptor.detach()
    assert torch.equal(output(unet, x, t), before)


def test_every_block_has_a_branch_that_counts():
    unet = make("resampling")
    adaptor = Adaptor.attach(unet, c=2)
    x, t = inputs(unet)
    before = output(unet, x, t)
    blocks = [m for m in unet.modules() if type(m).__name__ in ("ResnetBlock2D", "Attention")]
    assert len(adaptor.branches) == len(blocks) + 1
    for name, branch in adaptor.branches.items():
        assert (branch.time is not None) == ("resnets" in name or "samplers" in name)
        with torch.no_grad():
            branch.up.bias.fill_(0.1)
        assert not torch.equal(output(unet, x, t), before), name
        with torch.no_grad():
            branch.up.bias.zero_()


def test_the_head_branch_sees_what_the_head_sees():
    unet = make().double()
    adaptor = woken(Adaptor.attach(unet))
    for name, branch in adaptor.branches.items():
        if name != HEAD:
            torch.nn.init.zeros_(branch.up.weight)
    x, t = inputs(unet)
    x = x.double()
    seen = []
    with unet.conv_norm_out.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        adapted = output(unet, x, t)
    head = adaptor.branches[HEAD]
    adaptor.detach()
    with torch.no_grad():
        assert_same(adapted, output(unet, x, t) + head(seen[0], (8, 8)))


def test_a_branch_by_hand():
    """Pooling, both normalisations and upsampling in their order, with a transformer block that does nothing."""
    branch = Branch(4, 3, c=2, d=4).double()
    for linear in (branch.block.self_attn.out_proj, branch.block.linear2):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    torch.nn.init.normal_(branch.up.weight)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    pooled = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).reshape(1, 2, 2, 3, 3)  # two groups of two channels
    spread = pooled.var((2, 3, 4), correction=0, keepdim=True)
    z = branch.down(((pooled - pooled.mean((2, 3, 4), keepdim=True)) / (spread + 1e-5).sqrt()).reshape(1, 4, 3, 3))
    z = z.repeat_interleave(2, 2).repeat_interleave(2, 3)
    z = (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()
    assert_same(branch(x, (6, 6)), branch.up(z))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_the_adaptor_only_and_survive_checkpointing(name, checkpointing):
    unet = make(name)
    adaptor = woken(Adaptor.attach(unet, c=2))
    x, t = inputs(unet)
    unet.train()
    unet(x, t).sample.square().mean().backward()
    plain = [p.grad.clone() for p in adaptor.parameters()]
    assert all(p.grad is None for p in unet.parameters())
    assert all(
        g.abs().sum() > 0 for name, g in zip(dict(adaptor.named_parameters()), plain, strict=True) if "up" in name
    )
    if checkpointing:
        unet.enable_gradient_checkpointing()
        adaptor.zero_grad()
        unet(x, t).sample.square().mean().backward()
        for p, g in zip(adaptor.parameters(), plain, strict=True):
            assert_same(p.grad, g)


def test_only_the_last_convolutions_move_first():
    unet = make()
    adaptor = Adaptor.attach(unet)
    unet(*inputs(unet)).sample.square().mean().backward()
    for name, p in adaptor.named_parameters():
        assert (p.grad.abs().sum() > 0) == (".up." in name), name


def test_a_copy_of_the_pair_is_independent():
    unet = make()
    adaptor = Adaptor.attach(unet)
    x, t = inputs(unet)
    before = output(unet, x, t)
    other, its = copy.deepcopy((unet, adaptor))
    woken(its)
    assert torch.equal(output(unet, x, t), before)
    changed = output(other, x, t)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(
        output(copy.deepcopy(other), x, t), changed
    )  # a copy of the net alone carries its branches along
    its.detach()
    assert torch.equal(output(other, x, t), before)


def test_save_and_load(tmp_path):
    unet = make()
    x, t = inputs(unet)
    adaptor = woken(Adaptor.attach(unet, c=2, d=12, heads=3))
    adaptor.save(unet, tmp_path / "adaptor.safetensors")
    adapted = output(unet, x, t)
    other = make()
    again = Adaptor.load(other, tmp_path / "adaptor.safetensors")
    assert torch.equal(output(other, x, t), adapted)
    assert again.settings == adaptor.settings == {"c": 2, "d": 12, "heads": 3}


def test_files_that_do_not_belong_are_refused(tmp_path):
    unet, path = make(), tmp_path / "adaptor.safetensors"
    Adaptor.attach(unet).save(unet, path)
    for other in (make(seed=1), make("resampling")):
        before = output(other, *(probe := inputs(other)))
        with pytest.raises(UserError, match="a net with other weights"):
            Adaptor.load(other, path)
        assert torch.equal(output(other, *probe), before)
        assert all(p.requires_grad for p in other.parameters())
    with pytest.raises(UserError, match=r"none\.safetensors: missing"):
        Adaptor.load(make(), tmp_path / "none.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated or damaged"):
        Adaptor.load(make(), damaged)
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors: .*give a file that Adaptor\.save wrote"):
        Adaptor.load(make(), tmp_path / "weights.safetensors")


def test_a_second_adaptor_is_refused():
    unet = make()
    adaptor = Adaptor.attach(unet)
    with pytest.raises(UserError, match=r"^unet: it has an adaptor"):
        Adaptor.attach(unet)
    adaptor.detach()
    Adaptor.attach(unet)


def test_a_branch_counted_by_hand():
    C, out, temb, d = 16, 32, 64, 8
    by_hand = 2 * C + (9 * C * d + d) + (temb * d + d)  # normalisation, first convolution, time embedding
    by_hand += (3 * d * d + 3 * d) + (d * d + d) + 4 * d + (4 * d * d + 4 * d) + (4 * d * d + d)  # transformer block
    by_hand += 2 * d + (9 * d * out + out)
    assert nets.parameter_count(Branch(C, out, temb, d=d)) == by_hand


SIZES = {
    "ADM 256": 552.8,
    "Ho et al. 256": 113.67,
    "LDM FFHQ": 274.1,
    "LDM church": 256.4,
}  # millions, of the originals


@pytest.mark.parametrize(("name", "millions"), SIZES.items())
def test_the_geometries_have_the_sizes_of_the_nets(name, millions):
    adaptor, unet = counts(GEOMETRIES[name])
    assert unet / 1e6 == pytest.approx(millions, abs=0.05)
    assert adaptor > 0


def test_counts_are_those_of_what_attach_makes():
    unet = make("resampling")
    adaptor, base = counts(dict(unet.config), d=16)
    assert base == nets.parameter_count(unet)
    assert adaptor == nets.parameter_count(Adaptor.attach(unet, c=2, d=16))
