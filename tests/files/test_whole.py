"""What another start reads is whole or absent: at every moment, after every kill, and nothing else is tidied away."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.files.whole import place, remove, tidy, whole, whole_folder

TRAINER = Path(__file__).parents[2] / "trainer"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def left(folder, name, kind, process=7, text="left"):
    """What a program with the number `process` left behind."""
    path = folder / f".{name}.{process}.{kind}"
    path.write_text(text)
    return path


def test_a_file_is_there_with_all_of_its_text_and_nothing_beside_it(tmp_path):
    with whole(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("context", [whole, whole_folder])
def test_what_fails_in_the_middle_leaves_what_was_there(tmp_path, context):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), context(target) as part:
        (part / "b" if part.is_dir() else part).write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and names(tmp_path) == ["a"]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "a") as part:
            (part / f"{text}.txt").write_text(text)
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["new.txt"]


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "mine" / "file")
    (tmp_path / "folder").symlink_to(tmp_path / "mine")
    with whole(tmp_path / "file") as part:
        part.write_text("new")
    with whole_folder(tmp_path / "folder") as part:
        (part / "file").write_text("new")
    assert (tmp_path / "mine" / "file").read_text() == "precious"
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "new"
    remove(tmp_path / "file")
    (tmp_path / "folder2").symlink_to(tmp_path / "mine")
    remove(tmp_path / "folder2")
    assert names(tmp_path / "mine") == ["file"] and names(tmp_path) == ["folder", "mine"]


def test_what_a_killed_program_left_is_removed_and_nothing_else(tmp_path):
    mine = [".notes.part", "x.12.part", ".a.b.part", ".hidden", "step-000003.partial", "a.unfinished", ".123.part.png"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    left(tmp_path, "config.toml", "part")
    left(tmp_path, "step-000003", "gone")
    for old in (".step-000003.partial", ".diffusers.unfinished"):
        (tmp_path / old).mkdir()
    olds = (".manifest.json.12", f"{'0a' * 16}.12.part", f".00001-{'ab' * 6}-2.png.part", "report.html.part")
    for old in olds:
        (tmp_path / old).write_text("left")
    assert tidy(tmp_path) == [] and names(tmp_path) == sorted(mine)
    assert tidy(tmp_path / "nowhere") == []


def test_a_part_whose_predecessor_was_set_aside_is_put_in_place(tmp_path):
    left(tmp_path, "a", "aside", text="old")
    left(tmp_path, "a", "part", text="new")
    left(tmp_path, "b", "aside", text="old")
    left(tmp_path, "c", "aside", text="old")
    (tmp_path / "c").write_text("new")
    assert sorted(tidy(tmp_path)) == ["a", "b"]
    assert [(tmp_path / name).read_text() for name in "abc"] == ["new", "old", "new"] and names(tmp_path) == list("abc")


def test_a_part_that_proves_to_be_complete_is_used(tmp_path):
    left(tmp_path, "good", "part")
    left(tmp_path, "bad", "part")
    assert tidy(tmp_path, lambda part: "good" in part.name) == ["good"] and names(tmp_path) == ["good"]


@pytest.mark.parametrize("other", ["finishes", "removes"])
def test_two_may_tidy_a_folder_at_once(tmp_path, other):
    """While one looks whether a part is complete, the other has come to the same end."""
    left(tmp_path, "good", "part")

    def complete(part):
        if other == "removes":
            part.unlink()
        else:
            assert tidy(tmp_path, lambda part: True) == ["good"]
        return True

    assert tidy(tmp_path, complete) == []
    assert names(tmp_path) == (["good"] if other == "finishes" else [])


def test_what_is_there_and_lacks_a_file_is_not_taken_for_gone(tmp_path):
    left(tmp_path, "good", "part")
    with pytest.raises(FileNotFoundError):
        tidy(tmp_path, lambda part: bool((part.parent / "nowhere").read_text()))


def test_what_another_program_is_still_writing_is_left_alone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from trainer.files.whole import whole, whole_folder\n"
        "with whole(Path(sys.argv[1]) / 'a'), whole_folder(Path(sys.argv[1]) / 'b'):\n"
        "    print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    writer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TRAINER.parent, env=dict(os.environ)
    )
    try:
        assert writer.stdout.readline() == "ready\n"
        before = names(tmp_path)
        assert tidy(tmp_path) == [] and names(tmp_path) == before and len(before) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        tidy(tmp_path)
        assert names(tmp_path) == []
    finally:
        writer.kill()
        writer.communicate()


def test_at_every_file_operation_of_a_replacement_one_of_the_two_is_there(tmp_path):
    """The folder is looked at from an audit hook, before each rename, open and removal: what a kill there would leave."""
    seen = []

    def hook(event, arguments):
        nonlocal watching
        if watching and event.split(".")[0] in ("os", "open", "shutil") and str(tmp_path) in str(arguments[:1]):
            watching = False  # looking is an operation, too
            seen.append((event, names(tmp_path)))
            watching = True

    watching = False
    sys.addaudithook(hook)
    for text in ("old", "new"):
        watching = text == "new"
        with whole_folder(tmp_path / "a") as part:
            (part / "text").write_text(text)
    watching = False
    assert len(seen) > 8
    for event, there in seen:
        assert "a" in there or {name.rpartition(".")[2] for name in there} == {"aside", "part"}, (event, there)


def test_a_disk_that_cannot_take_the_new_one_keeps_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "a"
    target.mkdir()
    (target / "text").write_text("old")
    real = os.replace

    def full(source, destination):
        if Path(destination) == target and str(source).endswith(".part"):
            raise OSError(28, "No space left on device")
        real(source, destination)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"), whole_folder(target) as part:
        (part / "text").write_text("new")
    assert (target / "text").read_text() == "old" and names(tmp_path) == ["a"]


def test_placing_where_nothing_was_sets_nothing_aside(tmp_path):
    (tmp_path / "part").mkdir()
    place(tmp_path / "part", tmp_path / "a")
    assert names(tmp_path) == ["a"]


# ---- nobody else writes

WRITES = {"write_text", "write_bytes", "save", "save_file", "save_pretrained", "Writer"}
ELSEWHERE = {  # function -> why it may write outside of `with whole(...)`; may only shrink
    "files/whole.py:whole": "it is what the others use",
    "files/safetensors_stream.py:__init__": "Writer: its callers give it a part",
    "out/checkpoint.py:_write": "into the part of a checkpoint",
    "out/formats.py:save_tokenizer": "into the part of an exported folder",
    "out/formats.py:_json": "into the part of an exported folder",
    "readers/log.py:_open": "a log is appended to, line by line; half a line is passed over",
    "readers/view/page.py:thumbnail": "into memory",
    "prior/images.py:_png": "into memory, whose bytes are then written whole",
    "cli/workings.py:round_trip": "the doctor's trial, in a folder that is thrown away",
    "cli/workings.py:adapters": "the same",
}


def writes(tree):
    """(function, line) of every call that writes a file outside of a `with whole(...)` that gave it the name."""

    def visit(node, function, parts):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.With):
            for item in node.items:
                if "whole" in ast.unparse(item.context_expr) and item.optional_vars is not None:
                    parts = parts | {ast.unparse(item.optional_vars)}
        if isinstance(node, ast.Call) and _is_write(node):
            used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            if not used & parts and not (parts and "path" in used):  # `path = part / inside` in the same block
                found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, function, parts)

    found = []
    visit(tree, "", frozenset())
    return found


def _is_write(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "open" and "devnull" not in ast.unparse(call):
        words = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        flags = "os.O_W" in ast.unparse(call) or "os.O_CREAT" in ast.unparse(call)
        return flags or any(isinstance(w, str) and len(w) <= 3 and set(w) & set("wax+") for w in words)
    called = ast.unparse(call.func)
    if name == "save" and not call.args:  # weights that are kept where they are
        return False
    ours = called == "save" or called.startswith(("saving.", "checkpoint."))
    if ours or called.startswith("self.traffic."):  # which keeps tensors in host memory
        return False
    return name in WRITES or called.startswith("shutil.copy")


def test_every_file_that_another_start_reads_is_written_whole():
    found = {
        f"{path.relative_to(TRAINER).as_posix()}:{function}"
        for path in TRAINER.rglob("*.py")
        for function, _ in writes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found - ELSEWHERE.keys() == set(), "these write in place: use trainer.files.whole"
    assert ELSEWHERE.keys() - found == set(), "these no longer need an exception"


def test_the_search_for_writers_finds_them():
    def found(text):
        return bool(writes(ast.parse(text)))

    for text in (
        "open(p, 'w')",
        "open(p, mode='ab')",
        "p.open('x')",
        "p.write_text(t)",
        "torch.save(s, p)",
        "i.save(p)",
    ):
        assert found(text), text
    assert found("with whole(a) as part:\n    b.write_text(t)")
    assert not found("with whole(a) as part:\n    part.write_text(t)") and not found("open(p, 'rb')")
