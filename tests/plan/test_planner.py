"""Plans of real families from their shipped configurations: sizes, choices, words and the JSON line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from trainer.errors import ConfigError
from trainer.files.safetensors_stream import PIECE_BYTES
from trainer.machine.team import Rehearsed
from trainer.models import family
from trainer.plan import calibration, cards, command, planner, rehearse, timeline
from trainer.plan.calibration import GIB
from trainer.plan.inputs import Machine
from trainer.plan.phases import PHOTOS, Rehearsals
from trainer.plan.plan import Plan
from trainer.policy import Policy
from trainer.settings.config import Config

FULL = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, recompute_kernels=True, channels_last=True, gradients="ram",
              checkpointing="blocks")  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    made = {}

    def get(name: str):
        if name not in made:
            made[name] = family(name).meta()
        return made[name]

    return get


def step_gib(parts, name: str, policy: Policy, side: int) -> float:
    """GiB of live tensors at the peak of one pair step."""
    with rehearse.engine(parts(name), policy, text=False) as engine:
        return rehearse.train(parts(name), engine, rehearse.Shapes((side, side)), text=False).card_peak / GIB


@pytest.mark.parametrize(("limit", "changes"), [
    (4.6, {}),
    (3.75, {"moments": "4bit"}),
    (6.0, {"checkpointing": "off"}),
    (2.4, {"stream": "state"}),
    (1.2, {"stream": "all"}),
], ids=["8-bit moments", "4-bit moments", "no recompute", "state streamed", "everything streamed"])  # fmt: skip
def test_a_pair_step_of_sd15_stays_below_its_target(parts, limit, changes):
    assert step_gib(parts, "sd1", replace(FULL, **changes), 512) <= limit


@pytest.mark.parametrize(("limit", "changes"), [
    (11.2, {"moments": "4bit"}),
    (6.5, {"stream": "state"}),
    (2.0, {"stream": "all", "boundaries": "ram"}),
], ids=["4-bit moments", "state streamed", "everything streamed"])  # fmt: skip
def test_a_pair_step_of_sdxl_stays_below_its_target(parts, limit, changes):
    assert step_gib(parts, "sdxl", replace(FULL, **changes), 1024) <= limit


def test_sdxl_with_adam_on_the_card_fits_two_cards_of_12_gb_and_not_one(parts):
    """10.8 GiB: what the preset 12gb, 11.2 GiB of a card, leaves for tensors beside context, workspaces and allocator."""
    shared = replace(FULL, shard="state")
    with rehearse.engine(parts("sdxl"), shared, text=False) as engine:
        assert sum(h.weights.home.nbytes + h.state.home.nbytes for h in engine.holdings) / GIB > 12
    with rehearse.engine(parts("sdxl"), shared, text=False, team=Rehearsed(0, 2)) as engine:
        step = rehearse.train(parts("sdxl"), engine, rehearse.Shapes((1024, 1024), rows=1, instances=1), text=False)
    assert step.card_peak + sum(calibration.ASSUMED.overhead(step.card_peak).values()) < 11.2 * GIB
    numbers = sum(holding.n for holding in engine.holdings)
    # half of the fp32 sums come here and half of the 16-bit weights, but for what fills slices up and the norms
    assert timeline.link_bytes(step.timeline) == pytest.approx(numbers * (4 + 2) / 2, rel=0.01)


def small(**settings: object) -> Config:
    """A plan that costs little to make: the built-in model's shapes."""
    made = Config()
    made.model.name = "demo"
    made.prior.with_prior_preservation = True
    for key, value in settings.items():
        section, name = key.split("__")
        setattr(getattr(made, section), name, value)
    return made


@pytest.fixture(scope="module")
def facts():
    return command.facts_for(small())


def draft(facts, machine: Machine | None = None, **settings: object) -> Plan:
    return planner.draft(small(**settings), facts, machine or Machine("cuda", cards.find("RTX 3060")))


def test_plans_are_pure(facts):
    first, second = draft(facts, memory__vram_gb=4.0), draft(facts, memory__vram_gb=4.0)
    assert first == second
    assert first.as_json() == second.as_json()


