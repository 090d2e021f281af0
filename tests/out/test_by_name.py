"""A name of one's own for the file that kohya's scripts would have written, where they would have written it."""

from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.events import Exported
from trainer.files.safetensors_stream import header
from trainer.models import SD1, adapters
from trainer.out import by_name, export, metadata
from trainer.settings import overlay
from trainer.settings.checks import check
from trainer.settings.config import Lora


def written(run, method, formats):
    parts = SD1.tiny()
    if method != "full":
        adapters.inject(parts, Lora(rank=2, alpha=1))
    facts = metadata.metadata(overlay.load({"export.output_name": "my_dog", "run.output_dir": str(run)}), None)
    events = export.write(parts, None, run / "model", formats, "fp16", facts)
    return {e.format: e for e in by_name.named(events, run, "my_dog", method) if isinstance(e, Exported)}


@pytest.mark.parametrize(("method", "formats", "mine", "left"), [
    ("full", ["diffusers", "single_file"], "single file", {"diffusers"}),
    ("lora", ["lora_diffusers", "lora_kohya"], "lora kohya", {"pytorch_lora_weights.safetensors"}),
    ("lora", ["lora_kohya", "single_file"], "lora kohya", {"model.safetensors"}),
])  # fmt: skip
def test_the_file_of_kohyas_script_lies_in_the_run_folder_under_its_name_and_the_rest_where_it_was(
    tmp_path, method, formats, mine, left
):
    event = written(tmp_path, method, formats)[mine]
    assert Path(event.path) == tmp_path / "my_dog.safetensors" and str(event.path) in event.usage
    assert "lora_kohya.safetensors" not in event.usage and "model.safetensors" not in event.usage
    assert header(Path(event.path)).metadata["modelspec.title"] == "my_dog"
    assert {path.name for path in (tmp_path / "model").iterdir()} == left


def test_a_lone_file_leaves_no_empty_folder(tmp_path):
    written(tmp_path, "lora", ["lora_kohya"])
    assert {path.name for path in tmp_path.iterdir()} == {"my_dog.safetensors"}


def test_a_name_that_no_file_would_get_and_one_that_is_a_path_are_refused():
    with pytest.raises(ConfigError, match="the file that gets the name is not exported") as error:
        check(overlay.load({"export.output_name": "x", "export.formats": ["diffusers"]}), files=False)
    assert "single_file" in error.value.fix
    for name in ("a/b", "..", "", "a\\b"):
        with pytest.raises(ConfigError, match="name"):
            overlay.load({"export.output_name": name})
    assert overlay.load({"export.output_name": "sdxl v1.0 dog"}).export.output_name == "sdxl v1.0 dog"
