"""Stable Diffusion on a tiny random pipeline: against diffusers' own, and one line for every bad input; no network."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from lib.ground import diffusion
from lib.ground.pictures import picture
from lib.jobs import hub
from lib.jobs.stable_diffusion import edit as zero_shot, model as stable_diffusion, tiny as tiny_diffusion
from lib.measures import clip as clips, perceptual
from lib.papers.dds import method as dds
from lib.record.files import UserError
from tests.rounding import assert_same, tolerance

CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port
KINDS = ("epsilon", "v_prediction")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder in diffusers' layout for each kind of prediction."""
    places = {}
    for kind in KINDS:
        places[kind] = tmp_path_factory.mktemp(kind)
        tiny_diffusion.tiny_pipeline(kind).save_pretrained(places[kind])
    return places


@pytest.fixture(scope="module", params=KINDS)
def pair(request, folders):
    """Our model and diffusers' pipeline, from the same folder."""
    pipeline = StableDiffusionPipeline.from_pretrained(folders[request.param], safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return stable_diffusion.load(folders[request.param]), pipeline


@pytest.fixture(scope="module")
def sd(folders):
    return stable_diffusion.load(folders["epsilon"])


@pytest.fixture
def image():
    """A soft picture of 90 x 64 pixels."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (64, 90), mode="bicubic")[0].clamp(0, 1) * 2 - 1


@pytest.fixture
def copied(folders, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(folders["epsilon"], tmp_path / "copied")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_tiny_pipeline_is_made_without_touching_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (tiny_diffusion.tiny_pipeline(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    weights = [pipeline.unet.conv_in.weight for pipeline in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert len(first.tokenizer) == 514
    assert first.text_encoder.config.vocab_size == 514


def test_prompts_are_embedded_as_by_diffusers(pair):
    sd, pipeline = pair
    for prompt in ("", "A house made of candies.", "Frozen é 雪"):
        expected = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        torch.testing.assert_close(sd.embed(prompt), expected)
    assert sd.embed("Igloo.") is sd.embed("Igloo.")
    assert not torch.equal(sd.embed("Igloo."), sd.embed("House."))


def test_latents_are_scaled_posterior_means(pair, image):
    sd, pipeline = pair
    images = torch.stack([picture(image, 64), -picture(image, 64)])
    z = sd.encode(images, batch=1)
    assert_same(z, 0.18215 * pipeline.vae.encode(images).latent_dist.mean)
    large = 100 * z
    expected = pipeline.vae.decode(large / 0.18215).sample
    assert expected.abs().max() > 1
    torch.testing.assert_close(sd.decode(large, batch=1), expected.clamp(-1, 1), rtol=0, atol=tolerance(expected))


def test_the_model_predicts_noise_like_diffusers_schedulers(pair):
    sd, pipeline = pair
    z_t, t, y = normal(3, 4, 32, 32), torch.tensor([50, 400, 948]), torch.cat([sd.embed(p) for p in ("", "a", "b")])
    raw = pipeline.unet(z_t, t, y).sample
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(1000)
    for i in range(3):
        x0 = scheduler.step(raw[i : i + 1], int(t[i]), z_t[i : i + 1]).pred_original_sample
        ours = sd.schedule.x0_from_eps(z_t, sd.model(z_t, t, y), t)[i : i + 1]
        torch.testing.assert_close(ours, x0, rtol=1e-3, atol=1e-4)  # levels of the scheduler are float32 products
    if sd.prediction_type == "epsilon":
        assert_same(sd.model(z_t, t, y), raw)


def test_guided_ddim_sampling_gives_what_the_pipeline_gives(pair):
    sd, pipeline = pair
    noise = normal(1, 4, 32, 32)
    config = pipeline.scheduler.config
    pipeline.scheduler = DDIMScheduler.from_config(config, steps_offset=0, set_alpha_to_one=True)
    expected = pipeline("Snowing.", num_inference_steps=4, guidance_scale=7.5, latents=noise, output_type="latent")
    ours = diffusion.sample_ddim(sd.guided("Snowing.", 7.5), sd.schedule, noise, steps=4)
    torch.testing.assert_close(ours, expected.images, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ours, diffusion.sample_ddim(sd.guided("Igloo.", 7.5), sd.schedule, noise, steps=4))


def test_a_saved_pipeline_is_loaded_again(sd, folders, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(folders["epsilon"], safety_checker=None)
    pipeline.save_pretrained(tmp_path / "again")
    again = stable_diffusion.load(tmp_path / "again")
    z_t, t = normal(1, 4, 32, 32), torch.tensor([300])
    assert torch.equal(again.model(z_t, t, again.embed("Vespa.")), sd.model(z_t, t, sd.embed("Vespa.")))
    assert (again.checked_size(None), again.checked_size(4)) == (64, 4)


def test_files_as_old_as_those_of_stable_diffusion_1_5_are_read(sd, copied):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae, text = copied / "vae" / "diffusion_pytorch_model.safetensors", copied / "text_encoder" / "model.safetensors"
    weights = load_file(vae)
    for name in [name for name in weights if "attentions" in name]:
        first = next((new for new in old if new in name), "")
        weights[name.replace(first, old[first]) if first else name] = weights.pop(name)
    save_file(weights, vae, metadata={"format": "pt"})
    weights = load_file(text)
    weights = {name if name.startswith("text_model.") else f"text_model.{name}": x for name, x in weights.items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, text, metadata={"format": "pt"})
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    scheduler |= {"num_train_timesteps": 1000, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
    (copied / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    vocabulary = sd.pipeline.tokenizer.get_vocab()
    shutil.rmtree(copied / "tokenizer")
    (copied / "tokenizer").mkdir()
    (copied / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (copied / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    ends = {name: word for name, word in sd.pipeline.tokenizer.special_tokens_map.items() if isinstance(word, str)}
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **ends}
    (copied / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    found = stable_diffusion.load(copied)
    torch.testing.assert_close(found.schedule.alpha_bar, diffusion.scaled_linear().alpha_bar, rtol=1e-4, atol=1e-6)
    x = normal(1, 3, 64, 64).clamp(-1, 1)
    torch.testing.assert_close(found.decode(found.encode(x)), sd.decode(sd.encode(x)))
    torch.testing.assert_close(found.embed("A cat, é."), sd.embed("A cat, é."))


def test_weights_of_16_bit_stay_close(sd, folders, image):
    half = stable_diffusion.load(folders["epsilon"], dtype="float16")
    done = [zero_shot.edit(model, image, "Igloo.", "House.", iterations=4) for model in (sd, half)]
    assert done[1].edit.z.dtype == torch.float32
    change = (done[0].edit.z - done[0].edit.trajectory[0]).norm()
    assert 0 < (done[0].edit.z - done[1].edit.z).norm() < 0.1 * change


def test_equal_prompts_leave_the_latent_bit_equal(pair, image):
    sd, _ = pair
    for prompt in ("House.", ""):
        done = zero_shot.edit(sd, image, prompt, prompt, iterations=3)
        assert torch.equal(done.edit.z, sd.encode(picture(image, 64)[None]))
        assert_same(done.images[0], done.images[-1])


@pytest.mark.parametrize(("source", "evaluations"), [("House.", 2 + 4), ("", 2 + 3)])
def test_savings_do_not_change_the_edit(pair, image, source, evaluations):
    sd, _ = pair
    done = zero_shot.edit(sd, image, "Igloo.", source, iterations=2)
    z_hat = sd.encode(picture(image, 64)[None])
    y, y_hat, null = (sd.embed(text) for text in ("Igloo.", source, ""))
    plain = dds.edit(sd.model, sd.schedule, z_hat, y, y_hat, null, iterations=2)
    assert_same(done.edit.z, plain.z, steps=2)
    assert (done.edit.evaluations, plain.evaluations) == (evaluations, 8)
    assert (done.edit.z - z_hat).abs().max() > 1e-4


def test_several_prompts_share_the_branch_of_the_input(sd, image, monkeypatch):
    alone = [zero_shot.edit(sd, image, prompt, "House.", iterations=4, seed=3) for prompt in ("Igloo.", "Vespa.")]
    calls = []
    counted = SimpleNamespace(sample=None)
    original = sd.unet.__call__

    def count(z_t, t, y):
        calls.append(len(z_t))
        counted.sample = original(z_t, t, y).sample
        return counted

    model = stable_diffusion.StableDiffusion(**(vars(sd) | {"unet": count}))
    together = zero_shot.edit_many(model, image, ["Igloo.", "Vespa."], "House.", iterations=4, seed=3)
    for one, many in zip(alone, together, strict=True):
        assert_same(many.edit.z, one.edit.z, steps=4)
    assert sum(calls) == 2 * 4 + 2 * (1 + 2 * 3)
    calls.clear()
    zero_shot.edit_many(model, image, ["Igloo.", "Vespa."], "House.", iterations=4, method="sds")
    assert sum(calls) == 2 * 2 * 4  # SDS has no such branch


def test_what_an_edit_returns(sd, image):
    done = zero_shot.edit(sd, image, "Igloo.", iterations=10, frames=3)
    assert done.iterations == [0, 5, 10]
    assert done.images.shape == (3, 3, 64, 64)
    torch.testing.assert_close(done.images, sd.decode(done.edit.trajectory[[0, 5, 10], 0]))
    assert done.image.size == (64, 64)
    torch.testing.assert_close(picture(done.image, 64), done.images[-1], rtol=0, atol=1 / 255)
    update, accumulated = done.maps(10)
    assert update.shape == accumulated.shape == (64, 64)
    torch.testing.assert_close(accumulated[::2, ::2], (done.edit.z - done.edit.trajectory[0]).norm(dim=1)[0])
    step = done.edit.trajectory[10] - done.edit.trajectory[9]
    torch.testing.assert_close(update[1::2, 1::2], step.norm(dim=1)[0])


def test_other_sizes_and_a_frame_for_every_iteration(sd, image):
    done = zero_shot.edit(sd, image, "Igloo.", iterations=2, frames=9, size=32)
    assert done.iterations == [0, 1, 2]
    assert done.edit.z.shape == (1, 4, 16, 16)


def test_sdedit_starts_at_the_strength(sd, image):
    weak, strong, full = zero_shot.sdedit(sd, image, "Igloo.", [0.25, 0.75, 1.0], steps=8)
    z = sd.encode(picture(image, 64)[None])
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    guided = sd.guided("Igloo.", 7.5)
    for start, got in ((250, weak), (750, strong), (875, full)):
        x_t = sd.schedule.add_noise(z, eps, start)
        expected = diffusion.sample_ddim(guided, sd.schedule, x_t, steps=8, start=start)
        torch.testing.assert_close(got[None], sd.decode(expected), rtol=1e-3, atol=1e-4)


def test_comparison_measures_each_picture(sd, image, tmp_path):
    clip = clips.load(str(tiny_diffusion.write_tiny_clip(tmp_path)))
    lpips = perceptual.lpips_features("squeeze", 64, random=True)
    done = zero_shot.edit(sd, image, "Igloo.", iterations=3)
    redrawn = zero_shot.sdedit(sd, image, "Igloo.", [0.25, 0.75], steps=4)
    found = zero_shot.compare(done, redrawn, "Igloo.", clip, lpips)
    model = perceptual.lpips_model("squeeze", random=True)
    expected = [model(done.input[None], x[None]).item() for x in (done.images[-1], *redrawn)]
    assert found["lpips"].tolist() == pytest.approx([0, *expected], rel=1e-3)
    similar = clips.similarity(clip, torch.stack([done.input, done.images[-1], *redrawn]), "Igloo.").tolist()
    assert found["clip"].tolist() == pytest.approx(similar, abs=1e-5)


@pytest.mark.parametrize(
    ("sdedit", "at", "reached"),
    [
        ([0.1, 0.3, 0.4], 0.1 + 0.3 / 2, True),  # half-way between the first two strengths
        ([0.3, 0.1, 0.4], 0.1 * 0.15 / 0.25, True),  # between the input and the first
        ([0.1, 0.19, 0.15], 0.4, False),  # never: at the highest
        ([0.01, 0.04, 0.02], 0.4, False),  # never, and all below the input: still at a strength, not at the input
    ],
)
def test_sdedit_is_matched_where_its_line_reaches_the_text(sdedit, at, reached):
    clip, lpips = torch.tensor([0.05, 0.2, *sdedit]), torch.tensor([0.0, 0.15, 0.1, 0.4, 0.5])
    found = zero_shot.matched(clip, lpips)
    assert found["reached"] == reached
    assert found["lpips_gap"].item() == pytest.approx(at - 0.15, abs=1e-6)
    assert found["clip_gain"].item() == pytest.approx(0.15)


def test_an_edit_that_leaves_the_text_is_matched_by_the_input():
    found = zero_shot.matched(torch.tensor([0.3, 0.2, 0.4]), torch.tensor([0.0, 0.15, 0.1]))
    assert found["lpips_gap"].item() == pytest.approx(-0.15)


def test_images_of_every_kind_are_prepared(tmp_path, capsys, image):
    half = Image.new("RGBA", (9, 7), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 9, 3))
    half.save(tmp_path / "alpha.png")
    x = picture(tmp_path / "alpha.png", 8)
    assert x.shape == (3, 8, 8)
    assert torch.equal(x[:, 0], torch.ones(3, 8))  # transparent: white
    torch.testing.assert_close(x[:, -1], torch.tensor([1.0, -1.0, -1.0])[:, None].expand(3, 8))
    assert "smaller than 8 x 8 and were enlarged" in capsys.readouterr().out
    assert torch.equal(picture(half, 8), x)
    deep = Image.fromarray((torch.arange(64).reshape(8, 8) * 1000).numpy().astype("uint16"))
    expected = (torch.arange(64).reshape(8, 8) * 1000 / 257).round() / 127.5 - 1
    torch.testing.assert_close(picture(deep, 8), expected.expand(3, -1, -1))
    for mode in ("1", "L", "LA", "P", "CMYK", "YCbCr"):
        assert picture(Image.new("RGB", (11, 13), "white").convert(mode), 8).min() > 0.95
    turned = Image.new("L", (16, 8))
    turned.paste(255, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = picture(tmp_path / "turned.png", 8)
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(picture(opened, 8), upright)
    assert upright[:, 0].min() == 1
    assert upright[:, -1].max() == -1
    assert torch.equal(picture(image, 64), image[:, :, 13:77])
    assert picture(image[:1], 32).shape == (3, 32, 32)


def test_images_that_do_not_do_are_refused(sd, image, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match=r"^image: torn\.png \(no image\)"):
        zero_shot.edit(sd, tmp_path / "torn.png", "Igloo.")
    with pytest.raises(UserError, match=r"^image: .*none\.png does not exist"):
        zero_shot.edit(sd, tmp_path / "none.png", "Igloo.")
    for wrong in (image[:2], image[None], torch.full_like(image, torch.nan), image[:, :0]):
        with pytest.raises(UserError, match="image: tensor"):
            zero_shot.edit(sd, wrong, "Igloo.")
    with pytest.raises(UserError, match=r"^image: NoneType given; give a file"):
        zero_shot.edit(sd, None, "Igloo.")


def test_an_array_is_edited_as_its_picture_is(sd):
    array = (torch.arange(64 * 64 * 3) % 251).reshape(64, 64, 3).byte().numpy()
    array_, picture_ = (zero_shot.edit(sd, x, "Igloo.", iterations=2).edit.z for x in (array, Image.fromarray(array)))
    assert torch.equal(array_, picture_)


def test_photographs_are_looked_for_before_anything_is_loaded(tmp_path, capsys):
    with pytest.raises(UserError, match=r"^images: folder .* holds no image; expected files such as \.png or \.jpg$"):
        zero_shot.photographs(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert zero_shot.photographs(tmp_path) == [tmp_path / "a.png"]
    assert capsys.readouterr().out == "left out: notes.txt (no image)\n"
    with pytest.raises(UserError, match=r"^images: .*b\.png does not exist"):
        zero_shot.photographs(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "x" * 80}, "prompt: 'x+...' has 82 tokens, of which two .* takes 77; shorten it"),
        ({"prompt": "Igloo.", "source_prompt": "y" * 76}, "prompt: 'y+...' has 78 tokens"),
        ({"prompt": "Igloo.", "size": 50}, "size: 50 given; .* multiples of 4 pixels, such as 48 or 52"),
        ({"prompt": "Igloo.", "size": 0}, "size: 0 given; .* such as 4 or 8"),
        ({"prompt": "Igloo.", "frames": 1}, "frames: 1 given"),
        ({"prompt": None}, "prompt: None given; give a text"),
        ({"prompt": "Igloo.", "source_prompt": None}, "prompt: None given; give a text, '' for the empty prompt"),
        ({"prompt": "Igloo.", "iteration": 5}, "iteration: no such option; did you mean 'iterations'"),
        ({"prompt": "Igloo.", "eta": "fast"}, "eta: 'fast' is not a step size"),
        ({"prompt": "Igloo.", "eta": 1e30, "iterations": 5}, "not finite from iteration .*lower eta or omega.*32 bit"),
    ],
)
def test_wrong_settings_are_refused(sd, image, options, message):
    with pytest.raises(UserError, match=message) as caught:
        zero_shot.edit(sd, image, **options)
    assert "\n" not in str(caught.value)


def test_wrong_lists_are_refused(sd, image):
    for wrong in ([], "Igloo."):
        with pytest.raises(UserError, match=r"prompts: .* given; give a list"):
            zero_shot.edit_many(sd, image, wrong)
    for wrong in (0.0, 1.5):
        with pytest.raises(UserError, match=r"strengths: .* given"):
            zero_shot.sdedit(sd, image, "Igloo.", [wrong])


def test_running_out_of_memory_names_the_settings(sd, image):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def broken(*_):
        raise RuntimeError("shapes do not match")

    message = "out of memory: lower size, frames or batch, or load with dtype float16 or bfloat16"
    with pytest.raises(UserError, match=message):
        zero_shot.edit(stable_diffusion.StableDiffusion(**(vars(sd) | {"unet": full})), image, "Igloo.")
    with pytest.raises(UserError, match=message):
        zero_shot.edit_many(stable_diffusion.StableDiffusion(**(vars(sd) | {"unet": full})), image, ["Igloo."])
    with pytest.raises(RuntimeError, match="shapes do not match"):
        zero_shot.edit(stable_diffusion.StableDiffusion(**(vars(sd) | {"unet": broken})), image, "Igloo.")
    with pytest.raises(UserError, match="out of memory: lower this"), stable_diffusion.enough_memory("this"):
        torch.empty(1 << 50)


def test_weights_that_are_not_there(monkeypatch, tmp_path):
    download = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path / "cache", endpoint=CLOSED)
    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(UserError) as caught:
        stable_diffusion.load(stable_diffusion.SD_15)
    line = str(caught.value)
    assert "\n" not in line
    for words in (
        "weights: ",
        "hub cannot be reached",
        "CreativeML OpenRAIL-M, 4 GB",
        "hf download",
        "--include '*.json'",
    ):
        assert words in line
    with pytest.raises(UserError, match=r"weights: folder .*/none does not exist; name a folder"):
        stable_diffusion.load(tmp_path / "none")
    with pytest.raises(
        UserError, match=r"weights: .* has no .*unet/config.json, .* Stable Diffusion in diffusers' layout"
    ):
        stable_diffusion.load(tmp_path)


def test_the_hubs_cache_is_enough(folders, monkeypatch, tmp_path):
    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("a" * 40)
    shutil.copytree(folders["epsilon"], snapshot)
    (tmp_path / "models--someone--small" / "refs").mkdir()
    (tmp_path / "models--someone--small" / "refs" / "main").write_text("a" * 40)
    download = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path, endpoint=CLOSED)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert stable_diffusion.load("someone/small").checked_size(None) == 64


def test_damaged_folders_are_refused(copied):
    def refused(message, **options):
        with pytest.raises(UserError, match=message) as caught:
            stable_diffusion.load(copied, **options)
        assert "\n" not in str(caught.value)

    refused("dtype: 'float8' given; one of float32, float16, bfloat16", dtype="float8")
    refused("mode: unknown 'fast'", mode="fast")
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused("truncated or damaged .*; weights: download or copy it again")
    weights.write_bytes(whole)
    (copied / "tokenizer" / "tokenizer.json").write_text("{")
    refused("truncated or damaged .*; weights: download or copy it again")
    (copied / "tokenizer" / "tokenizer.json").unlink()  # the library would make a tokenizer without words
    refused("weights: .* has no .*tokenizer/merges.txt")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "predicts 'sample'; name a model with epsilon",
        ),
        ("unet/config.json", {"layers_per_block": 2}, "; weights: download or copy it again"),
        ("text_encoder/config.json", {"num_hidden_layers": 3}, "text_encoder lacks .* of the weights"),
        ("vae/config.json", {"latent_channels": 8}, "weights have other shapes; weights: download"),
    ],
)
def test_other_models_are_refused(copied, file, change, message):
    config = json.loads((copied / file).read_text()) | change
    (copied / file).write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        stable_diffusion.load(copied)


def test_models_for_something_else_are_refused(copied):
    scheduler = copied / "scheduler" / "scheduler_config.json"
    kept = scheduler.read_text()
    scheduler.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    with pytest.raises(UserError, match="predicts 'FlowMatchEulerDiscreteScheduler'"):
        stable_diffusion.load(copied)
    scheduler.write_text(kept)
    inpainting = tiny_diffusion.tiny_pipeline().unet
    config = {name: value for name, value in inpainting.config.items() if not name.startswith("_")}
    type(inpainting)(**(config | {"in_channels": 9})).save_pretrained(copied / "unet")
    with pytest.raises(UserError, match="a U-Net of 9 channels for latents of 4"):
        stable_diffusion.load(copied)
    (copied / "text_encoder_2").mkdir()
    with pytest.raises(UserError, match="two text encoders; name Stable Diffusion 1 or 2"):
        stable_diffusion.load(copied)


def test_the_papers_prompts():
    assert len(zero_shot.PROMPTS) == len(set(zero_shot.PROMPTS)) == 16
    assert [row.target for row in zero_shot.PROMPTS if row.iterations == 400] == [
        "An elephant roller skating in the city."
    ]
    assert sum(row.source == "" for row in zero_shot.PROMPTS) == 6


def test_a_device_that_is_not_there_is_refused_before_gigabytes_are_read(tmp_path):
    with pytest.raises(UserError, match=r"^device: 'cuda' given, but this machine offers none"):
        stable_diffusion.load(tmp_path / "nothing is here", "cuda")


def test_files_of_a_variant_are_read(sd, folders, tmp_path):
    shutil.copytree(folders["epsilon"], tmp_path / "half")
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        path = tmp_path / "half" / f"{part}.safetensors"
        path.rename(path.with_suffix(".fp16.safetensors"))
    found = stable_diffusion.load(tmp_path / "half")
    assert torch.equal(found.embed("A cat."), sd.embed("A cat."))
    same = zip(found.unet.unet.parameters(), sd.unet.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
