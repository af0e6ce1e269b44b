"""Attributes -> caption, in varied words and order, with parts left out. Seeded, so repeatable."""

import random
from collections.abc import Callable

from training.embedded_model.attributes import HAIR_TOPS, Attributes, seeded

_SKIN_WORDS = {
    "dark": ("dark",) * 8 + ("black", "very dark"),
    "brown": ("brown",),
    "tan": ("tan",) * 6 + ("tanned", "olive"),
    "light": ("light",),
    "pale": ("pale",) * 6 + ("fair", "white"),
}
# {c} is the colour with a blank behind it, or nothing where the colour is left out.
_HAIR_FORMS = {
    "short": ("short {c}hair",) * 4 + ("{c}short hair", "a short {c}haircut"),
    "long": ("long {c}hair",) * 4 + ("long straight {c}hair", "{c}long hair", "straight {c}hair"),
    "bob": ("a {c}bob", "{c}bob", "a {c}bob haircut", "{c}bob hair", "{c}hair in a bob"),
    "bun": ("{c}hair in a bun", "a {c}bun", "{c}bun", "{c}hair bun"),
    "curly": ("curly {c}hair",) * 3 + ("{c}curly hair", "big curly {c}hair"),
    "wavy": ("wavy {c}hair", "long wavy {c}hair", "{c}wavy hair"),
    "short curly": ("short curly {c}hair",) * 2 + ("{c}short curly hair",),
    "afro": ("a {c}afro", "{c}afro", "{c}afro hair"),
    "dreadlocks": ("{c}dreadlocks",) * 2 + ("{c}dreads",),
    "bald": ("bald", "a bald head", "no hair", "bald head"),
}
_HAT_FORMS = {
    "hat": ("{c}hat",),
    "beanie": ("{c}beanie",) * 3 + ("{c}winter hat", "{c}knit hat", "{c}cap"),
    "hijab": ("{c}hijab",) * 4 + ("{c}headscarf",),
    "turban": ("{c}turban",),
}
_GLASSES_WORDS = {
    "glasses": ("glasses",) * 4 + ("square glasses", "black glasses", "eyeglasses", "spectacles"),
    "round glasses": ("round glasses",),
    "sunglasses": ("sunglasses",) * 4 + ("black sunglasses", "dark glasses", "shades"),
    "eyepatch": ("an eyepatch",) * 3 + ("a black eyepatch", "eyepatch", "an eye patch"),
}
_BEARD_FORMS = {
    "beard": ("{c}beard",) * 4 + ("full {c}beard",),
    "long beard": ("long {c}beard",) * 2 + ("big {c}beard",),
    "moustache": ("{c}moustache",) * 2 + ("{c}mustache",),
}
_CLOTHES_FORMS = {
    "hoodie": ("{c}hoodie",) * 5 + ("hooded {c}sweatshirt",),
    "shirt": ("{c}shirt", "{c}t-shirt"),
    "v-neck": ("{c}v-neck shirt", "{c}v-neck", "{c}v-neck t-shirt"),
    "sweater": ("{c}sweater",) * 3 + ("{c}jumper", "{c}pullover"),
    "jacket": ("{c}jacket",) * 2 + ("{c}blazer",) * 2 + ("{c}suit", "{c}coat"),
    "overalls": ("{c}overalls",) * 3 + ("{c}dungarees",),
    "dress": ("{c}dress",) * 2 + ("{c}top", "{c}tank top"),
}
_EXPRESSION_WORDS = {
    "smiling": ("smiling",) * 4 + ("happy", "a smile", "laughing", "a happy face"),
    "slight smile": ("a slight smile", "slight smile", "a small smile", "smirking"),
    "sad": ("sad",) * 3 + ("frowning", "unhappy", "a sad face"),
    "serious": ("serious",) * 3 + ("a neutral expression", "a serious face", "neutral face"),
    "angry": ("angry",) * 3 + ("grimacing", "an angry face", "mad"),
    "surprised": ("surprised",) * 3 + ("shocked", "open mouth", "screaming", "a surprised face"),
    "tongue": ("tongue out",) * 2 + ("sticking out tongue", "showing the tongue"),
}
_EYES_WORDS = {
    "closed": ("closed eyes",) * 2 + ("eyes closed", "sleeping"),
    "hearts": ("heart eyes",) * 3 + ("hearts in the eyes", "in love"),
    "winking": ("winking",) * 3 + ("a wink", "one eye closed"),
}
_OPENINGS = (
    ("portrait of {p}",) * 5
    + ("{p}",) * 5
    + ("avatar of {p}", "a portrait of {p}", "an avatar of {p}", "picture of {p}", "photo of {p}")
    + ("a photo of {p}", "drawing of {p}", "a cartoon of {p}", "illustration of {p}")
    + ("avatar", "portrait", "cartoon avatar", "headshot of {p}", "face of {p}", "")
)
_QUALITY_TAGS = (
    *("high quality", "best quality", "masterpiece", "highly detailed", "detailed", "simple"),
    *("vector art", "clean", "flat illustration", "cartoon style", "8k", "4k", "beautiful"),
    *("professional", "digital art", "studio lighting", "sharp focus", "flat design", "cute"),
)