def test_the_json_line_has_exactly_the_promised_fields(facts, capsys):
    plan = draft(facts, memory__vram_gb=4.0)
    line = json.loads(json.dumps(plan.as_json()))
    assert list(line) == ["model", "mode", "preset", "budget_bytes", "fits", "vram_peak_bytes", "ram_peak_bytes", "disk_bytes",
                          "step_tensor_bytes", "steps_per_second", "clipped_steps_per_second", "settings", "phases", "refusal"]  # fmt: skip
    assert all(list(phase) == ["name", "vram_bytes", "ram_bytes", "parts"] for phase in line["phases"])
    assert line["vram_peak_bytes"] == max(phase["vram_bytes"] for phase in line["phases"])


def test_a_plan_for_two_cards_is_that_of_one_with_half_of_the_rows_and_fp32_sums(facts):
    one, two = (draft(facts, run__cards=cards, train__train_batch_size=32) for cards in (1, 2))
    assert two.step_tensor_bytes < one.step_tensor_bytes
    assert (
        one.together is None and two.together.cards == 2 and one.policy.shard == "off" and two.policy.shard == "state"
    )
    assert draft(facts, run__cards=2, train__method="lora", train__train_batch_size=2).policy.shard == "off"
    assert "a step sends" in command.table(two) and "a step sends" not in command.table(one)
    assert 0 <= two.together.shown < two.together.seconds == pytest.approx(two.together.bytes / 10e9)


def test_where_more_cards_do_not_pay_the_plan_says_what_does(facts):
    made = draft(facts, run__cards=2, train__train_batch_size=2)
    slower = replace(made, steps_per_second=made.steps_per_second / 1.6)
    assert command.against_one(made, slower).startswith("2 cards: 1.60 times as fast as the same step on one of them")
    said = command.against_one(made, replace(made, steps_per_second=made.steps_per_second / 1.05))
    assert "do not pay here" in said and "--gradient_accumulation_steps" in said


def test_cards_are_joined_by_their_bus_unless_somebody_says_otherwise():
    assert cards.joined(cards.find("RTX 3050")) == cards.LINKS["pcie_x8"]
    assert cards.joined(cards.find("RTX 3060")) == cards.LINKS["pcie"]
    assert cards.joined(cards.find("RTX 3060"), "nvlink").rate > cards.joined(cards.find("RTX 3060")).rate
    assert cards.joined(cards.find("H100")) == cards.LINKS["server"]


def test_cards_that_hold_a_run_together_are_not_compared_with_one_that_does_not(facts):
    made = draft(facts, run__cards=2, train__train_batch_size=2)
    assert "one of them does not hold this run" in command.against_one(made, replace(made, budget_bytes=1))


def test_the_parts_of_every_phase_sum_to_its_peak(facts):
    for phase in draft(facts, memory__vram_gb=4.0).phases:
        assert sum(phase.parts.values()) == pytest.approx(phase.vram_bytes, abs=2)


def test_all_phases_of_a_run_are_planned(facts):
    names = [phase.name for phase in draft(facts).phases]
    assert names == ["load", "class images", "cache images", "cache text", "train", "sample", "save", "export"]
    without = [phase.name for phase in draft(facts, prior__with_prior_preservation=False).phases]
    assert "class images" not in without


def test_the_step_is_counted_without_context_and_workspaces(facts):
    plan = draft(facts)
    train = next(phase for phase in plan.phases if phase.name == "train")
    beside = {kind: train.parts[kind] for kind in calibration.ASSUMED.overhead(0)}
    assert train.vram_bytes == plan.step_tensor_bytes + sum(beside.values())
    assumed = calibration.ASSUMED.overhead(plan.step_tensor_bytes)
    assert beside["context"] == assumed["context"] and beside["workspaces"] == assumed["workspaces"]
    assert beside["allocator"] > assumed["allocator"], "a small model's step leaves more of its pages empty"


class Greedy(Rehearsals):
    """Pictures that take more than any card has, unless units are brought one by one."""

    def _draw_base(self, policy: Policy, pictures: int) -> int:
        return 0 if policy.stream == "all" else 1 << 40


