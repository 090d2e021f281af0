"""What a run does on the way, as its settings say, and what it calls what it leaves."""

from trainer.run.habits import Habits
from trainer.settings.config import Config


def test_without_a_wish_only_the_end_is_saved_and_drawn():
    habits = Habits.of(Config())
    assert (habits.save_every, habits.sample_every, habits.save_limit, habits.keep_best) == (None, None, None, False)


def test_habits_are_those_of_the_settings():
    config = Config(
        checkpoint={"checkpointing_steps": 50, "checkpoints_total_limit": 2},
        sample={"validation_steps": 20},
        guard={"keep_best": True},
        run={"layout": "diffusers"},
    )
    assert Habits.of(config) == Habits(50, 2, 20, True, True)


def test_a_checkpoint_that_was_due_has_the_name_that_diffusers_scripts_give_it_and_no_other_has():
    theirs, ours = Habits(save_every=50, theirs=True), Habits(save_every=50)
    assert theirs.name(100) == "checkpoint-100"
    assert theirs.name(99) == "", "asked for between two, or the last"
    assert ours.name(100) == "" and Habits(theirs=True).name(100) == ""
