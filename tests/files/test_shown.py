"""Texts of strangers keep their length and lose what a terminal obeys."""

import unicodedata

from trainer.files.shown import all_shown, is_text, shown


def test_no_control_character_is_left_and_nothing_else_is_changed():
    every = "".join(map(chr, range(0x3000)))
    seen = shown(every)
    assert len(seen) == len(every)
    assert not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in seen)
    changed = {before for before, after in zip(every, seen, strict=True) if before != after}
    assert all(unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp") for sign in changed)
    assert shown("é 漢 😀 مرحبا") == "é 漢 😀 مرحبا"


def test_only_texts_of_several_lines_keep_their_lines():
    assert shown("a\nb\tc\r") == "a␊b c␍" and shown("a\nb\x1b[2J", lines=True) == "a\nb␛[2J"


def test_texts_inside_lists_and_keys_are_shown_too():
    assert all_shown({"a\x1b": ["b\x07", 1, None, {"c": "\udcff"}]}) == {"a␛": ["b␇", 1, None, {"c": "\ufffd"}]}


def test_names_whose_bytes_are_no_text_are_told_apart():
    assert is_text("é😀") and not is_text(b"\xff".decode("utf-8", "surrogateescape")) and not is_text("a\0b")