def test_another_phase_that_does_not_fit_sends_the_solver_further_down(facts):
    config = small(memory__vram_gb=4.0, memory__checkpointing="blocks", memory__boundaries="ram")
    made = planner.draft(config, facts, Machine("cuda"), Greedy(config, facts.family.build_meta(facts), "cuda"))
    assert made.fits
    assert made.policy.stream == "all"


def test_what_somebody_set_wins_and_a_warning_says_that_it_does_not_fit(facts):
    free = draft(facts)
    tight = draft(facts, memory__vram_gb=10.0, train__train_batch_size=8)
    need = next(p for p in tight.phases if p.name == "train").vram_bytes
    assert free.fits
    plan = draft(facts, memory__vram_gb=need / GIB - 0.03, memory__checkpointing="off", memory__gradients="card",
                 memory__stream="off", train__train_batch_size=8)  # fmt: skip
    assert plan.policy.checkpointing == "off"
    assert not plan.fits
    assert "--checkpointing off" in plan.warnings[0]
    assert plan.refusal is None


def test_a_setting_is_not_blamed_alone_where_nothing_would_fit_anyway(facts):
    made = draft(facts, Machine("cuda", None, None, 1000), memory__vram_gb=0.61, memory__checkpointing="off")
    assert made.refusal is not None  # too little RAM is a warning, and no reason to go on
    assert "no --checkpointing off" in made.refusal.fix
    assert "RAM" in made.warnings[0]


def test_on_a_cpu_the_plan_is_fp32_and_speaks_of_ram(facts):
    plan = draft(facts, Machine("cpu", None, None, 64 * GIB))
    assert (plan.policy.weights, plan.policy.moments) == ("fp32", "fp32")
    assert plan.vram_peak_bytes == 0
    assert plan.fits
    assert "CPU" in plan.explanation
    assert plan.steps_per_second is None


def test_on_a_cpu_every_phase_is_planned_with_what_visits_in_fp32(facts):
    plan = draft(facts, Machine("cpu", None, None, 64 * GIB))
    ram = {phase.name: phase.ram_bytes - calibration.PROCESS_RAM_BYTES.amount for phase in plan.phases}
    assert list(ram) == ["load", "class images", "cache images", "cache text", "train", "sample", "save", "export"]
    weights = 4 * sum(p.numel() for p in facts.family.build_meta(facts).denoiser.parameters())
    assert weights < ram["class images"] < 3 * weights  # the UNet as it computes, and activations
    assert ram["train"] > 4 * weights  # weights, gradients, two moments
    assert ram["load"] < 0.01 * weights


@pytest.mark.parametrize("stream", ["off", "state", "all"])
def test_the_ram_of_a_card_s_run_is_what_the_engine_keeps_there_and_no_copy_of_the_model(facts, stream):
    plan = draft(
        facts, memory__vram_gb=4.0, memory__stream=stream, memory__checkpointing="blocks", memory__resident_units=0
    )
    parts = facts.family.build_meta(facts)
    with rehearse.engine(parts, plan.policy, text=False) as made:
        host = made.bytes["host"]
    ram = {phase.name: phase.ram_bytes - int(calibration.PROCESS_RAM_BYTES.amount) for phase in plan.phases}
    early = host if stream == "all" else 0
    assert ram["load"] == 0
    assert ram["class images"] == ram["cache text"] == early
    latents = ram["cache images"] - early  # what becomes of the photos and class images
    count, side = PHOTOS + parts.family.defaults.class_images, 64 // parts.latents.factor
    assert latents == count * 2 * parts.latents.channels * side**2 * 4
    assert ram["train"] == ram["sample"] >= host + latents
    assert 0 < ram["save"] - ram["train"] <= PIECE_BYTES


