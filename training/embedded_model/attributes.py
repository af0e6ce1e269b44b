"""What an avatar shows: the attribute tuple, its vocabulary, seeded sampling and the held-out set.

Every picture of the training set is drawn from one `Attributes` value and every caption is made
from the same value, so that words and pixels cannot disagree.
"""

import hashlib
import random
from dataclasses import astuple, dataclass

# Clean, well separated RGB values (hex): a prompt says the word, a test measures the pixels.
COLOURS: dict[str, str] = {
    "red": "#dc1e23",
    "green": "#23a03c",
    "blue": "#2850dc",
    "yellow": "#fadc28",
    "orange": "#fa8c14",
    "purple": "#8232aa",
    "pink": "#fa96c3",
    "black": "#1c1c1e",
    "white": "#fafafa",
    "grey": "#8c8c91",
    "brown": "#784623",
}
HAIR_COLOURS: dict[str, str] = COLOURS | {"blonde": "#ebc86e"}
SKINS: dict[str, str] = {
    "dark": "#4e2e1c",
    "brown": "#875430",
    "tan": "#c88c5a",
    "light": "#f0be96",
    "pale": "#ffe1cd",
}

# word -> avataaars `top` variants. One word means few drawings, so that the word is learnable.
HAIR_TOPS: dict[str, tuple[str, ...]] = {
    "short": ("shortFlat", "shortRound"),
    "long": ("straight01", "straight02"),
    "bob": ("bob",),
    "bun": ("bun",),
    "curly": ("curly",),
    "wavy": ("curvy",),
    "short curly": ("shortCurly",),
    "afro": ("fro",),
    "dreadlocks": ("dreads",),
    "bald": (),
}
HAT_TOPS: dict[str, tuple[str, ...]] = {
    "hat": ("hat",),
    "beanie": ("winterHat03",),
    "hijab": ("hijab",),
    "turban": ("turban",),
}
GLASSES: dict[str, str] = {
    "glasses": "prescription02",
    "round glasses": "round",
    "sunglasses": "sunglasses",
    "eyepatch": "eyepatch",
}
BEARDS: dict[str, str] = {
    "beard": "beardMedium",
    "long beard": "beardMajestic",
    "moustache": "moustacheMagnum",
}
CLOTHES: dict[str, str] = {
    "hoodie": "hoodie",
    "shirt": "shirtCrewNeck",
    "v-neck": "shirtVNeck",
    "sweater": "collarAndSweater",
    "jacket": "blazerAndShirt",
    "overalls": "overall",
    "dress": "shirtScoopNeck",
}
# word -> (mouth variants, eyebrow variant)
EXPRESSIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "smiling": (("smile",), "defaultNatural"),
    "slight smile": (("twinkle",), "defaultNatural"),
    "sad": (("sad",), "sadConcernedNatural"),
    "serious": (("serious",), "defaultNatural"),
    "angry": (("grimace",), "angryNatural"),
    "surprised": (("screamOpen",), "raisedExcitedNatural"),
    "tongue": (("tongue",), "defaultNatural"),
}
EYES: dict[str, str] = {
    "open": "default",
    "closed": "closed",
    "hearts": "hearts",
    "winking": "wink",
}

# One colour combination in this many is kept out of training.
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Attributes:
    """One avatar. Words are the keys of the tables above; "none" where a part is absent."""

    background: str
    skin: str
    hair: str  # a key of HAIR_TOPS, or "none" under a hat
    hair_colour: str  # also the beard's colour
    hat: str  # a key of HAT_TOPS, or "none"
    hat_colour: str  # "none" without a hat
    glasses: str
    beard: str
    clothes: str
    clothes_colour: str
    expression: str
    eyes: str
    variant: int  # picks among several drawings of the same word

    def key(self) -> str:
        """A stable text for hashing and for files."""
        return "|".join(map(str, astuple(self)))


def top_colour(attributes: Attributes) -> str:
    """The colour word on top of the head: the hat's where there is one, else the hair's."""
    if attributes.hat != "none":
        return attributes.hat_colour
    return attributes.hair_colour


def is_held_out(attributes: Attributes) -> bool:
    """True for combinations that are never rendered for training.

    The combination is (background, skin, colour on top of the head, clothes colour): SHA-256 of
    these four words, one in `HELD_OUT_ONE_IN`. It does not look at the other attributes, so a
    held-out prompt asks for a colour scheme that no training picture ever had, whatever the style
    of hair or clothes.
    """
    scheme = (
        attributes.background,
        attributes.skin,
        top_colour(attributes),
        attributes.clothes_colour,
    )
    digest = hashlib.sha256("|".join(scheme).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def _draw(rng: random.Random) -> Attributes:
    """One avatar from the prior, held out or not."""
    colours = list(COLOURS)
    hat = rng.choice(list(HAT_TOPS)) if rng.random() < 0.22 else "none"
    natural = rng.random() < 0.4
    hair_colour = rng.choice(
        ["blonde", "black", "brown", "grey", "white", "red"] if natural else list(HAIR_COLOURS)
    )
    hair = "none"
    if hat == "none":
        hair = "bald" if rng.random() < 0.06 else rng.choice([h for h in HAIR_TOPS if h != "bald"])
    glasses = rng.choice(list(GLASSES)) if rng.random() < 0.42 else "none"
    beard = rng.choice(list(BEARDS)) if rng.random() < 0.3 else "none"
    eyes = rng.choice([e for e in EYES if e != "open"]) if rng.random() < 0.2 else "open"
    if glasses in ("sunglasses", "eyepatch"):
        eyes = "open"  # they would be hidden
    return Attributes(
        background=rng.choice(colours),
        skin=rng.choice(list(SKINS)),
        hair=hair,
        hair_colour=hair_colour,
        hat=hat,
        hat_colour=rng.choice(colours) if hat != "none" else "none",
        glasses=glasses,
        beard="none" if hat == "hijab" else beard,
        clothes=rng.choice(list(CLOTHES)),
        clothes_colour=rng.choice(colours),
        expression=rng.choices(list(EXPRESSIONS), weights=(4, 1, 2, 2, 2, 2, 1))[0],
        eyes=eyes,
        variant=rng.randrange(2),
    )


def seeded(*parts: int) -> random.Random:
    """A generator for these numbers, the same on every machine."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311 - pictures, not secrets


def sample(rng: random.Random, *, held_out: bool = False) -> Attributes:
    """One seeded avatar: never of the held-out set, or only of it with `held_out=True`."""
    while True:
        attributes = _draw(rng)
        if is_held_out(attributes) == held_out:
            return attributes
