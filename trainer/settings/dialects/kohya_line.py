"""What flags of kohya's scripts mean together: epochs beside steps, two rates and more, a text encoder that stops, a folder
of class images, arguments of the optimizer and of the network."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.errors import ConfigError
from trainer.settings.dialects import kohya
from trainer.settings.dialects.given import Given
from trainer.settings.dialects.programs import Program


def settle(given: Given, program: Program) -> None:
    """What a line for one of kohya's scripts means beyond its words."""
    values = given.values
    spelled_epochs(given)
    _te_switch(given)
    _reg(given)
    if program.script.startswith("sdxl"):
        given.default("model.family", "sdxl", program.script)
    if values.get("train.optimizer") == "adafactor" and "optimizer_args" not in given.later:
        given.notices.append(
            "Adafactor runs at the given rate (relative_step=False), where kohya's script would choose its own"
        )


def spelled_epochs(given: Given) -> None:
    """In kohya's spelling epochs win over steps."""
    if given.spelled.get("train.num_train_epochs") == "max_train_epochs" and "train.max_train_steps" in given.values:
        steps = given.values.pop("train.max_train_steps")
        given.notices.append(
            f"--max_train_steps {steps} has no effect: --max_train_epochs decides, as in kohya's scripts"
        )


def _te_switch(given: Given) -> None:
    """--stop_text_encoder_training below 1 trains none; one beyond the last step stops nothing."""
    stop, steps = (str(given.values.get(f"train.{key}", "")) for key in ("text_encoder_stop_step", "max_train_steps"))
    if re.fullmatch(r"-\d+|0", stop):
        del given.values["train.text_encoder_stop_step"]
        given.put("train.train_text_encoder", False, "stop_text_encoder_training")
    elif stop.isdecimal() and steps.isdecimal() and int(stop) >= int(steps):
        del given.values["train.text_encoder_stop_step"]


def _reg(given: Given) -> None:
    """kohya's numbered folder of class images names their prompt."""
    folder = given.values.get("prior.class_data_dir")
    if given.spelled.get("prior.class_data_dir") != "reg_data_dir" or not Path(folder).is_dir():
        return
    named = [
        m[1] for path in sorted(Path(folder).iterdir()) if path.is_dir() and (m := re.fullmatch(r"\d+_(.+)", path.name))
    ]
    if len(set(named)) == 1 and not {"data.class_name", "prior.class_prompt"} & given.values.keys():
        given.put("prior.class_prompt", named[0], "reg_data_dir")
        given.notices.append(
            f"the class images' prompt is {named[0]!r}, from their folder's name (--class_prompt sets another)"
        )
    given.notices.append(
        "a step shows --train_batch_size photos and as many class images; kohya's scripts show that many of both together"
    )


def alpha(given: Given) -> None:
    """An alpha of 0 means the rank there, as none does here."""
    if "network_alpha" in given.later:
        text = given.later["network_alpha"]
        given.put("lora.alpha", None if zero(text) else text, "network_alpha")


def skip(given: Given, program: Program | None) -> None:
    """The text layer to read: counted alike, but SDXL's is fixed."""
    layer = given.later.get("clip_skip", "0")
    if layer in ("0", "1"):
        return
    if program is not None and program.script.startswith("sdxl"):
        given.notices.append("--clip_skip has no effect: SDXL reads the penultimate state always, as there")
    else:
        given.put("model.clip_skip", layer, "clip_skip")


