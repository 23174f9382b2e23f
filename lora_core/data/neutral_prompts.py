"""Ships the prompts of which a base draws its neutral states: plain and varied, by kind of base and then of subject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Subjects = Mapping[str, tuple[str, ...]]

_PICTURES: Subjects = {
    "people": (
        "a photo of a woman with short brown hair, smiling", "an old man with a gray beard reading a newspaper",
        "two children running on a beach", "a close-up portrait of a young man with glasses",
        "a group of friends eating at a table", "a girl in a red coat standing in the snow",
        "a man in a dark suit on a stage", "a dancer in a white dress", "a cook cutting vegetables in a kitchen",
        "a cyclist on a mountain road", "the face of an old woman, seen from the side", "a boy holding a baby",
        "a bride and a groom in a garden", "a worker with a yellow helmet", "a person from behind, looking at the sea",
        "a crowd of people in a train station",
    ),
    "animals": (
        "a black dog lying on a sofa", "a white cat looking out of a window", "a brown horse in a field",
        "a small bird on a branch", "an elephant walking through dry grass", "a fish in clear blue water",
        "a close-up of a green frog", "a flock of sheep on a hill", "a butterfly on a pink flower",
        "a tiger drinking from a river", "a puppy with a ball", "an owl at night", "a cow beside a fence",
        "a fox in an autumn forest", "a rabbit eating a carrot", "a bear standing in the rain",
    ),
    "things": (
        "a red apple on a wooden table", "an old blue car parked in the street", "a cup of coffee and a book",
        "a vase with yellow flowers", "a wooden chair in an empty room", "a silver watch, macro photo",
        "a plate of pasta with tomatoes", "a leather shoe on a white background", "a guitar leaning against a wall",
        "a stack of colourful boxes", "a glass bottle with green liquid", "a toy robot", "a bicycle without a rider",
        "a sailing boat on a lake", "a candle burning in the dark", "a laptop and a pen on a desk",
    ),
    "places": (
        "a narrow street of an old town at night", "a mountain lake in the morning mist", "a modern living room",
        "a desert under a clear sky", "a forest path with fallen leaves", "the skyline of a large city at sunset",
        "a small church in a village", "a waterfall between dark rocks", "a busy market with fruit",
        "the inside of a library", "a bridge over a wide river", "a beach with palm trees and waves",
        "a snowy road in winter", "a field of wheat under storm clouds", "a swimming pool beside a white house",
        "an empty underground parking garage",
    ),
    "styles": (
        "an oil painting of a landscape", "a pencil drawing of a hand", "a watercolor of a rose",
        "a black and white photo, high contrast", "a flat vector illustration of a city", "a cartoon of a funny animal",
        "a 3d render of a glass sphere", "an old faded photograph", "pixel art of a castle",
        "an abstract painting with bright colors", "a comic book page with a hero", "a blurry photo with warm light",
        "a woodcut print of a ship", "a minimalist poster with a circle", "a fantasy illustration of a dragon",
        "a blueprint of a machine",
    ),
}  # fmt: skip
_TAGS: Subjects = {
    "people": (
        "1girl, solo, long hair, smile, looking at viewer", "1boy, solo, short hair, black hair, jacket",
        "2girls, school uniform, sitting, indoors", "1girl, blonde hair, blue eyes, dress, standing, full body",
        "1man, beard, armor, sword, upper body", "1girl, twintails, hat, outdoors, from behind",
        "multiple girls, group, laughing, park", "1boy, glasses, white shirt, portrait, simple background",
        "1girl, ponytail, sportswear, running", "old woman, gray hair, kimono, sitting",
    ),
    "animals": (
        "no humans, cat, lying, window", "no humans, dog, grass, running", "no humans, bird, tree branch, spring",
        "no humans, fish, underwater, bubbles", "no humans, dragon, flying, clouds", "no humans, horse, field, sunset",
        "no humans, fox, snow, forest", "no humans, rabbit, flower, meadow",
    ),
    "things": (
        "no humans, still life, fruit, table", "no humans, car, street, parked", "no humans, teacup, cake, plate",
        "no humans, robot, mecha, standing", "no humans, book, lamp, desk", "no humans, flower, vase, white background",
        "no humans, sword, stone, light rays", "no humans, airship, sky",
    ),
    "places": (
        "no humans, scenery, mountain, lake, morning", "no humans, city, night, rain, neon lights",
        "no humans, classroom, window, sunlight", "no humans, forest, path, autumn leaves",
        "no humans, beach, ocean, palm tree, blue sky", "no humans, castle, bridge, fog",
        "no humans, bedroom, bed, pillow", "no humans, train station, platform, evening",
    ),
    "styles": (
        "monochrome, greyscale, sketch, 1girl", "watercolor, landscape, pastel colors",
        "chibi, 1girl, full body, white background", "pixel art, house, night", "oil painting, portrait, 1boy",
        "flat color, lineart, 1girl, upper body", "realistic, still life, dark background",
        "comic, multiple panels, 1boy, action",
    ),
}  # fmt: skip

_SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond", "hexagon", "crescent", "bar", "star")
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "gray", "white", "black")
_PATTERNS = ("striped", "dotted", "checkered")
_COUNT = 16  # of each kind of shapes


def _drawn() -> Subjects:
    """The words of the demo base: every shape, colour and pattern about as often as any other."""
    return {
        "plain shapes": tuple(_shape(number, 3, 0) for number in range(_COUNT)),
        "patterned grounds": tuple(_shape(number, 1, 6, ground=_PATTERNS[number % 3]) for number in range(_COUNT)),
        "patterned shapes": tuple(_shape(number, 7, 2, filled=_PATTERNS[number % 2]) for number in range(_COUNT)),
    }


def _shape(number: int, stride: int, first: int, ground: str = "", filled: str = "") -> str:
    turn = number // 10
    colour = stride * number + 3 * turn
    behind = colour + 4 + turn
    shape = [filled, _COLOURS[colour % 10], _SHAPES[(first + number) % 10]]
    return f"{_noun(shape)} on {_noun([ground, _COLOURS[behind % 10], 'background'])}"


def _noun(words: list[str]) -> str:
    text = " ".join(filter(None, words))
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


KINDS: Mapping[str, tuple[Subjects, ...]] = {
    "pictures": (_PICTURES,), "tags": (_TAGS,), "pictures and tags": (_PICTURES, _TAGS), "shapes": (_drawn(),),
}  # fmt: skip


def shipped(kind: str) -> Iterator[tuple[str, str]]:
    """Yield (subject, prompt) of a kind of base, the subjects in turn, so that any beginning has of all of them."""
    rows = [(subject, iter(prompts)) for subjects in KINDS[kind] for subject, prompts in subjects.items()]
    while rows:
        left = []
        for subject, prompts in rows:
            if (prompt := next(prompts, None)) is not None:
                yield subject, prompt
                left.append((subject, prompts))
        rows = left
