import math

import pytest
import torch

from softtrunc import (
    VESDE,
    VPSDE,
    HardTruncation,
    ImportanceTimes,
    MixedLoss,
    PowerPrior,
    PriorWeight,
    ReciprocalVESDE,
    SubVPSDE,
    UniformTimes,
)
from softtrunc.jobs.plan import describe
from softtrunc.recipes import Recipe, UserError, dump_recipe, load_recipe, recipe_names
from softtrunc.recipes.build import (
    build_model,
    build_objective,
    build_prior,
    build_sampler,
    build_sde,
    build_training,
)
from softtrunc.recipes.load import override_recipe
from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_and_survives_its_own_yaml(name, tmp_path):
    recipe = load_recipe(name)
    build_objective(recipe).draw(recipe.training.batch_size)
    build_sampler(recipe.sampling, build_sde(recipe))
    build_training(recipe)
    path = tmp_path / f"{name}.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    assert recipe.description


@pytest.mark.parametrize(
    ("name", "k", "weighting", "times", "average"),
    [
        ("digits-vp-nll", math.inf, "likelihood", "importance", False),
        ("digits-vp-nll-st", 1.0, "likelihood", "importance", False),
        ("digits-vp-fid", math.inf, "variance", "uniform", True),
        ("digits-vp-fid-st", 1.0, "variance", "uniform", True),
        ("folder-32", 0.8, "likelihood", "importance", False),
        ("folder-64", 0.8, "likelihood", "importance", False),
        ("folder-256", 0.8, "likelihood", "importance", False),
    ],
)
def test_resolved_values(name, k, weighting, times, average):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert (recipe.truncation.k, recipe.truncation.eps) == (k, 1e-5)
    objective = recipe.objective
    assert (objective.weighting, objective.times) == (weighting, times)
    assert (objective.average, objective.stratified) == (average, True)
    assert objective.expected == name.startswith("folder")


def test_the_demo_models_differ_in_truncation_alone():
    hard, soft = (load_recipe(n).model_dump() for n in ("digits-vp-nll", "digits-vp-nll-st"))
    differing = [key for key in hard if hard[key] != soft[key]]
    assert differing == ["name", "description", "truncation"]
    assert {k for k in hard["truncation"] if hard["truncation"][k] != soft["truncation"][k]} == {
        "k"
    }


@pytest.mark.parametrize("text", ["1e-5", "1.0e-05", "0.00001", "1E-5"])
def test_numbers_in_yaml_are_numbers(text):
    assert load_recipe("digits-vp-nll", [f"truncation.eps={text}"]).truncation.eps == 1e-5


def test_another_kind_replaces_the_whole_section():
    recipe = load_recipe("digits-vp-nll", ["sde.kind=ve", "sde.sigma_max=7"])
    assert recipe.sde.model_dump() == {"kind": "ve", "sigma_min": 0.01, "sigma_max": 7.0}
    recipe = override_recipe(load_recipe("digits-vp-nll"), ["sampling.sampler=pc"], "here")
    assert recipe.sampling.steps == 1000


def test_files_extend_recipes_and_go_in_no_circle(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: digits-vp-nll-st\ntruncation: {k: 2}\n")
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.truncation.k, recipe.data.source) == ("mine", 2.0, "digits")
    path.write_text("extends: digits-vp-nll-sst\n")
    with pytest.raises(UserError, match="did you mean 'digits-vp-nll-st'"):
        load_recipe(str(path))
    path.write_text("a: [1\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(str(path))
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load_recipe(str(path))


def test_recipes_are_frozen():
    recipe = load_recipe("digits-vp-nll")
    with pytest.raises(ValueError, match="frozen"):
        recipe.truncation.k = 3.0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sde.kind=vp", VPSDE()),
        ("sde.kind=subvp", SubVPSDE()),
        ("sde={kind: ve, sigma_max: 90}", VESDE(0.01, 90.0)),
        ("sde={kind: rve, sigma_max: 150}", ReciprocalVESDE(1e-3, 150.0)),
    ],
)
def test_sdes(override, expected):
    assert build_sde(load_recipe("digits-vp-nll", [override])) == expected


def test_priors():
    assert build_prior(load_recipe("digits-vp-nll")) == HardTruncation(1e-5)
    recipe = load_recipe("digits-vp-nll", ["truncation={k: 2, tau_max: 0.5}"])
    assert build_prior(recipe) == PowerPrior(2.0, 1e-5, 0.5)


