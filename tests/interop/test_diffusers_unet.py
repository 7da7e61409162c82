"""Our models under diffusers' schedulers and pipelines, against our own samplers."""

from __future__ import annotations

import json

import pytest
import torch

from softtrunc import VESDE, VPSDE, ReciprocalVESDE, ScoreModel, SubVPSDE
from softtrunc.interop import DiffusersUNet, load_score_sde_checkpoint
from softtrunc.networks import ScoreUNet, preset
from softtrunc.samplers import DPMSolver, ProbabilityFlow

diffusers = pytest.importorskip("diffusers", reason="diffusers is an extra: softtrunc[hub]")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (3, 2, 4, 4)
SDES = [VPSDE(), SubVPSDE(), VESDE(0.01, 30.0), ReciprocalVESDE(1e-3, 30.0)]
RANGES = {VPSDE: (-1.0, 1.0), SubVPSDE: (-1.0, 1.0), VESDE: (0.0, 1.0), ReciprocalVESDE: (0.0, 1.0)}


class Mixture:
    """Images that are one of two constants plus noise, with the exact score."""

    def __init__(self, sde, value_range):
        low, high = value_range
        self.sde = sde
        width = high - low
        self.means = torch.tensor([low + 0.2 * width, low + 0.7 * width], dtype=torch.float64)
        self.std = 0.1 * width

    def score(self, x, t):
        alpha, sigma = (v.double()[:, None, None, None, None] for v in self.sde.marginal(t))
        spread = (alpha * self.std).square() + sigma.square()
        away = alpha * self.means.view(1, 2, 1, 1, 1) - x.double()[:, None]
        weight = (-0.5 * (away.square() / spread).flatten(2).sum(2)).softmax(1)
        return ((away / spread) * weight[:, :, None, None, None]).sum(1).to(x.dtype)


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def adapter(sde, value_range=None) -> DiffusersUNet:
    value_range = value_range or RANGES[type(sde)]
    model = Mixture(sde, value_range)
    return DiffusersUNet(model, image_size=(4, 4), channels=2, value_range=value_range)


def drive(scheduler, unet, noise, steps):
    """The loop of diffusers' documentation."""
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def ours(unet, noise, sampler):
    """Our own sampler from the same noise, in diffusers' range of [-1, 1]."""
    model = unet.model
    low, high = RANGES[type(model.sde)]
    mean, half = 0.5 * (low + high), 0.5 * (high - low)
    # Where their schedule begins: the state with the noise that theirs has there.
    alpha = model.sde.marginal(torch.tensor(1.0, dtype=torch.float64)).alpha
    ratio = unet.ratios[-1]
    x = alpha * (mean + half * (1 + ratio**2).sqrt() * noise.double())
    drawn = sampler.sample(model, SHAPE, x_init=x.float())
    return (drawn.x - mean) / half


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_it_predicts_the_noise_in_the_states_of_diffusers(sde):
    """Against the model's own score, at each of the scheduler's noise levels."""
    unet = adapter(sde)
    scheduler = diffusers.DDPMScheduler.from_config(unet.scheduler_config)
    low, high = RANGES[type(sde)]
    for step in (0, 1, 10, 500, 998, 999):
        a = scheduler.alphas_cumprod[step].double()
        clean = 2 * (torch.rand(SHAPE, dtype=torch.float64) - 0.5)
        noise = torch.randn(SHAPE, dtype=torch.float64)
        y = scheduler.add_noise(clean, noise, torch.tensor([step] * 3))
        ratio = ((1 - a) / a).sqrt() * 0.5 * (high - low)
        t = sde.time_of_log_snr(-2 * ratio.log()).expand(3)
        alpha, sigma = (v[:, None, None, None] for v in sde.marginal(t))
        x0 = low + 0.5 * (high - low) * (clean + 1)
        expected = -sigma * unet.model.score(alpha * x0 + sigma * noise, t)
        got = unet(y, step).sample
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
        assert torch.equal(got, unet(y, torch.tensor([step] * 3), return_dict=False)[0])


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_schedulers_arrive_where_our_sampler_does(sde, name):
    """From the same noise, with differences that the solvers' own errors explain.

    The truth is the flow at tight tolerance; the error of theirs is at most what its order leaves
    at 100 steps and falls with the steps, so that a shifted or mislabelled timestep would show.
    """
    unet, noise = adapter(sde), start()
    truth = ours(unet, noise, ProbabilityFlow(rtol=1e-6, atol=1e-6))
    mine = ours(unet, noise, DPMSolver(steps=100, order=2))
    scheduler = getattr(diffusers, name)
    errors = []
    for steps in (25, 100):
        config = unet.scheduler_config
        theirs = drive(scheduler.from_config(config), unet, noise, steps)
        errors.append(float((theirs - truth).abs().max()))
    own = float((mine - truth).abs().max())
    assert own < 0.02
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < (0.05 if name.startswith("DPM") else 0.15)
    assert float((theirs - mine).abs().max()) <= errors[1] + own + 1e-6


def test_timesteps_between_whole_numbers_are_interpolated():
    unet = adapter(VPSDE())
    y = start(1)
    below, between, above = (unet(y, t).sample for t in (700, 700.5, 701))
    torch.testing.assert_close(between, 0.5 * (below + above), rtol=0, atol=1e-3)
    assert not torch.equal(between, below)


