"""The manifest of a folder of class images: what stands, what changed, what the names alone can tell."""

import pytest

from trainer.prior import manifest as module
from trainer.prior.manifest import MANIFEST, Damaged, Manifest, digest, theirs


def folder_with(path, *texts):
    """A folder of "pictures" and its manifest."""
    manifest = Manifest({"seed": 0})
    for index, text in enumerate(texts):
        sha = digest(text.encode())
        name = f"{index:05d}-{sha[:12]}.png"
        (path / name).write_text(text)
        manifest.images[name] = {"index": index, "sha256": sha}
    manifest.write(path)
    return manifest


def test_what_was_written_is_read(tmp_path):
    written = folder_with(tmp_path, "a", "b")
    assert Manifest.read(tmp_path) == written and Manifest.read(tmp_path / "nowhere") is None


def test_only_pictures_that_are_as_they_were_drawn_stand(tmp_path):
    manifest = folder_with(tmp_path, "a", "b", "c")
    first, second, third = manifest.images
    (tmp_path / second).write_text("changed")
    (tmp_path / third).unlink()
    standing = manifest.standing(tmp_path)
    assert standing == {0: first} and manifest.changed(tmp_path, standing) == [second]


def test_a_folder_that_another_run_begins_to_fill_meanwhile_is_nobodys_own(tmp_path, monkeypatch):
    """Neither before it is looked at, nor in the middle of that: whoever took it for theirs would draw somewhere else."""
    look, begun = module.find, []

    def begins(*given):
        begun.append(folder_with(tmp_path, "a"))
        return look(*given)

    monkeypatch.setattr(module, "find", begins)
    assert not theirs(tmp_path) and begun
    (tmp_path / MANIFEST).unlink()
    monkeypatch.setattr(module, "find", look)
    assert theirs(tmp_path), "a picture without a row is theirs"


def test_every_flipped_character_of_what_counts_is_found(tmp_path):
    folder_with(tmp_path, "a")
    path = tmp_path / MANIFEST
    text = path.read_text()
    for place, character in enumerate(text):
        flipped = text[:place] + ("1" if character == "0" else "0") + text[place + 1 :]
        if character.isalnum() and '"checksum"' in flipped:  # without that word it is a manifest of an older version
            path.write_text(flipped)
            with pytest.raises(Damaged):
                Manifest.read(tmp_path)


def test_names_alone_tell_index_and_checksum_and_nothing_else_is_taken(tmp_path):
    written = folder_with(tmp_path, "a", "b")
    (tmp_path / "mine.png").write_text("a")
    (tmp_path / f"00007-{'0' * 12}.png").write_text("not what its name says")
    assert Manifest.recovered(tmp_path, {"seed": 0}) == written