def test_objectives():
    soft = build_objective(load_recipe("digits-vp-nll-st"))
    assert soft.prior == PowerPrior(1.0)
    assert soft.times == ImportanceTimes(VPSDE(), stratified=True)
    expected = build_objective(load_recipe("digits-vp-nll-st", ["objective.expected=true"]))
    assert expected.prior == HardTruncation(1e-5)
    assert isinstance(expected.weighting, PriorWeight)
    assert expected.weighting.prior == PowerPrior(1.0)
    mixed = build_objective(
        load_recipe("digits-vp-nll-st", ["objective.weighting=mixed", "objective.average=true"])
    )
    assert isinstance(mixed, MixedLoss)
    assert mixed.coefficient == 100.0
    assert mixed.variance.times == UniformTimes(VPSDE(), stratified=True, average=True)
    assert mixed.likelihood.times == ImportanceTimes(VPSDE(), stratified=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.average=true", "average: true belongs to uniform times"),
        ("objective={expected: true, weighting: mixed}", "expected: true has no mixed form"),
    ],
)
def test_keys_that_make_no_sense_together_are_refused_in_one_line(override, said):
    with pytest.raises(UserError, match=said) as caught:
        build_objective(load_recipe("digits-vp-nll-st", override.split(" & ")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pc", PredictorCorrector),
        ("euler_maruyama", EulerMaruyama),
        ("ancestral", Ancestral),
        ("ode", ProbabilityFlow),
        ("heun", Heun),
        ("dpm_solver", DPMSolver),
    ],
)
def test_samplers(name, kind):
    recipe = load_recipe("digits-vp-nll", [f"sampling.sampler={name}"])
    assert isinstance(build_sampler(recipe.sampling, build_sde(recipe)), kind)


def test_the_seed_decides_the_start_and_nothing_else_is_disturbed():
    recipe = load_recipe("digits-vp-nll")
    before = torch.random.get_rng_state()
    one, two = (build_model(recipe, channels=1, image_size=(8, 8)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    other = build_model(
        override_recipe(recipe, ["training.seed=1"], "here"), channels=1, image_size=(8, 8)
    )
    ones, twos, others = (
        torch.cat([p.flatten() for p in m.parameters()]) for m in (one, two, other)
    )
    assert torch.equal(ones, twos)
    assert not torch.equal(ones, others)


def test_a_dry_run_needs_no_images_where_the_recipe_says_their_size():
    text = describe(load_recipe("folder-32"))
    assert "your images of 3 x 32 x 32" in text
    assert "6,790,979" in text


def test_contract():
    assert Recipe.model_config["frozen"]
    assert Recipe.model_config["extra"] == "forbid"


def test_no_is_a_word_and_false_is_not():
    assert load_recipe("digits-vp-nll", ["training.precision=no"]).training.precision == "no"
    assert load_recipe("digits-vp-nll", ["data.flip=true"]).data.flip is True


def test_keys_that_are_gone_are_read_over_in_older_runs_unless_they_chose_something():
    older = ["truncation={sigmoid: null, per: step, sequence: random}", "objective.error_power=0.0"]
    assert load_recipe("digits-vp-nll-st", older) == load_recipe("digits-vp-nll-st")
    for key in ("truncation.per=example", "objective.error_power=0.5", "truncation.sigmoid=2"):
        with pytest.raises(UserError, match=f"{key.partition('=')[0]}.*: gone, .* leave it out"):
            load_recipe("digits-vp-nll-st", [key])


@pytest.mark.parametrize(
    "changes",
    [
        ["sampling.label='3'", "sampling.guidance=2", "sampling.steps=7", "sampling.sampler=heun"],
        ["sampling.sampler=heun", "sampling.label='3'", "sampling.guidance=2", "sampling.steps=7"],
        ["sampling.label='3'", "sampling.guidance=2", "sampling={sampler: heun, steps: 7}"],
    ],
)
def test_another_sampler_loses_nothing_that_was_asked_for(changes):
    found = load_recipe("fashion16-cond", ["sampling.precision=bf16", *changes]).sampling
    assert (found.sampler, found.label, found.guidance) == ("heun", "3", 2.0)
    assert (found.steps, found.precision) == (7, "bf16")


def test_a_key_that_the_other_sampler_lacks_is_refused_in_either_order():
    changes = ["sampling.order=1", "sampling.sampler=heun"]
    for told in (changes, changes[::-1]):
        with pytest.raises(UserError, match=r"unknown key 'sampling.order' of 'heun'"):
            load_recipe("fashion16-cond", told)
