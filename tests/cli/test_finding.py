"""A finding: what a thing that was tried says, and that a failure costs its own line only."""

import logging
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