@pytest.mark.parametrize(("resolution", "clipping", "waits"), [(64, "exact", False), (512, "previous", True)])
def test_the_optimizer_state_makes_room_only_for_pictures_that_take_more_than_the_step(
    facts, resolution, clipping, waits
):
    plan = draft(facts, memory__vram_gb=4.0, memory__stream="off", memory__checkpointing="blocks", train__clipping=clipping,
                 data__resolution=resolution)  # fmt: skip
    with rehearse.engine(facts.family.build_meta(facts), plan.policy, text=False) as made:
        state = sum(h.state.home.nbytes for h in made.holdings)
    by = {phase.name: phase for phase in plan.phases}
    assert plan.drawing.park == waits
    assert by["sample"].ram_bytes - by["train"].ram_bytes == by["sample"].parked_bytes == (state if waits else 0)
    assert waits or by["sample"].vram_bytes <= by["train"].vram_bytes


def test_too_little_ram_is_said(facts):
    plan = draft(facts, Machine("cpu", None, None, 1000))
    assert "RAM" in plan.warnings[0]


def test_adapters_take_less_than_all_weights(facts):
    assert draft(facts, train__method="lora").step_tensor_bytes < draft(facts).step_tensor_bytes


def test_training_the_text_encoder_takes_more(facts):
    assert draft(facts, train__train_text_encoder=True).step_tensor_bytes > draft(facts).step_tensor_bytes


def test_the_event_carries_phases_and_parts(facts):
    event, *_ = draft(facts, memory__vram_gb=4.0).events()
    assert event.phases["train"] > 0
    assert event.budget_bytes == 4 * GIB
    assert "of 4.00 GiB" in event.text


def test_speed_is_an_estimate_that_follows_the_card(facts):
    slow = draft(facts, Machine("cuda", cards.find("RTX 3050")), train__train_batch_size=8)
    fast = draft(facts, Machine("cuda", cards.find("H200")), train__train_batch_size=8)
    assert fast.steps_per_second >= slow.steps_per_second > 0
    text = command.table(fast)
    assert "not measured" in text


def test_a_plan_that_nothing_limits_says_so(facts):
    assert "--vram_gb" in draft(facts, Machine("cuda")).warnings[0]
    assert draft(facts, Machine("cuda"), memory__vram_gb=4.0).warnings == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: nothing to measure a plan against")
def test_a_planned_step_and_its_workspaces_hold_the_measured_one():
    """A plan counts tensors; what torch handed out at the peak has the libraries' workspaces in it as well."""
    from trainer.benchmarks.harness.timing import Options
    from trainer.benchmarks.suites.planner import suite

    apart = {row["case"]: row["measured_bytes"] - row["planned_bytes"] for row in suite(Options())}
    assert all(0 <= more <= calibration.WORKSPACE_BYTES.amount for more in apart.values()), apart


def test_steps_are_replayed_where_the_card_would_wait_for_python(facts):
    fast, slow = (Machine("cuda", cards.find(name)) for name in ("RTX 4090", "GTX 1650"))
    quick = draft(facts, fast, train__train_batch_size=1)
    assert quick.policy.cuda_graphs and quick.settings["memory.cuda_graphs"] is True
    assert "CUDA graphs" in quick.explanation and "cuda_graphs on" in command.table(quick)
    held = draft(facts, fast, train__train_batch_size=1, memory__cuda_graphs=False)
    assert not held.policy.cuda_graphs and held.steps_per_second < quick.steps_per_second
    assert not draft(facts, slow, train__train_batch_size=512, memory__vram_gb=24.0).policy.cuda_graphs


def test_the_memory_of_a_recording_is_planned(facts):
    fast = Machine("cuda", cards.find("RTX 4090"))
    quick, held = (draft(facts, fast, memory__cuda_graphs=graphs) for graphs in (None, False))
    more = {p.name: p.vram_bytes for p in quick.phases}, {p.name: p.vram_bytes for p in held.phases}
    assert more[0]["train"] > more[1]["train"] and quick.phases[0].parts.keys() == held.phases[0].parts.keys()
    assert next(p for p in quick.phases if p.name == "train").parts["graphs"] > 0
    assert more[0]["sample"] == more[1]["sample"]  # it is given back before pictures are drawn
    tight = draft(facts, fast, memory__vram_gb=(more[0]["train"] - 1) / GIB)
    assert not tight.policy.cuda_graphs and tight.fits


