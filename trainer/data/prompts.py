"""The words that are trained: how prompts are made, what the person's own say, and what would defeat the method.

Prior preservation keeps the class by pulling "a photo of a dog" towards other dogs while "a photo of hta dog" is pulled
towards the subject. That works only where the two prompts differ, and differ in a word that means nothing yet. Prompts
that break this are refused (`--allow_prompts` overrides); what is odd is said once; a stray article is mended.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from trainer.data.account import Photo, PhotoSet, counted, names
from trainer.data.words import listed
from trainer.errors import ConfigError
from trainer.settings.config import Config, Data

RARE_RANK = (
    40_000  # of 49,152: below this a token was frequent enough to be a word, a name or an abbreviation people use
)
ARTICLES = frozenset("a an the my your his her our their this that".split())  # and what stands in their place
MANY = frozenset("people men women children mice geese feet".split())  # plurals that do not end in s
A_PHOTO_OF = r"^(an? |the )?(photo|picture|image) of "
SIGNS = re.compile(
    r"<(lora|lyco|hypernet):[^>]*>|\([^()]*:\d+(\.\d+)?\)|\bBREAK\b|\{\w*\}|\[\w+\]"
)  # for a WebUI's prompts, or places that another program fills ([filewords], {name}); nothing to a model
USUAL_NAMES = frozenset("sks ohwx zwx hta tok".split())  # what guides, and this program, call a subject
SAY_NOTHING = frozenset(
    """a an the of in on at with and or to from for by is are my your his her our their this that one very
    photo photograph picture image portrait painting drawing closeup close up shot rendering""".split()
)


# --------------------------------------------------------------------------------------------------------- making them


def instance_prompt(data: Data) -> str:
    """The prompt of photos without words of their own."""
    parts = ("a photo of", data.identifier, data.class_name or "")
    return fill(data.instance_prompt, data) if data.instance_prompt else " ".join(filter(None, parts))


def class_prompt(config: Config) -> str:
    """The prompt of the class. Raises ConfigError where no class is named."""
    if config.prior.class_prompt:
        return fill(config.prior.class_prompt, config.data)
    if not config.data.class_name:
        raise ConfigError(
            "prior preservation needs to know the class of the subject",
            "add --class_name dog (or --class_prompt 'a photo of a dog')",
        )
    return f"a photo of {with_article(config.data.class_name)}"


def with_article(noun: str) -> str:
    """ "a dog", "an apple", "cats"."""
    if plural(noun):
        return noun
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"


def plural(noun: str) -> bool:
    """Whether a noun's last word looks like more than one: cats, shoes, people, but neither glass, bus nor iris."""
    last = noun.split()[-1].lower() if noun.split() else ""
    of_many = last.endswith("s") and not last.endswith(("ss", "us", "is", "os", "ics", "news"))
    return last in MANY or (len(last) > 3 and of_many)


def fill(prompt: str, data: Data) -> str:
    """A prompt with its placeholders filled in: {identifier} and {class_name} as --help writes them, and ai-toolkit's
    [trigger]. Other braces are the person's own."""
    if "{class_name}" in prompt and not data.class_name:
        raise ConfigError(f"the prompt '{prompt}' has a place for a class name, and none is given", "add --class_name")
    for place, word in (
        ("{identifier}", data.identifier),
        ("{class_name}", data.class_name or ""),
        ("[trigger]", data.identifier),
    ):
        prompt = prompt.replace(place, word)
    return prompt


# ------------------------------------------------------------------------------------------------ mending, before a scan


def mend(config: Config, captions: Callable[[], Sequence[str]]) -> Iterator[str]:
    """Set right what is typed askew, and say so: an article before the class, and an identifier that stands in the
    person's own words but was not named as one. `captions` are looked up only where nobody named an identifier."""
    data = config.data
    _without_blanks(config)
    yield from _mend_class(config)
    if not config.chosen("data.identifier"):
        typed = [data.instance_prompt] if config.chosen("data.instance_prompt") else []
        texts = typed or captions()
        if texts and (word := _rare_word(texts, config)) and word not in words_of(data.identifier):
            config.settle("data.identifier", word, "the prompt" if typed else "the captions")
    for key in ("data.instance_prompt", "prior.class_prompt"):
        if (prompt := config.value(key)) and fill(prompt, data) != prompt:
            config.settle(key, fill(prompt, data), config.provenance.get(key, "default"))
    filled = [fill(prompt, data) for prompt in config.sample.validation_prompt]
    if filled != config.sample.validation_prompt:
        config.settle("sample.validation_prompt", filled, config.provenance.get("sample.validation_prompt", "default"))


def _without_blanks(config: Config) -> None:
    """Take what holds no letter, such as a script's variable that was never set, for what was not typed."""
    config.data.identifier = " ".join(config.data.identifier.split())
    for key in ("data.class_name", "data.instance_prompt", "prior.class_prompt"):
        value = config.value(key)
        if value is not None and not value.strip():
            config.settle(key, None, "default")