def _colour(word: str, rng: random.Random, keep: float) -> str:
    """The colour with a blank behind it; nothing when it is left out."""
    if rng.random() > keep:
        return ""
    if rng.random() < 0.15:
        word = {"grey": "gray", "blonde": "blond"}.get(word, word)
    return word + " "


def _article(phrase: str) -> str:
    if phrase.endswith(("overalls", "dungarees")):
        return phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _fill(forms: tuple[str, ...], colour: str, rng: random.Random) -> str:
    """One form with the colour in it, its article corrected ("a orange bob")."""
    phrase = rng.choice(forms).format(c=colour)
    if phrase.startswith("a ") and phrase[2] in "aeiou":
        return "an " + phrase[2:]
    return phrase


def _person(a: Attributes, rng: random.Random) -> str:
    draw = rng.random()
    if a.beard != "none":
        noun = "man" if draw < 0.6 else "guy" if draw < 0.65 else "person"
    elif a.hair in ("long", "bob", "bun", "wavy") or a.hat == "hijab":
        noun = "woman" if draw < 0.5 else "girl" if draw < 0.58 else "person"
    elif a.hair in ("short", "bald", "short curly"):
        noun = "man" if draw < 0.4 else "boy" if draw < 0.48 else "person"
    else:
        noun = "person"
    if a.skin != "none" and rng.random() < 0.05:
        noun = f"{a.skin}-skinned {noun}"
    return f"a {noun}"


def _hair_or_hat(a: Attributes, rng: random.Random, colour: float) -> list[str]:
    if a.hat == "none":
        if rng.random() < 0.08 and a.hair != "bald":
            return [_colour(a.hair_colour, rng, 1.0) + "hair"]
        return [_fill(_HAIR_FORMS[a.hair], _colour(a.hair_colour, rng, colour), rng)]
    hat = _article(_fill(_HAT_FORMS[a.hat], _colour(a.hat_colour, rng, colour), rng))
    parts = [("wearing " if rng.random() < 0.5 else "") + hat]
    if rng.random() < 0.2:
        # The drawings hide hair under hats; a prompt with both must still give the hat.
        hidden = rng.choice([h for h in HAIR_TOPS if h != "bald"])
        parts.append(_fill(_HAIR_FORMS[hidden], _colour(a.hair_colour, rng, colour), rng))
    return parts


def _clothes(a: Attributes, rng: random.Random, colour: float) -> str:
    word = _colour(a.clothes_colour, rng, colour)
    if word and rng.random() < 0.05:
        return rng.choice(
            (f"{word}clothes", f"wearing {word}clothes", f"dressed in {word}".strip())
        )
    phrase = _article(_fill(_CLOTHES_FORMS[a.clothes], word, rng))
    return rng.choice(("wearing ", "wearing ", "wearing ", "in ", "")) + phrase


def _background(a: Attributes, rng: random.Random) -> str:
    phrase = _colour(a.background, rng, 1.0) + rng.choice(("background",) * 6 + ("backdrop",))
    return "on " + _article(phrase) if rng.random() < 0.15 else phrase


