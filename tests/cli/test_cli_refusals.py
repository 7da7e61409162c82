"""A user's mistake: one line on standard error, exit code 2, nothing touched."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from command_line import TINY, environment
from safetensors.torch import load_file

from softtrunc.cli import main
from softtrunc.runs.folder import Run

pytestmark = pytest.mark.usefixtures("unchecked")


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("softtrunc: ")
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three steps; tests that damage it work on copies."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    command = ["train", "digits-vp-nll-st", "--out", str(folder), *TINY]
    assert main([*command, "--set", "training.steps=3"]) == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "'train'"),
        (["train", "digits-vp-nls"], "did you mean 'digits-vp-nll'?"),
        (["train", "nowhere.yaml"], "no such file"),
        (["train", "digits-vp-nll", "--set", "truncaton.k=2"], "did you mean 'truncation'?"),
        (["train", "digits-vp-nll", "--set", "truncation.kk=2"], "did you mean 'k'?"),
        (["train", "digits-vp-nll", "--set", "sde.beta_mx=2"], "did you mean 'beta_max'?"),
        (["train", "digits-vp-nll", "--set", "sampling.sampler=huen"], "did you mean 'heun'?"),
        (["train", "digits-vp-nll", "--set", "sde.kind=vpp"], "did you mean 'vp'?"),
        (["train", "digits-vp-nll", "--set", "network.preset=tyny"], "'tiny'"),
        (["train", "digits-vp-nll", "--set", "network.options={dropuot: 0.1}"], "'dropout'"),
        (
            ["train", "digits-vp-nll", "--set", "truncation.k=-1"],
            ".k=-1: input should be",
        ),
        (
            [
                "train",
                "digits-vp-nll-st",
                "--set",
                "truncation.eps=0.5",
                "--set",
                "truncation.tau_max=0.1",
            ],
            "eps=0.5, tau_max=0.1: need eps < tau_max <= 1",
        ),
        (
            ["recipes", "show", "digits-vp-nll", "--set", "truncation.k=-.inf"],
            "truncation.k=-inf: ",
        ),
        (["recipes", "show", "digits-vp-nll", "--set", "truncation.k=1e400"], "infinity is .inf"),
        (
            ["recipes", "show", "digits-vp-nll", "--set", f"training.seed={2**64}"],
            "training.seed=18",
        ),
        (["sample", "runs/one", "--seed", str(2**64)], "--seed"),
        (["train", "digits-vp-nll", "--set", "truncation.k"], "write key=value"),
        (["train", "digits-vp-nll", "--set", "training.steps=many"], "training.steps='many'"),
        (
            ["train", "digits-vp-nll", "--set", "training.micro_batch_size=48"],
            "micro_batch_size=48 does not divide the 128 examples",
        ),
        (
            [
                "train",
                "digits-vp-nll",
                "--set",
                "objective.weighting=mixed",
                "--set",
                "training.batch_size=7",
            ],
            "7 has no two halves",
        ),
        (["train", "digits-vp-nll", "--data", "nowhere"], "nowhere: no such data"),
        (
            [
                "train",
                "digits-vp-nll",
                "--set",
                "objective.weighting=mixed",
                "--set",
                "training.batch_size=6",
                "--set",
                "training.micro_batch_size=3",
            ],
            "3 has no two halves",
        ),
        (["train", "digits-vp-nll", "--set", "sampling.t_end=5"], "less than 1"),
        (["train", "digits-vp-nll", "--set", "training.steps=true"], "training: steps is true or"),
        (["train", "digits-vp-nll", "--set", "name=../../x"], "name='../../x'"),
        (["train", "digits-vp-nll", "--out", "/dev/null/x"], "/dev/null/x"),
        (["train", "digits-vp-nll", "--data", 'it\'s "here"'], "no such data"),
        (["sample", "nowhere"], "no run here"),
        (["evaluate", "nowhere"], "no run here"),
        (["report", "nowhere"], "nowhere"),
        (["recipes", "show", "digits-vp-nlll"], "did you mean 'digits-vp-nll'?"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_halved(capsys, tmp_path):
    from PIL import Image

    for i in range(12):
        Image.new("L", (9, 9), i).save(tmp_path / f"{i}.png")
    line = refused(
        capsys, "train", "digits-vp-nll", "--data", str(tmp_path), "--out", str(tmp_path / "out")
    )
    assert "9" in line
    assert "multiple" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_run_is_refused_and_untouched(capsys, run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    line = refused(capsys, "train", "digits-vp-nll-st", "--out", str(run), *TINY)
    assert "holds a run already: add --resume" in line
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}


def test_resume_with_another_recipe_says_what_differs(capsys, run):
    line = refused(
        capsys,
        "train",
        "digits-vp-nll-st",
        "--out",
        str(run),
        "--resume",
        *TINY,
        "--set",
        "training.steps=3",
        "--set",
        "truncation.k=2",
    )
    assert "truncation.k was 1.0, is 2.0" in line


def test_resume_with_other_data_is_refused(capsys, run, tmp_path):
    from PIL import Image

    for i in range(30):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    line = refused(
        capsys,
        "train",
        "digits-vp-nll-st",
        "--out",
        str(run),
        "--resume",
        *TINY,
        "--set",
        "training.steps=3",
        "--data",
        str(tmp_path),
    )
    assert "--resume with other data: digits with 1437 images" in line


def test_resume_needs_a_run_or_an_empty_folder(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    command = ["train", "digits-vp-nll-st", "--out", str(tmp_path), "--resume", *TINY]
    assert "is not empty" in refused(capsys, *command)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_resume_with_fewer_steps_than_done_is_refused(capsys, run):
    command = ["train", "digits-vp-nll-st", "--out", str(run), "--resume", *TINY]
    line = refused(capsys, *command, "--set", "training.steps=2")
    assert "already at step 3" in line
    assert "steps: 3" in (run / "recipe.yaml").read_text()


def test_a_trained_model_cannot_be_reinterpreted(capsys, run):
    line = refused(capsys, "evaluate", str(run), "--bpd", "--set", "sde.beta_max=5")
    assert "sde.beta_max=5.0: the model was trained with 20.0" in line
    assert "did you mean 'heun'" in refused(capsys, "sample", str(run), "--sampler", "huen")


def test_a_missing_extractor_is_refused_before_anything_is_measured(capsys, run):
    line = refused(capsys, "evaluate", str(run), "--set", "evaluation.features=nowhere.pt")
    assert "nowhere.pt: no such file" in line


def test_a_damaged_metrics_line_is_named(capsys, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text("{}\n" + text)
    command = ["train", "digits-vp-nll-st", "--out", str(copy), "--resume", *TINY]
    line = refused(capsys, *command, "--set", "training.steps=3")
    assert "metrics.jsonl: line 1 is damaged" in line


def test_a_group_without_a_verb_prints_its_help(capsys):
    assert main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) > 5


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_damaged_checkpoint_is_named(capsys, run, tmp_path, command):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "checkpoints" / "step-00000003" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "ema.safetensors: cut short or edited" in refused(capsys, command, str(copy))
    assert not (copy / "evaluation.json").exists()


def test_a_damaged_recipe_is_named(capsys, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text[: len(text) // 3])
    assert "recipe.yaml" in refused(capsys, "sample", str(copy))


def test_bits_of_a_model_without_dequantisation_are_called_loose(capsys, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(text.replace("dequantize: true", "dequantize: false"))
    settings = ["--limit", "1", "--set", "evaluation.figures=[nelbo]"]
    assert main(["evaluate", str(copy), "--bpd", *settings]) == 0
    assert "bounds all the same, but loose ones" in capsys.readouterr().err


def test_help_answers_without_torch():
    script = (
        "import sys, softtrunc.cli\n"
        "code = softtrunc.cli.main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate', 'pydantic'}\n"
        "assert code == 0 and not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "train", "sample", "evaluate", "report", "recipes"):
        assert verb in done.stdout


def test_a_run_draws_evaluates_and_reports(capsys, run, tmp_path):
    out = tmp_path / "drawn.npz"
    assert main(["sample", str(run), "-n", "5", "--out", str(out), "--steps", "2"]) == 0
    import numpy as np

    first = np.load(out)["images"]
    assert first.shape == (5, 8, 8, 1)
    pngs = tmp_path / "pngs"
    options = ["--sampler", "heun", "--steps", "2", "--batch-size", "2"]
    assert main(["sample", str(run), "-n", "3", "--out", str(pngs), *options]) == 0
    assert [p.name for p in sorted(pngs.iterdir())] == [f"{i:06d}.png" for i in range(3)]
    settings = ["--set", "evaluation.rtol=1e-2", "--set", "evaluation.atol=1e-2"]
    command = ["evaluate", str(run), "-n", "80", "--limit", "6", "--set", "sampling.steps=2"]
    assert main([*command, *settings, "--set", "evaluation.nelbo_draws=2"]) == 0
    content = json.loads((run / "evaluation.json").read_text())
    keys = [figure["key"] for figure in content["figures"]]
    distances = ["frechet_distance", "frechet_distance_test"]
    assert keys == ["nll_residual", "nll", "nelbo", *distances]
    assert content["figures"][0]["protocol"]["n"] == 6
    assert content["figures"][3]["name"] == "FD(digits-mlp)"
    capsys.readouterr()
    # what was measured before stays
    assert main(["evaluate", str(run), "--fid", "-n", "80", "--set", "sampling.steps=2"]) == 0
    content = json.loads((run / "evaluation.json").read_text())
    assert sorted(figure["key"] for figure in content["figures"]) == sorted(keys)
    # distances of another name stand beside them
    content["figures"][3]["name"] = "FD(other)"
    (run / "evaluation.json").write_text(json.dumps(content))
    assert main(["evaluate", str(run), "--fid", "-n", "80", "--set", "sampling.steps=2"]) == 0
    content = json.loads((run / "evaluation.json").read_text())
    names = [f["name"] for f in content["figures"] if f["key"] == "frechet_distance"]
    assert sorted(names) == ["FD(digits-mlp)", "FD(other)"]
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert "<html" in (tmp_path / "report.html").read_text()


def test_samples_do_not_depend_on_their_batch(run, tmp_path):
    import numpy as np

    images = []
    for batch in ("7", "3"):
        out = tmp_path / f"{batch}.npz"
        command = ["sample", str(run), "-n", "7", "--batch-size", batch, "--out", str(out)]
        assert main([*command, "--steps", "4"]) == 0
        images.append(np.load(out)["images"].astype(int))
    # equal but for a level where rounding falls the other way
    assert np.abs(images[0] - images[1]).max() <= 16


def test_recipes_list_and_show(capsys):
    assert main(["recipes", "list"]) == 0
    listed = capsys.readouterr().out
    assert "digits-vp-nll-st" in listed
    assert main(["recipes", "show", "digits-vp-nll-st", "--set", "truncation.k=inf"]) == 0
    assert "k: .inf" in capsys.readouterr().out


def test_dry_run_prints_the_plan_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["softtrunc.cli.train"], "_MEASURED", 0.01)
    assert main(["train", "digits-vp-nll-st", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("parameters", "steps", "activations", "MFLOP an image", "on this CPU"):
        assert words in printed
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_far_too_large_for_its_weights_is_refused_before_it_is_built(
    capsys, run, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "recipe.yaml").read_text()
    assert "base_channels: 8" in text
    (copy / "recipe.yaml").write_text(text.replace("base_channels: 8", "base_channels: 80000"))
    told = refused(capsys, "sample", str(copy), "-n", "2", "--out", str(tmp_path / "x.npz"))
    assert "does not fit the network" in told


@pytest.fixture
def another_precision():
    """accelerate's own is one for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def compiled(monkeypatch):
    """What torch.compile was given; it makes code without a compiler of C++."""
    asked = []

    def compile(function, real=torch.compile, **_):
        asked.append(function)
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)
    yield asked
    torch._dynamo.reset()