HELD = {
    "streamed": {"memory__stream": "state"},
    "gradients in RAM": {"memory__gradients": "ram"},
    "compiled": {"memory__compile": "blocks"},
    "another optimizer": {"train__optimizer": "torch_adamw"},
    "two cards": {"run__cards": 2},
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
def test_nothing_is_replayed_that_cannot_be(facts, held):
    assert not draft(facts, Machine("cuda", cards.find("RTX 4090")), **held).policy.cuda_graphs


def test_an_adapter_with_dropout_is_not_replayed(facts):
    """Random numbers of a graph are not those of an eager step."""
    fast = Machine("cuda", cards.find("RTX 4090"))
    plain, drops = (draft(facts, fast, train__method="lora", lora__dropout=share) for share in (0.0, 0.1))
    assert plain.policy.cuda_graphs and not drops.policy.cuda_graphs


@pytest.mark.parametrize(
    ("held", "said"),
    [({"run__cards": 2}, "on 2"), ({"train__method": "lora", "lora__dropout": 0.1}, "lora.dropout")],
    ids=["two cards", "dropout"],
)
def test_replaying_that_was_asked_for_and_cannot_be_is_refused(facts, held, said):
    with pytest.raises(ConfigError, match=said):
        draft(facts, Machine("cuda", cards.find("RTX 4090")), memory__cuda_graphs=True, **held)


def test_rehearsals_answer_with_a_value_and_change_nothing_of_themselves(facts):
    """A plan for a small budget must not leave its tiles and batches behind for the next one."""
    config = small(memory__vram_gb=4.0)
    rehearsals = Rehearsals(config, facts.family.build_meta(facts), "cuda")
    roomy = planner.draft(config, facts, Machine("cuda"), rehearsals)
    tight = planner.draft(small(memory__vram_gb=0.62), facts, Machine("cuda"), rehearsals)
    assert tight.drawing != roomy.drawing
    assert rehearsals.all(roomy.policy, roomy.budget_bytes) == (roomy.phases, roomy.drawing)


def test_a_card_without_bf16_plans_fp16_and_draws_with_a_vae_in_fp32(facts):
    turing = draft(facts, Machine("cuda", None, None, None, None, (7, 5)), memory__vram_gb=0.5)
    ampere = draft(facts, Machine("cuda", None, None, None, None, (8, 6)), memory__vram_gb=0.5)
    assert (turing.policy.math, turing.drawing.vae_dtype) == (torch.float16, torch.float32)
    assert (ampere.policy.math, ampere.drawing.vae_dtype) == (torch.bfloat16, torch.bfloat16)


def test_where_no_kernel_can_be_built_the_plan_counts_its_references_and_says_what_to_install(facts):
    here = Machine("cuda", None, None, None, None, (8, 6))
    with_kernels, without = (
        draft(facts, machine, memory__vram_gb=4.0, data__resolution=256)
        for machine in (here, replace(here, no_kernels="Triton cannot build a kernel: Failed to find C compiler"))
    )
    assert without.step_tensor_bytes > with_kernels.step_tensor_bytes
    (said,) = without.warnings
    assert "C compiler" in said and "Install" in said and not with_kernels.warnings


@pytest.mark.parametrize(
    "settings", [{"memory__early_updates": False}, {"run__cards": 2, "train__train_batch_size": 2}]
)
def test_updates_wait_where_somebody_asked_for_that_and_on_several_cards(facts, settings):
    streamed = {"stream": "all", "checkpointing": "blocks", "gradients": "ram", "resident_units": 0}
    plan = draft(facts, **{f"memory__{name}": value for name, value in streamed.items()}, **settings)
    assert plan.policy.deferred and not plan.policy.early_updates and plan.clipped_steps_per_second is None


def test_early_updates_that_were_asked_for_are_planned_or_refused(facts):
    asked = {"memory__early_updates": True, "memory__reach_mb": 3}
    plan = draft(facts, **asked)
    assert plan.policy.early_updates and plan.policy.reach_mb == 3 and plan.policy.stream != "off"
    with pytest.raises(ConfigError, match="one card"):
        draft(facts, run__cards=2, train__train_batch_size=2, **asked)
    with pytest.raises(ConfigError, match="early_updates"):
        draft(facts, memory__stream="off", **asked)