def network_model(sde) -> ScoreModel:
    config = preset("tiny", image_size=8, channels=3)
    return ScoreModel(ScoreUNet(config, generator=torch.Generator().manual_seed(0)), sde).eval()


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["VP", "VE"])
def test_pipelines_of_diffusers_take_it(sde, tmp_path):
    network_model(sde).save_pretrained(tmp_path)
    unet = DiffusersUNet.from_pretrained(str(tmp_path))
    scheduler = diffusers.DDIMScheduler.from_config(unet.scheduler_config, clip_sample=False)
    pipeline = diffusers.DDIMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(
        batch_size=2,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    assert out.images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize("name", ["ddpmpp_vp_small", "ncsnpp_ve_small"])
def test_a_public_network_under_both_libraries(shared, name):
    """Same seeds: the difference to our sampler is within the solvers' errors, and falls."""
    folder = shared / "golden"
    model = load_score_sde_checkpoint(folder / f"{name}.pth", folder / f"{name}.json")
    unet = DiffusersUNet(model)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    low, high = model.value_range
    mean, half = 0.5 * (low + high), 0.5 * (high - low)
    alpha = float(model.sde.marginal(torch.tensor(1.0)).alpha)
    x = alpha * (mean + half * float((1 + unet.ratios[-1] ** 2).sqrt()) * noise)

    def own(steps):
        drawn = DPMSolver(steps=steps, order=2).sample(model, noise.shape, x_init=x).x
        return (drawn - mean) / half

    @torch.no_grad()
    def theirs(name, steps):
        scheduler = getattr(diffusers, name).from_config(unet.scheduler_config)
        return drive(scheduler, unet, noise, steps)

    truth = own(200)
    scale = float(truth.std())
    for scheduler, bound in (
        ("DPMSolverMultistepScheduler", 0.02),
        ("EulerDiscreteScheduler", 0.1),
    ):
        coarse, fine = (float((theirs(scheduler, n) - truth).std()) / scale for n in (25, 75))
        assert fine < bound
        assert fine < 0.7 * coarse


def images(pipeline, steps=4):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = pipeline(
        batch_size=2, num_inference_steps=steps, generator=generator, output_type="np"
    ).images
    return torch.from_numpy(out)


def ddim(unet):
    return diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler.from_config(unet.scheduler_config))


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_pipeline_that_diffusers_saves_keeps_the_model(sde, tmp_path):
    """Saved by them and read by them and by us; the images are the same."""
    made = ddim(DiffusersUNet(network_model(sde), train_timesteps=200))
    made.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["softtrunc.interop.diffusers_unet", "DiffusersUNet"]
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(again.unet) is DiffusersUNet
    assert again.unet.config == made.unet.config
    assert again.unet.config.train_timesteps == len(again.unet.betas) == 200
    assert torch.equal(images(made), images(again))
    ours = ScoreModel.from_pretrained(tmp_path)
    assert ours.sde == sde
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([0.3, 0.8])
    assert torch.equal(ours.score(x, t), made.unet.model.score(x, t))
    # And once more, from what was loaded.
    again.save_pretrained(tmp_path / "twice")
    assert ScoreModel.from_pretrained(tmp_path / "twice").sde == sde


def test_it_is_a_model_of_theirs(tmp_path):
    unet = DiffusersUNet(network_model(VPSDE()))
    assert isinstance(unet, diffusers.ModelMixin)
    assert isinstance(unet, diffusers.ConfigMixin)
    assert unet.config.sample_size == 8
    assert unet.num_parameters() == sum(p.numel() for p in unet.parameters())
    unet.save_pretrained(tmp_path)
    again = DiffusersUNet.from_pretrained(tmp_path, torch_dtype=torch.float16, device_map="cpu")
    assert {p.dtype for p in again.model.parameters()} == {torch.float16}
    # The noise levels are not the network's to round.
    again.to(torch.float16)
    assert again.ratios.dtype == torch.float32
    assert (again.dtype, again.device) == (torch.float32, torch.device("cpu"))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    difference = again(x, 500).sample - unet(x, 500).sample
    assert float(difference.detach().abs().max()) < 0.05


def test_a_model_of_their_network_keeps_it(tmp_path):
    """In by from_diffusers, out as a pipeline of ours: the classes go through as well."""
    from pipelines import pipeline, unet

    from softtrunc.interop import from_diffusers

    model = from_diffusers(pipeline(unet(num_class_embeds=3)))
    ddim(DiffusersUNet(model)).save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path).unet
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        ours = again(x, 300, class_labels=labels).sample
        theirs = model.network(x, 300, class_labels=labels).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_what_cannot_be_saved_or_spread():
    with pytest.raises(ValueError, match="a Mixture has no form on disk"):
        adapter(VPSDE()).save_pretrained("nowhere")
    with pytest.raises(ValueError, match="device_map='auto': the model stays whole"):
        DiffusersUNet.from_pretrained("fashion16", device_map="auto")


def test_what_it_refuses():
    with pytest.raises(ValueError, match="does not say its image_size and channels"):
        DiffusersUNet(Mixture(VPSDE(), (-1.0, 1.0)))
    with pytest.raises(ValueError, match="train_timesteps=1: need at least 2"):
        DiffusersUNet(network_model(VPSDE()), train_timesteps=1)
    with pytest.raises(ValueError, match="knows no classes"):
        DiffusersUNet(network_model(VPSDE()))(
            torch.zeros(1, 3, 8, 8), 5, class_labels=torch.ones(1)
        )


def test_every_way_to_upload_tells_how_many_noise_levels_there_are(tmp_path, monkeypatch):
    sent = []

    def upload(folder, repo_id, **_):
        sent.append((repo_id, {path.name: path.read_bytes() for path in folder.iterdir()}))
        return "address"

    monkeypatch.setattr("softtrunc.interop.diffusers_unet.upload_folder", upload)
    unet = DiffusersUNet(network_model(VPSDE()), train_timesteps=200)
    unet.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="someone/model")
    unet.push_to_hub("someone/model")
    written = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert sent == [("someone/model", written)] * 2
    assert DiffusersUNet.from_pretrained(tmp_path / "saved").config.train_timesteps == 200
