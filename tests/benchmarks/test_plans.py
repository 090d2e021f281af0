"""The table of plans and the README's rows of it: one command writes both, and they say the same."""

from trainer.benchmarks import plans

from trainer.settings.overlay import presets


def test_the_readme_shows_rows_of_the_whole_table_as_they_are():
    assert plans.kept(plans.README) == plans.few(plans.kept(plans.PLANS))


def test_the_table_has_a_row_for_every_preset_model_and_mode():
    rows = plans.kept(plans.PLANS).splitlines()[2:]
    assert len(rows) == sum(len(plans.ways(family)) for family in plans.FAMILIES) * len(presets())


def test_families_that_are_planned_anew_replace_their_own_rows_and_no_others():
    head = "| model | mode |\n|---|---|"
    before = f"{head}\n| sd1 | a |\n| sdxl | b |\n| sdxl | c |"
    assert plans.merged(before, f"{head}\n| sdxl | d |") == f"{head}\n| sd1 | a |\n| sdxl | d |"
    assert plans.merged(before, f"{head}\n| sd2 | d |").splitlines()[2:4] == ["| sd1 | a |", "| sd2 | d |"]


def test_every_preset_is_shown_in_the_readme_and_there_are_ten_rows():
    assert set(plans.SHOWN) == set(presets())
    assert sum(len(ways) for ways in plans.SHOWN.values()) == 10


def test_only_what_stands_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{plans.BEGIN}\nold\n{plans.END}\nafter\n")
    plans.insert(page, "new\nrows")
    assert page.read_text() == f"before\n{plans.BEGIN}\nnew\nrows\n{plans.END}\nafter\n"
    assert plans.kept(page) == "new\nrows"


def test_a_row_is_what_the_planner_says_of_that_preset():
    (row,) = (line for line in plans.rows(["sd1"], ["lora"]) if "| 24gb |" in line)
    assert row in plans.kept(plans.PLANS).splitlines()
