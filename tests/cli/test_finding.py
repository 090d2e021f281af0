"""A finding: what a thing that was tried says, and that a failure costs its own line only."""

import importlib
import logging
import sys
import warnings

from trainer.cli.finding import first, tried


def test_what_works_says_what_it_did_and_remarks_of_libraries_stay_off_the_table(recwarn, caplog):
    def act() -> str:
        warnings.warn("a library's reservations", stacklevel=1)
        logging.getLogger("library").warning("more of them")
        return "drawn"

    line = tried("pictures", act, lambda: "pip install it")
    assert (line.state, line.detail, line.fix) == ("ok", "drawn", "")
    assert not recwarn.list and not caplog.records
    logging.getLogger("library").warning("afterwards all is heard again")
    assert len(caplog.records) == 1


def test_what_fails_is_lost_where_something_works_without_it_and_else_training_is_broken():
    def act() -> str:
        raise OSError("libcudart.so.12: cannot open shared object file\nand a second line")

    lost, bad = (
        tried("8-bit", act, lambda: "pip install it", "every other optimizer works"),
        tried("step", act, lambda: "pip install it"),
    )
    assert (lost.state, bad.state) == ("lost", "bad")
    assert lost.detail == "does not work here: libcudart.so.12: cannot open shared object file"
    assert lost.fix == bad.fix == "pip install it" and lost.without == "every other optimizer works"


def test_an_error_without_words_is_called_by_its_kind_and_a_long_one_is_cut():
    assert first(RuntimeError()) == "RuntimeError"
    assert len(first(ValueError("x" * 500))) == 90


def test_of_a_part_that_is_imported_late_the_line_says_what_it_stumbled_over():
    """As transformers and diffusers wrap it, one around the other."""

    def act() -> str:
        try:
            try:
                raise OSError("libtokenizers.so: undefined symbol")
            except OSError as error:
                raise ModuleNotFoundError("Could not import module 'CLIPTextModel'.") from error
        except ModuleNotFoundError as error:
            raise RuntimeError("Failed to import diffusers.models because of the following error:\n...") from error

    detail = tried("step", act, lambda: "pip install it").detail
    assert detail == "does not work here: libtokenizers.so: undefined symbol"


def test_a_library_that_breaks_as_others_import_it_is_the_one_to_mend(tmp_path, monkeypatch):
    """peft asks for transformers, which asks for tokenizers: whatever is done to peft helps nothing."""
    for name, text in {"asks": "import scipy", "scipy": "raise RuntimeError('undefined symbol')"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [m for m in sys.modules if m.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, module)
    line = tried("adapters", lambda: importlib.import_module("asks").__name__, lambda: "install asks", "more works")
    assert line.detail == "does not work here: undefined symbol" and line.fix.endswith(" scipy")
    assert "--force-reinstall" in line.fix