def rates(given: Given) -> None:
    """The denoiser's own rate wins over the rate of everything, which then is the text encoder's."""
    later, values = given.later, given.values
    common, own = values.get("train.learning_rate"), later.get("unet_lr")
    if own is not None:
        given.put("train.learning_rate", own, "unet_lr")
        if common is not None and str(common) != own:
            given.notices.append(
                f"--unet_lr {own} is the denoiser's rate; --learning_rate {common} is left for the text encoder"
            )
    first = [
        later[name]
        for name in ("text_encoder_lr", "text_encoder_lr1", "learning_rate_te", "learning_rate_te1")
        if name in later
    ]
    second = [later[name] for name in ("text_encoder_lr2", "learning_rate_te2") if name in later]
    rates = (first[0] if first else "").replace(",", " ").split()
    if len(rates) > 2:
        raise ConfigError(
            f"--text_encoder_lr {' '.join(rates)}: there are two text encoders at most", "give one or two rates"
        )
    second += rates[1:]
    if not rates and own is not None and common is not None:
        rates = [str(common)]
    if rates and all(zero(rate) for rate in (*rates[:1], *second)):
        given.put("train.train_text_encoder", False, "text_encoder_lr")
        return
    if rates:
        given.put("train.text_encoder_lr", rates[0], "text_encoder_lr")
    if second and (not rates or second[0] != rates[0]):
        given.put("train.text_encoder_2_lr", second[0], "text_encoder_lr")


def zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False  # the schema says what is wrong


def optimizer_args(given: Given) -> None:
    fixed = {"scale_parameter": "false", "relative_step": "false", "warmup_init": "false"}  # what Adafactor does here
    for word in given.later.get("optimizer_args", "").split():
        name, _, value = word.partition("=")
        value = value.strip("'\"")
        if name == "betas" and value.count(",") == 1:
            first, second = value.strip("()[]").split(",")
            given.put("train.adam_beta1", first, "optimizer_args")
            given.put("train.adam_beta2", second, "optimizer_args")
        elif name in ("weight_decay", "eps"):
            given.put(
                "train.adam_weight_decay" if name == "weight_decay" else "train.adam_epsilon", value, "optimizer_args"
            )
        elif name in fixed and given.values.get("train.optimizer") == "adafactor":
            if value.lower() != fixed[name]:
                raise ConfigError(
                    f"--optimizer_args {word}: Adafactor runs at the given rate here", f"write {name}=False"
                )
        elif name in PRODIGY and given.values.get("train.optimizer") == "prodigy":
            if value.lower() not in PRODIGY[name]:
                raise ConfigError(
                    f"--optimizer_args {word}: Prodigy runs with {name}={PRODIGY[name][0].title()}", "leave it out"
                )
        else:
            raise ConfigError(f"--optimizer_args {word} is not known here", "weight_decay=, eps= and betas=a,b are")


PRODIGY = {
    "decouple": ("true",),
    "use_bias_correction": ("true",),
    "safeguard_warmup": ("true",),
    "d_coef": ("1", "1.0"),
}


def network_args(given: Given) -> None:
    """kohya's arguments of networks.lora: a rank and an alpha of its own for wide convolutions, which then get adapters."""
    for word in given.later.get("network_args", "").split():
        name, _, value = word.partition("=")
        value = value.strip("'\"")
        if name == "conv_dim":
            given.put("lora.conv_rank", value, "network_args")
            given.default("lora.conv_alpha", 1, "network_args")
            given.default("lora.targets", [*kohya.TRANSFORMERS, *kohya.RESNETS], "network_args")
        elif name == "conv_alpha":
            given.put("lora.conv_alpha", value, "network_args")
        elif name == "dropout":
            given.put("lora.dropout", value, "network_args")
        elif not (name in ("rank_dropout", "module_dropout") and zero(value)):
            raise ConfigError(
                f"--network_args {word} is not known here",
                "conv_dim=, conv_alpha= and dropout= are; LyCORIS' algorithms are not",
            )


def warm_up(given: Given) -> None:
    """A share of the steps in kohya's scripts; beside a constant schedule it does nothing in any program."""
    values, key = given.values, "train.lr_warmup_steps"
    text = str(values.get(key, ""))
    if key not in values:
        return
    if values.get("train.lr_scheduler", "constant") == "constant":
        if not zero(text):
            given.notices.append(
                f"--lr_warmup_steps {text} has no effect: a constant schedule has no warm-up, as there"
            )
        del values[key]
    elif re.fullmatch(r"0?\.\d+", text):
        given.put("train.lr_warmup_share", text, given.spelled[key])
        del values[key]
