"""Which word should name the subject? One that the tokenizer keeps whole and that means as little as possible to
the model.

Candidates are three- and four-letter tokens that are a word of their own: those of CLIP end in a mark, those of language
models (byte-level pairs, SentencePiece) begin with one for the space before them. The vocabulary itself ranks them: pairs
are merged in the order of frequency, so late ones are rare, and a letter-pair model of all its words says
which look like no word at all. With a model at hand the best are tried: how far does "a photo of a xyz dog"
move the prediction away from "a photo of a dog", measured against how far "a dog" itself moves it away from the
empty prompt?
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

from trainer.errors import ConfigError
from trainer.events import Notice
from trainer.settings.config import Config

# Rare tokens that name something all the same, by what a picture of it would show. "sks" is every tutorial's choice.
MEANINGS = {
    word: meaning
    for meaning, words in {
        "a rifle": "sks ak ar",
        "a submachine gun": "uzi",
        "cars": "bmw hsv jdm suv atv",
        "a mountain bike": "mtb",
        "a dinner jacket, or a penguin": "tux",
        "a drone's view": "fpv",
        "a camera": "dslr",
        "a look of pictures": "hdr vhs cgi svg",
        "a screen": "lcd",
        "a computer game or console": "ffxv xbox pvp dmz",
        "an animated series": "dbz bnha",
        "a television channel": "hgtv wftv tvn",
        "a band or a singer": "tvxq jlo dmx bts miui yui",
        "a sportsman": "lbj gsp",
        "a team or a league": "nwsl nfl nba nyk aew rcb nrl",
        "soldiers or war": "usmc irgc cwgc iwm",
        "police": "nypd fbi bpd cbp",
        "politicians": "mlas bnp",
        "weather reports": "nlwx nmwx nhc",
        "an airport or a city": "muc ygk yql xiao",
        "a shop": "hmv",
        "a virus": "hpv",
        "flying saucers": "ufos",
        "a naval rank": "cmdr",
        "a season": "szn",
        "a conference": "wwdc",
        "fuel": "lpg nrg",
        "a theatre company": "rsc",
        "a first name": "uwe ulf yao",
    }.items()
    for word in words.split()
}
# of a vocabulary's places, CLIP's first 40,000: tokens that were frequent enough to be words, names or abbreviations people use
RARE_SHARE = 40_000 / 49_408
BEFORE = ("\u0120", "\u2581")  # a space before a word, in byte-level vocabularies and in SentencePiece's
END = "</w>"
TRIED = 24  # candidates tried with a model
DRAWS = 4  # noises and timesteps for each


@dataclass(frozen=True)
class Candidate:
    """rank: place in the vocabulary, later is rarer; strangeness: bits a letter above an average word;
    effect: on the prediction, 0 means no prior (nan: not tried)."""

    word: str
    rank: int
    strangeness: float
    effect: float = math.nan


def pieces(word: str, tokenizer) -> list[str]:
    """The tokens that `word` becomes inside a prompt, without the marks of words."""
    return [plain for token in tokenizer.tokenize(_inside(word, tokenizer)) if (plain := _plain(token))]


def _plain(token: str) -> str:
    return token.removesuffix(END).lstrip("".join(BEFORE))


def _inside(word: str, tokenizer) -> str:
    """`word` as it stands behind another one, where the space between them belongs to it."""
    return f" {word.strip()}" if _marked(tokenizer) in BEFORE and word.strip() else word


@lru_cache(maxsize=4)
def _marked(tokenizer) -> str:
    """The mark of words in a vocabulary: at their ends, or before them."""
    counts = Counter(mark for token in tokenizer.get_vocab() for mark in (END, *BEFORE) if mark in token)
    return counts.most_common(1)[0][0] if counts else END


def place(word: str, tokenizer) -> int | None:
    """The place in the vocabulary of a word that is one token."""
    mark = _marked(tokenizer)
    return tokenizer.get_vocab().get(f"{word}{END}" if mark == END else f"{mark}{word}")


def rare_from(tokenizer) -> int:
    """The place from which on tokens are rare."""
    return round(RARE_SHARE * len(tokenizer))


def candidates(tokenizer, count: int) -> list[Candidate]:
    """The `count` best by vocabulary alone: rare and unlike any word. The same for every run."""
    return list(_ranked(tokenizer)[:count])


@lru_cache(maxsize=2)  # half a second, and asked for by every warning
def _ranked(tokenizer) -> tuple[Candidate, ...]:
    mark, first = _marked(tokenizer), rare_from(tokenizer)
    form = re.compile(r"([a-z]{2,12})</w>" if mark == END else mark + r"([a-z]{2,12})")
    found = ((form.fullmatch(token), rank) for token, rank in tokenizer.get_vocab().items())
    words = {match[1]: rank for match, rank in found if match}
    surprise = _letter_model(words, first)
    usual = sum(map(surprise, words)) / len(words)
    pool = [
        Candidate(word, rank, surprise(word) - usual)
        for word, rank in words.items()
        if rank >= first and 3 <= len(word) <= 4 and word not in MEANINGS and not _club(word) and len(set(word)) > 1
    ]
    return tuple(
        sorted(pool, key=lambda c: (-(c.strangeness + 2 * (c.rank - first) / (len(tokenizer) - first)), c.word))
    )


def _club(word: str) -> bool:
    """Football and cricket clubs (wafc, pafc, wccc) are the largest group of rare abbreviations."""
    return word.endswith(("fc", "cc", "rfu", "afl"))


def _letter_model(words: dict[str, int], rare: int):
    """Mean surprise of a word in bits a letter, under letter pairs counted over the frequent words, before place `rare`."""
    pairs, singles = Counter(), Counter()
    for word, rank in words.items():
        if rank < rare:
            marked = f"^{word}$"
            pairs.update(pairwise(marked))
            singles.update(marked[:-1])

    def surprise(word: str) -> float:
        marked = f"^{word}$"
        return sum(-math.log2((pairs[a, b] + 0.5) / (singles[a] + 14)) for a, b in pairwise(marked)) / len(word)

    return surprise


@torch.no_grad()
def effects(
    parts, words: list[str], class_name: str, device: torch.device | str = "cpu", draws: int = DRAWS
) -> dict[str, float]:
    """How far each word moves the prediction, as a share of how far the class moves it from the empty prompt's.

    Root mean squares over noises at timesteps in the noisier half of the schedule, where the content is decided.
    """
    from trainer.draw.painter import Painter
    from trainer.draw.sampler import Look, noise_of
    from trainer.policy import Drawing

    plain = f"a photo of a {class_name}"
    prompts = {word: f"a photo of a {word} {class_name}" for word in words}
    texts = {}
    for prompt in ["", plain, *prompts.values()]:
        texts[prompt] = {name: rows[0].float() for name, rows in parts.family.encode_text(parts, [prompt]).items()}
    side, latent = parts.side or parts.family.resolution, parts.latents
    look = Look((side, side))
    samples = noise_of(range(draws), (latent.channels, side // latent.factor, side // latent.factor))
    timesteps = parts.noise().at(torch.linspace(0.5, 1, draws))
    with Painter(parts, look, Drawing(), torch.device(device), texts).on_card(list(texts)) as brush:

        def answer(prompt: str) -> torch.Tensor:
            return brush.predict(samples, timesteps, [prompt] * draws)

        base = answer(plain)
        scale = (base - answer("")).square().mean().sqrt()
        return {word: float((answer(prompt) - base).square().mean().sqrt() / scale) for word, prompt in prompts.items()}


def propose(
    tokenizer, count: int, parts=None, class_name: str = "dog", device: torch.device | str = "cpu"
) -> list[Candidate]:
    """The best candidates first; with `parts` those that change the prediction least."""
    if parts is None:
        return candidates(tokenizer, count)
    pool = candidates(tokenizer, max(TRIED, count))
    tried = effects(parts, [candidate.word for candidate in pool], class_name, device)
    return sorted((Candidate(c.word, c.rank, c.strangeness, tried[c.word]) for c in pool), key=lambda c: c.effect)[
        :count
    ]


def warnings_for(identifier: str, class_name: str | None, tokenizer) -> list[Notice]:
    """What is wrong with an identifier, each with better ones; nothing where it is good."""
    text = _complaint(identifier, class_name, tokenizer)
    if not text:
        return []
    better = " or ".join(candidate.word for candidate in candidates(tokenizer, 3))
    return [
        Notice(text, f"take another --identifier, such as {better} (more: python -m trainer identifier)", "warning")
    ]


def _complaint(identifier: str, class_name: str | None, tokenizer) -> str:
    word, tokens = identifier.lower().strip(), pieces(identifier, tokenizer)
    if not tokens:
        return "the identifier is empty, so the subject has no name of its own"
    if class_name and word == class_name.lower():
        return f"the identifier '{identifier}' is the class itself: all of the class would turn into the subject"
    if len(tokens) > 1:
        split = " + ".join(tokens)
        return (
            f"the identifier '{identifier}' is {len(tokens)} tokens to this model ({split}), each with its own meaning"
        )
    if word in MEANINGS:
        return f"the identifier '{identifier}' already means {MEANINGS[word]} to the model, which can show in pictures"
    rank = place(word if _marked(tokenizer) == END else identifier.strip(), tokenizer)  # only CLIP's are lower case
    if rank is not None and rank < rare_from(tokenizer):
        where = f"place {rank:,} of {len(tokenizer):,} in the vocabulary"
        return f"the identifier '{identifier}' is a frequent word or name ({where}): the model has pictures for it"
    return ""


def main(config: Config, count: int = 10, words: Sequence[str] = ()) -> int:
    """`python -m trainer identifier [WORD ...]`: what is to be said about these words, or a table of proposals."""
    if count < 1:
        raise ConfigError(f"{count} proposals are none", "ask for at least 1")
    class_name = config.data.class_name or "dog"
    tokenizer, parts = _model(config)
    asked = list(words) or [config.data.identifier]
    if not words:
        how = f"tried on {parts.source}" if parts else "by vocabulary alone; --model.name tries them on a model"
        print(f"Rare identifiers for a {class_name}, best first ({how}):")
        _table(propose(tokenizer, count, parts, class_name))
    tried = effects(parts, asked, class_name) if parts else {}
    for word in asked:
        complaint = _complaint(word, config.data.class_name, tokenizer) or f"nothing speaks against '{word}'"
        print(
            f"{complaint[0].upper()}{complaint[1:]}." + (f" Effect on the picture: {tried[word]:.0%}." if tried else "")
        )
    if parts:
        print("Effect: how far the word moves the prediction, where going from no prompt to the class is 100%.")
    print(f"Use one with: python -m trainer --identifier WORD --class_name '{class_name}' --instance_data_dir PHOTOS")
    return 0


def _table(found: list[Candidate]) -> None:
    tried = not math.isnan(found[0].effect)
    print(f"  {'word':8}{'place in vocabulary':>20}{'unlike words':>15}" + (f"{'effect':>10}" if tried else ""))
    for each in found:
        effect = f"{each.effect:>10.0%}" if tried else ""
        print(f"  {each.word:8}{each.rank:>20,}{each.strangeness:>+10.1f} bits{effect}")


def _model(config: Config):
    """(tokenizer, parts or None): the named model, else the vocabulary that all families share."""
    if config.model.name is None:
        from trainer.models.sd.text import tokenizer

        return tokenizer(), None
    from trainer.models import Source, load

    parts = load(Source.of(config.model))
    return parts.tokenizers[0], parts
