"""What is rehearsed is what a run does: the same values, shapes and micro-batches, on tensors without memory."""

from dataclasses import replace

import pytest
import torch

from trainer.memory.attention import Shape
from trainer.models import FAMILIES, SD1, SDXL, family
from trainer.objective.loss import Objective
from trainer.plan import rehearse
from trainer.plan.pretend import CardAttention
from trainer.plan.rehearse import Shapes, batch, split_state
from trainer.policy import Policy
from trainer.step.engine import Engine

SIZE, LATENT = (64, 48), (2, 4, 6, 8)  # pixels (width, height), and what the VAE makes of two of them


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda family: family.name)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_a_rehearsed_batch_has_the_timesteps_and_the_sample_that_training_draws(family, prediction):
    parts = family.tiny()
    parts.prediction_type = prediction
    drawn = Objective(parts.noise()).draw(torch.zeros(LATENT), torch.Generator().manual_seed(0))
    rehearsed = batch(parts, Shapes(SIZE, rows=2), text=False)
    for given, real in (
        (rehearsed.values["timestep"], drawn.timesteps),
        (rehearsed.values["sample"], drawn.sample),
        (rehearsed.target, drawn.target),
        (rehearsed.weights, drawn.weights),
    ):
        assert (given.shape, given.dtype) == (real.shape, real.dtype) and given.is_meta


def test_class_images_beside_another_bucket_are_rehearsed_as_micro_batches_of_their_own():
    together = Shapes(SIZE, rows=4, instances=2, accumulation=3)
    assert [(each.rows, each.instances) for each in together.micro_batches()] == [(4, 2)] * 3
    apart = Shapes(SIZE, rows=4, instances=2, accumulation=3, apart=True)
    assert [(each.rows, each.instances) for each in apart.micro_batches()] == [(2, 2), (2, 0)] * 3


def test_a_peak_without_optimizer_state_is_told_as_it_is():
    parts = {"weights": 7, "activations": 5}
    assert split_state(parts, made=None) == parts


def test_text_encoders_take_no_more_of_the_card_than_their_largest_layer():
    parts = SDXL.meta()
    layers = [sum(each.nbytes for each in unit.module.parameters()) for unit in SDXL.text_units(parts)]
    assert max(layers) <= rehearse.encode_text(parts).card_peak <= 1.02 * max(layers) < sum(layers) / 12


@pytest.mark.parametrize("name", [each.name for each in FAMILIES])
def test_the_kinds_of_attention_are_those_that_the_model_asks_for(name):
    """On a real forward pass prompts are equally long, so that nothing is masked; a plan counts with a mask where there can be one."""
    asked = set()

    def listen(call):
        asked.add(Shape(*call.query.shape[:3], call.key.shape[2], call.query.shape[3]))

    parts, policy, size = family(name).tiny(), Policy(), (96, 64)
    given = rehearse.filled(batch(parts, Shapes(size, rows=3), text=False), torch.device("cpu"))
    made = Engine(parts.family.units(parts, text=False), policy, "cpu")
    with CardAttention(listen):  # what lies in memory is attended to as ever
        made.forward(given.values)
    empty = family(name).tiny()
    for module in empty.modules().values():
        module.to("meta")
    found = rehearse.attention(empty, policy, 3, [size])
    assert {replace(each, masked=False) for each in found} == asked
    assert [each.scores for each in found] == sorted((each.scores for each in found), reverse=True)