def _mend_class(config: Config) -> Iterator[str]:
    """What a class is called, without its article; and what is odd about it."""
    data, words = config.data, (config.data.class_name or "").split()
    if not words:
        return
    name = re.sub(A_PHOTO_OF, "", " ".join(words), flags=re.IGNORECASE)
    first, _, rest = name.partition(" ")
    name = rest if first.lower() in ARTICLES else name
    if name.split() != words:
        origin = config.provenance.get("data.class_name", "default")
        config.settle("data.class_name", name or None, f"{origin}, without what prompts bring")
        yield f"class_name '{' '.join(words)}' is taken as '{name}': prompts bring their own article"
    if data.class_name and plural(data.class_name):
        yield (
            f"class_name '{data.class_name}' reads like a plural, so the class is '{with_article(data.class_name)}'; "
            "where the photos show one, name one"
        )
    names = [word for word in words if word.lower() in USUAL_NAMES and word.lower() not in words_of(data.identifier)]
    if names:
        rest = " ".join(word for word in words if word not in (*names, *ARTICLES)) or "dog"
        yield (
            f"class_name '{data.class_name}' has '{names[0]}' in it, which names one subject and no class; write it as "
            f"{shlex.join(['--identifier', names[0], '--class_name', rest])}"
        )


def _rare_word(texts: Sequence[str], config: Config) -> str:
    """The first word in most of `texts` that is rare and not the class's; empty where there is none. What guides call a
    subject is one before any other; words with an apostrophe ("it's", "dog's") are several tokens, but nobody's name."""
    known = set(words_of(f"{config.data.class_name or ''} {config.prior.class_prompt or ''}")) | SAY_NOTHING
    texts = [re.sub(r"[{\[]\w+[}\]]", " ", text) for text in texts]  # placeholders are no words
    sets = [set(words_of(text)) for text in texts]
    words, usual = words_of(" ".join(texts)), USUAL_NAMES | set(words_of(config.data.identifier))
    for word in dict.fromkeys([*(word for word in words if word in usual), *words]):
        in_most = 2 * sum(word in each for each in sets) > len(sets)
        if in_most and word not in known and not {"'", "\u2019"} & set(word) and (word in USUAL_NAMES or rare(word)):
            return word
    return ""


def rare(word: str) -> bool:
    """Whether CLIP has hardly met a word: a token late in its vocabulary, or no token at all."""
    tokens = _tokenizer().tokenize(word)
    return len(tokens) > 1 or _tokenizer().convert_tokens_to_ids(tokens[0]) >= RARE_RANK


def words_of(prompt: str) -> list[str]:
    return re.findall(r"\w+(?:['-]\w+)*", prompt.casefold())


@cache
def _tokenizer():
    from trainer.models.sd.text import tokenizer  # all families speak it

    return tokenizer()


# ----------------------------------------------------------------------------------------------------- judging, after it


def check(config: Config, photos: PhotoSet, prior: bool, windows: bool = True) -> list[str]:
    """What is odd about the prompts, one sentence each. Raises ConfigError for what defeats prior preservation. `windows`:
    whether the model reads CLIP's windows of 75 tokens; the others read longer texts than anybody writes."""
    if prior and not config.data.allow_prompts:
        _refuse(config, photos)
    return [*_odd(config, photos, prior), *(_too_long(photos, config.model.max_token_length) if windows else ())]


def _refuse(config: Config, photos: PhotoSet) -> None:
    of_class, name = class_prompt(config), config.data.identifier
    anyway = "or add --allow_prompts"
    if config.data.class_name and words_of(name) == words_of(config.data.class_name):
        raise ConfigError(
            f"the identifier is '{name}', and so is the class: every {name} would turn into the subject",
            f"name the subject with a rare word (--identifier hta), {anyway}",
        )
    used = set(words_of(" ".join(photos.prompts)))
    named = [word for word in words_of(name) if word in used and word not in SAY_NOTHING]
    if named and set(named) <= set(words_of(of_class)):
        flag = "--class_prompt" if config.prior.class_prompt else "--class_name"
        raise ConfigError(
            f"the class prompt '{of_class}' contains the identifier '{name}': the class would be held where the subject is",
            f"leave it out of {flag}, {anyway}",
        )
    same = [photo for photo in photos.photos if not _beyond(photo.prompt, of_class)]
    if len(same) == len(photos.photos):
        raise ConfigError(
            f"the photos' prompt '{same[0].prompt}' says nothing that the class prompt '{of_class}' does not: the photos "
            "pull one prompt one way, the class images the other",
            f"name the subject with a rare word, as in '{_example(config)}', or train without the class "
            f"(--no-with_prior_preservation), {anyway}",
        )


def _beyond(prompt: str, other: str) -> set[str]:
    """Words of `prompt` that mean something and are not in `other`."""
    return set(words_of(prompt)) - SAY_NOTHING - set(words_of(other))