def _parts(a: Attributes, rng: random.Random, colour: float) -> dict[str, Callable[[], list[str]]]:
    """Attribute name -> its phrases; only what the picture shows."""
    parts: dict[str, Callable[[], list[str]]] = {
        "skin": lambda: [rng.choice(_SKIN_WORDS[a.skin]) + " skin"],
        "hair": lambda: _hair_or_hat(a, rng, colour),
        "clothes": lambda: [_clothes(a, rng, colour)],
        "expression": lambda: [rng.choice(_EXPRESSION_WORDS[a.expression])],
        "background": lambda: [_background(a, rng)],
    }
    if a.glasses != "none":
        worn = rng.choice(("", "", "wearing "))
        parts["glasses"] = lambda: [worn + rng.choice(_GLASSES_WORDS[a.glasses])]
    if a.beard != "none":
        said = colour if rng.random() < 0.5 else 0.0
        parts["beard"] = lambda: [
            _article(_fill(_BEARD_FORMS[a.beard], _colour(a.hair_colour, rng, said), rng))
        ]
    if a.eyes != "open":
        parts["eyes"] = lambda: [rng.choice(_EYES_WORDS[a.eyes])]
    return parts


def _noise_word(rng: random.Random) -> str:
    """A word that means nothing to this model, in some script: it must learn to pass over it."""
    first, last = rng.choice(
        ((97, 122),) * 4
        + ((48, 57), (0x4E00, 0x9FA5), (0x410, 0x44F), (0x3041, 0x3096))
        + ((0x1F300, 0x1F64F), (0x627, 0x64A), (0xC0, 0xFF))
    )
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 7)))


def _join(opening: str, parts: list[str], rng: random.Random) -> str:
    """The opening and the parts as a list with commas, or as a sentence with "with" and "and"."""
    if not opening:
        return ", ".join(parts)
    plain = [p for p in parts if not p.startswith(("wearing", "in ", "on a"))]
    if parts and parts[0] in plain and rng.random() < 0.7 and opening[-1].isalpha():
        adverbial = parts[0].split()[0] in ("smiling", "laughing", "winking", "frowning")
        opening += " " if adverbial else " with "
        return opening + _commas(parts, rng)
    if parts and parts[0].startswith(("wearing", "in ")) and rng.random() < 0.6:
        return opening + " " + _commas(parts, rng)
    return opening + ", " + _commas(parts, rng)


def _commas(parts: list[str], rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.15 and len(parts) > 1:
        return ", ".join(parts[:-1]) + " and " + parts[-1]
    if draw < 0.2:
        return " and ".join(parts)
    if draw < 0.25:
        return " ".join(parts)
    return ", ".join(parts)


def caption(attributes: Attributes, rng: random.Random) -> str:
    """One caption of this avatar; the same `rng` state gives the same words."""
    complete = rng.random() < 0.4
    colour = 1.0 if complete else 0.85
    keep = 1.0 if complete else rng.uniform(0.2, 1.0)
    makers = _parts(attributes, rng, colour)
    names = [name for name in makers if rng.random() < keep]
    if not names:
        names = [rng.choice(list(makers))]
    if rng.random() < 0.7:
        rng.shuffle(names)
    parts = [phrase for name in names for phrase in makers[name]()]
    if rng.random() < 0.1:
        parts.insert(rng.randint(0, len(parts)), rng.choice(_QUALITY_TAGS))
    if rng.random() < 0.1:
        parts.insert(rng.randint(0, len(parts)), _noise_word(rng))
    opening = rng.choice(_OPENINGS).format(p=_person(attributes, rng))
    return _join(opening, parts, rng) if parts else opening


def plain_caption(a: Attributes) -> str:
    """The full prompt in the basic words and a fixed order, as the benchmark asks it."""
    rng = seeded(0)
    hair = ""
    if a.hat == "none":
        form = _HAIR_FORMS[a.hair][0]
        hair = ", " + form.format(c="" if a.hair == "bald" else a.hair_colour + " ")
    hat = "" if a.hat == "none" else ", " + _article(f"{a.hat_colour} {a.hat}")
    glasses = "" if a.glasses == "none" else ", " + _GLASSES_WORDS[a.glasses][0]
    beard = "" if a.beard == "none" else ", " + _fill(("a " + a.beard,), "", rng)
    eyes = "" if a.eyes == "open" else ", " + _EYES_WORDS[a.eyes][0]
    clothes = _article(_CLOTHES_FORMS[a.clothes][0].format(c=a.clothes_colour + " "))
    return (
        f"portrait of a person with {a.skin} skin{hair}{hat}{glasses}{beard}{eyes}, "
        f"{_EXPRESSION_WORDS[a.expression][0]}, wearing {clothes}, {a.background} background"
    )
