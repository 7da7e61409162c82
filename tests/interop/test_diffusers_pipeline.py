"""Pipelines that diffusers saved, against diffusers itself."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from pipelines import SCHEDULES, diffusers, pipeline, unet
from safetensors.torch import load_file, save_file

from softtrunc import ScoreModel, TabulatedVPSDE
from softtrunc.interop import DiffusersUNet, from_diffusers
from softtrunc.samplers import DPMSolver
from softtrunc.sde import random_normal

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of all kinds of pipelines."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name, schedule in SCHEDULES.items():
        pipeline(**schedule).save_pretrained(folder / name)
    return folder


def their_noise(made, x, steps):
    """What diffusers itself takes for the noise, by its conversions of predictions."""
    out = made.unet(x, steps).sample.double()
    a = made.scheduler.alphas_cumprod[steps].double()[:, None, None, None]
    kind = made.scheduler.config.prediction_type
    if kind == "epsilon":
        return out
    if kind == "v_prediction":
        return a.sqrt() * out + (1 - a).sqrt() * x.double()
    return (x.double() - a.sqrt() * out) / (1 - a).sqrt()


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_noise_is_theirs_at_every_step(saved, name):
    made = diffusers.DDPMPipeline.from_pretrained(saved / name)
    model = from_diffusers(saved / name)
    n = len(made.scheduler.betas)
    assert isinstance(model.sde, TabulatedVPSDE)
    assert model.sde.steps == n
    steps = torch.arange(n)
    x = random_normal((n, 3, 8, 8), generator=seeded(0))
    ours = model.noise(x, (steps.double() + 1) / n)
    torch.testing.assert_close(ours.double(), their_noise(made, x, steps), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["epsilon", "velocity", "sample"])
def test_a_ddim_step_is_theirs(saved, name):
    """Down 20 steps of 50 and to the image, from the same noise."""
    made = diffusers.DDPMPipeline.from_pretrained(saved / name)
    scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(20)
    model = from_diffusers(saved / name)
    x = random_normal((2, 3, 8, 8), generator=seeded(1)).double()
    sde = model.sde
    for step in scheduler.timesteps.tolist():
        before = step - 50
        t = torch.tensor((step + 1) / 1000, dtype=torch.float64)
        out = made.unet(x.float(), step).sample.double()
        theirs = scheduler.step(out, step, x).prev_sample
        denoised, noise = model.denoise(x, t), model.noise(x, t)
        if before >= 0:
            alpha, sigma = sde.marginal(torch.tensor((before + 1) / 1000, dtype=torch.float64))
            ours = alpha * denoised + sigma * noise
        else:  # their last step: to the image at the end of their table
            ours = denoised
        scale = theirs.abs().max()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=float(2e-5 * scale))
        x = theirs / scale.clamp(min=1)


@torch.no_grad()
def test_our_solver_of_order_one_is_their_ddim(saved):
    """Between the times of one of our steps, theirs with the same steps of the schedule."""
    made = diffusers.DDPMPipeline.from_pretrained(saved / "epsilon")
    model = from_diffusers(saved / "epsilon")
    x = random_normal((2, 3, 8, 8), generator=seeded(2), dtype=torch.float64)
    ours = DPMSolver(steps=1, order=1, t_end=0.5, denoise_final=False).sample(
        model, x.shape, x_init=x, dtype=torch.float64
    )
    scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(2)  # steps of 500: from 999 to 499
    out = made.unet(x.float(), 999).sample.double()
    theirs = scheduler.step(out, 999, x).prev_sample
    torch.testing.assert_close(ours.x, theirs, rtol=1e-6, atol=1e-5)


def test_what_it_says_of_itself(saved):
    model = from_diffusers(saved / "velocity")
    assert (model.prediction, model.conditioning) == ("velocity", "timestep")
    assert model.value_range == (-1.0, 1.0)
    assert not model.training
    words = ("scaled_linear", 1000, 0.00085, 0.012)
    assert model.sde == TabulatedVPSDE.from_schedule(*words, dtype=torch.float32)
    table = diffusers.DDPMPipeline.from_pretrained(saved / "velocity").scheduler.alphas_cumprod
    assert model.sde == TabulatedVPSDE(table)
    # A pipeline in memory shares its network.
    made = pipeline(**SCHEDULES["sample"])
    loaded = from_diffusers(made)
    assert loaded.network is made.unet
    assert loaded.prediction == "sample"


def test_older_files_are_read(saved, tmp_path):
    """Beside the index, as a pickle of tensors, and with the names of old attention layers."""
    source = saved / "epsilon"
    for file in (source / "model_index.json", source / "unet/config.json"):
        shutil.copy(file, tmp_path)
    shutil.copy(source / "scheduler/scheduler_config.json", tmp_path)
    weights = load_file(source / "unet/diffusion_pytorch_model.safetensors")
    older = {}
    for name, tensor in weights.items():
        if ".attentions." in name:
            for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."),
                             (".to_out.0.", ".proj_attn.")):  # fmt: skip
                name = name.replace(new, old)
        older[name] = tensor
    assert older.keys() != weights.keys()
    torch.save(older, tmp_path / "diffusion_pytorch_model.bin")
    ours = from_diffusers(tmp_path).network.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in weights.items())


@torch.no_grad()
def test_it_is_saved_and_read_back_as_ours(saved, tmp_path):
    model = from_diffusers(saved / "velocity")
    model.save_pretrained(tmp_path)
    again = ScoreModel.from_pretrained(tmp_path)
    assert type(again.network) is diffusers.UNet2DModel
    assert (again.sde, again.prediction, again.conditioning) == (
        model.sde,
        "velocity",
        "timestep",
    )
    x, t = random_normal((2, 3, 8, 8), generator=seeded(3)), torch.tensor([0.2, 0.7])
    assert torch.equal(again.score(x, t), model.score(x, t))


@torch.no_grad()
def test_out_again_it_is_the_pipeline_that_came_in(saved):
    """Their betas come back, and the noise at their steps."""
    made = diffusers.DDPMPipeline.from_pretrained(saved / "epsilon")
    adapter = DiffusersUNet(from_diffusers(saved / "epsilon"))
    betas = torch.tensor(adapter.scheduler_config["trained_betas"])
    torch.testing.assert_close(betas, made.scheduler.betas, rtol=1e-3, atol=0)
    x = random_normal((4, 3, 8, 8), generator=seeded(4))
    for step in (0, 3, 500, 999):
        torch.testing.assert_close(
            adapter(x, step).sample, made.unet(x, step).sample, rtol=0, atol=2e-4
        )


def test_a_network_of_classes_wants_them(tmp_path):
    pipeline(unet(num_class_embeds=3)).save_pretrained(tmp_path)
    model = from_diffusers(tmp_path)
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        model.score(x, torch.tensor(0.5))


def edit(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "DDPMScheduler has beta_schedule = 'sigmoid': only schedules of betas",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "KarrasVeScheduler", "beta_schedule": None},
            "KarrasVeScheduler has no beta_schedule",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "flow"},
            "prediction_type = 'flow' is unknown: only epsilon, v_prediction, sample",
        ),
        (
            "scheduler/scheduler_config.json",
            {"variance_type": "learned_range"},
            "a learned variance doubles",
        ),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "leaves no signal at the last step",
        ),
        ("scheduler/scheduler_config.json", {"beta_end": 2.0}, "betas must lie in"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel"),
        ("unet/config.json", {"out_channels": 6}, r"\(a learned variance\?\)"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "is 'fourier': only"),
        ("unet/config.json", {"block_out_chanels": [8]}, "did you mean 'block_out_channels'"),
        ("unet/config.json", {"block_out_channels": [8, 24]}, "does not fit the network"),
        ("unet/config.json", {"down_block_types": ["Down", "Down"]}, "UNet2DModel|does not exist"),
        (
            "model_index.json",
            {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]},
            "LDMPipeline has vqvae beside its unet and scheduler",
        ),
        (
            "model_index.json",
            {"unet": ["softtrunc.interop.diffusers_unet", "DiffusersUNet"]},
            "a model of softtrunc .* ScoreModel.from_pretrained",
        ),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(saved, tmp_path, file, changes, said):
    folder = tmp_path / "theirs"
    shutil.copytree(saved / "epsilon", folder)
    edit(folder, file, **changes)
    with pytest.raises(ValueError, match=said) as caught:
        from_diffusers(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(saved, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(saved / "epsilon", folder)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"conv_in\.bias holds 1 values that are not finite"):
        from_diffusers(folder)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        from_diffusers(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model.*no such file"):
        from_diffusers(folder)
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(ValueError, match=r"refused|no file of tensors"):
        from_diffusers(folder)
    with pytest.raises(ValueError, match="has no unet and scheduler"):
        from_diffusers(object())