def test_a_compiled_training_goes_on_without_and_with(run, tmp_path, compiled):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    command = ["train", "digits-vp-nll-st", "--out", str(copy), "--resume", *TINY]
    step = max(int(path.name.removeprefix("step-")) for path in (copy / "checkpoints").iterdir())
    for more, word in enumerate(("true", "false", "true"), start=1):
        sets = ["--set", f"training.compile={word}", "--steps", str(step + more)]
        assert main([*command, *sets]) == 0
    assert len(compiled) == 2
    changed = [each["changed"] for each in Run(copy).provenance()["resumed"]]
    found = [change["training.compile"]["to"] for change in changed]
    assert found == [True, False, True]
    weights = [
        load_file(copy / "checkpoints" / f"step-{step + more:08d}" / f"{name}.safetensors")
        for more in (1, 2, 3)
        for name in ("model", "ema", "optimizer")
    ]
    assert not any("_orig_mod" in key for file in weights for key in file)
    assert weights[0].keys() == weights[3].keys() == weights[6].keys()


@pytest.mark.usefixtures("another_precision")
def test_resume_may_change_how_it_is_computed_and_says_so(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    command = ["train", "digits-vp-nll-st", "--out", str(copy), "--resume", *TINY]
    changes = ["training.precision=bf16", "training.timeout=60", "training.micro_batch_size=8"]
    changes += ["training.tf32=false", "training.channels_last=true"]
    changes.append("network.options.checkpoint_activations=true")
    step = max(path.name for path in (copy / "checkpoints").iterdir())
    steps = int(step.removeprefix("step-")) + 1
    sets = [word for change in changes for word in ("--set", change)]
    assert main([*command, *sets, "--steps", str(steps)]) == 0
    provenance = Run(copy).provenance()
    (resumed,) = provenance["resumed"]
    assert resumed["step"] == steps - 1
    assert resumed["processes"] == 1
    assert {key: change["to"] for key, change in resumed["changed"].items()} == {
        "network.options.checkpoint_activations": True,
        "training.channels_last": True,
        "training.micro_batch_size": 8,
        "training.precision": "bf16",
        "training.steps": steps,
        "training.tf32": False,
        "training.timeout": 60.0,
    }
    assert provenance["created"] == Run(run).provenance()["created"]
    assert main([*command, *sets, "--steps", str(steps)]) == 0
    assert Run(copy).provenance()["resumed"][1]["changed"] == {}