def _example(config: Config) -> str:
    """How a prompt is meant: a rare word, and the class as the person calls it."""
    usable = set(words_of(config.data.identifier)) - SAY_NOTHING - _class_words(config)
    name = config.data.identifier if usable else Data().identifier
    told = [
        word for word in words_of(config.prior.class_prompt or "") if word not in {name, *SAY_NOTHING, *USUAL_NAMES}
    ]
    return " ".join(("a photo of", name, config.data.class_name or " ".join(told) or "dog"))


def _odd(config: Config, photos: PhotoSet, prior: bool) -> Iterator[str]:
    data, captioned = config.data, [photo for photo in photos.photos if photo.captioned]
    name = set(words_of(data.identifier)) - SAY_NOTHING
    common = {photo.prompt for photo in photos.photos} - {photo.prompt for photo in captioned}
    for prompt in sorted(common):
        words = set(words_of(prompt))
        if not name & words and not any(word in USUAL_NAMES or rare(word) for word in words - SAY_NOTHING):
            lacks = " and not the class" if _class_words(config) and not _class_words(config) & words else ""
            yield (
                f"the prompt '{prompt}' has no word of its own for the subject{lacks}: what it says in common words, all of "
                f"them will show; write it as '{_example(config)}'"
            )
    signs = {sign[0]: photo for photo in photos.photos if (sign := SIGNS.search(photo.prompt))}
    if signs:
        yield f"{listed(list(signs), 3)} in prompts mean something to other programs only: here they are trained as words"
    if prior and captioned:
        same = [photo for photo in captioned if not _beyond(photo.prompt, class_prompt(config))]
        if same:
            yield f"{names(same)}: the caption says no more than the class prompt '{class_prompt(config)}'"
    yield from _about_captions(config, captioned, len(photos.photos))


def _about_captions(config: Config, captioned: list[Photo], count: int) -> Iterator[str]:
    """Whether captions name the subject, of `count` photos, and what they say beside it in every one."""
    identifier = config.data.identifier
    name = set(words_of(identifier)) - SAY_NOTHING
    without = [photo for photo in captioned if name and not name & set(words_of(photo.prompt))]
    everywhere = set.intersection(*(set(words_of(photo.prompt)) for photo in captioned)) if captioned else set()
    if without and len(without) == count and not config.chosen("data.identifier"):
        shared = [
            word for word in words_of(captioned[0].prompt) if word in everywhere - SAY_NOTHING - _class_words(config)
        ]
        into = f"the words in all of them ({', '.join(dict.fromkeys(shared[:3]))})" if shared else "ordinary words"
        yield (
            f"no caption has '{identifier}' or another rare word, which is right for a style; the looks of one subject would "
            f"go into {into}: write '{identifier}' before the word for it in each, or add --no-captions"
        )
    elif without:
        lacks, teach = ("does", "that photo teaches") if len(without) == 1 else ("do", "those photos teach")
        yield (
            f"{len(without)} of {counted(len(captioned), 'caption')} {lacks} without the identifier '{identifier}' "
            f"({names(without)}): {teach} it nothing"
        )
    if len(captioned) >= 3 and name:
        of_class = _class_words(config) or _behind(identifier, captioned)
        beside = everywhere - SAY_NOTHING - name - of_class
        beside = [word for word in words_of(captioned[0].prompt) if word in beside and not rare(word)]
        if beside and name & everywhere:
            yield (
                f"every caption says {', '.join(dict.fromkeys(beside))} beside '{identifier}': the two will be learned "
                "as one; leave it out where it is always so, or vary the words"
            )


def _behind(identifier: str, captioned: list[Photo]) -> set[str]:
    """The word behind the identifier, where every caption has the same: the class, though nobody named one."""
    last = words_of(identifier)[-1]
    found = set()
    for photo in captioned:
        words = words_of(photo.prompt)
        found |= set(words[words.index(last) + 1 :][:1]) if last in words else set()
    return found if len(found) == 1 else set()


def _class_words(config: Config) -> set[str]:
    return set(words_of(config.data.class_name or config.prior.class_prompt or "")) - SAY_NOTHING


def _too_long(photos: PhotoSet, window: int) -> Iterator[str]:
    """Prompts that the text encoder cuts off, with what is lost. A token is a byte or more, so short ones need no count."""
    for prompt in photos.prompts:
        cut = cut_off(prompt, window)
        if cut:
            more = "" if window == 225 else f"; --max_token_length {window + 75} reads more"
            of = [photo for photo in photos.photos if photo.prompt == prompt]
            yield f"the prompt of {names(of)} is too long: {window} tokens are read and not '{cut}'{more}"


def cut_off(prompt: str, window: int = 75) -> str:
    """The end of a prompt that does not fit; empty where all of it does."""
    if len(prompt.encode()) <= window:
        return ""
    words, tokens = prompt.split(), 0
    for index, word in enumerate(words):  # no token spans two words, so they are counted one by one
        tokens += len(_tokenizer().tokenize(word))
        if tokens > window:
            return " ".join(words[index:])
    return ""
