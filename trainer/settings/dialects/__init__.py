"""Lines and files made for other trainers, understood as they are meant there.

    meanings    what one foreign flag or key can be: values of ours, a note, or a refusal with its fix
    diffusers   the flags of diffusers' DreamBooth scripts
    kohya       the flags of kohya's sd-scripts
    programs    one row a program: its scripts, its defaults, and which of them we take over
    lines       a whole command line: which program it was made for, and what it says beyond its words
    files       configuration files, told apart by content
    kohya_toml, onetrainer, aitoolkit    what each key of theirs means

The rule of what is taken over: what decides **which weights learn and on what** (adapter or not, rank, alpha, modules, text
encoder, what an epoch is, prior preservation on or off) is taken from the program that the line was made for, because the
person who left it out relied on it. What decides **how much** (batch, rate, steps, checkpoints) stays ours, which fit the
card, and is named in one line where it differs. Nothing is passed over without a word.

Plain renamings stand beside their knob in `config.py`. Facts are read from the argument parsers of diffusers'
`examples/dreambooth/` (2026-08), kohya's sd-scripts (2026-02), OneTrainer (2026-08) and ai-toolkit (2026-08).
"""
