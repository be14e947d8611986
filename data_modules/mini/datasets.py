"""The datasets of the mini suite: what they name, how they look, how many pictures they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_modules import vocabularies
from data_modules.mini.settings import Domain
from dataseg.structures import UserError, Vocabulary


@dataclass(frozen=True)
class MiniDataset:
    """One dataset of the suite.

    Attributes:
        vocabulary: stem of its file in ``data_modules/vocabularies``.
        kinds: class name -> kind of stuff or thing in a scene.
        domain: its look.
        crowds: whether it marks crowds.
    """

    vocabulary: str
    kinds: Mapping[str, str]
    domain: Domain
    crowds: bool

    def load_vocabulary(self) -> Vocabulary:
        """Read its vocabulary.

        Raises:
            UserError: the file and ``kinds`` name different classes.
        """
        vocabulary = vocabularies.load(self.vocabulary)
        if set(vocabulary.names) != set(self.kinds):
            odd = sorted(set(vocabulary.names) ^ set(self.kinds))
            raise UserError(f"{self.vocabulary}.json: classes {odd} are not in both the file and the generator's table")
        return vocabulary


ADE = MiniDataset(
    vocabulary="mini_ade",
    kinds={
        **{name: name for name in ("wall", "sky", "floor", "ceiling", "grass", "road", "sea", "sand", "mountain")},
        **{name: name for name in ("rug", "person", "car", "tree", "house", "sofa", "chair", "boat", "lamp", "vase")},
        "painting": "painting",
    },
    domain=Domain(
        layouts={"beach": 1.0, "street": 1.2, "meadow": 0.8, "room": 1.6},
        noise=3.0,
        blur=0.0,
        exposure=0.05,
        saturation=1.0,
        contrast=1.0,
        vignette=0.0,
        quality=(92, 96),
    ),
    crowds=False,
)

COCO = MiniDataset(
    vocabulary="mini_coco",
    kinds={
        "pedestrian": "person",
        "automobile": "car",
        "bus": "bus",
        "ship": "boat",
        "bird": "bird",
        "dog": "dog",
        "umbrella": "umbrella",
        "ball": "ball",
        "mug": "cup",
        "fish": "fish",
        "chair": "chair",
        "couch": "sofa",
        "clock": "clock",
        "wooden floor": "floor",
        "cottage": "house",
        "street": "road",
        "beach": "sand",
        "water": "sea",
        "snow": "snow",
        "trees": "tree",
        "sky": "sky",
        "hill": "mountain",
        "lawn": "grass",
        "plastered wall": "wall",
    },
    domain=Domain(
        layouts={"beach": 1.0, "street": 1.0, "meadow": 1.0, "room": 1.3, "snowfield": 0.8, "underwater": 0.5},
        noise=8.0,
        blur=0.9,
        exposure=0.22,
        saturation=0.9,
        contrast=1.0,
        vignette=0.1,
        quality=(85, 92),
    ),
    crowds=True,
)

OBJECTS365 = MiniDataset(
    vocabulary="mini_objects365",
    kinds={
        "Person": "person",
        "Car": "car",
        "Bus": "bus",
        "Dog": "dog",
        "Bird": "bird",
        "Fish": "fish",
        "Couch": "sofa",
        "Chair": "chair",
        "Sailboat": "boat",
        "Beach Ball": "ball",
        "Cup": "cup",
        "Lamp": "lamp",
        "Vase": "vase",
        "Balloon": "balloon",
        "Mushroom": "mushroom",
        "Butterfly": "butterfly",
    },
    domain=Domain(
        layouts={"beach": 1.0, "street": 0.9, "meadow": 1.2, "room": 1.4, "snowfield": 0.4, "underwater": 0.4},
        noise=5.0,
        blur=0.5,
        exposure=0.1,
        saturation=1.25,
        contrast=1.12,
        vignette=0.22,
        quality=(45, 65),
    ),
    crowds=True,
)

OPEN = MiniDataset(
    vocabulary="mini_open",
    kinds={
        "wallpaper": "wall",
        "cloudy heavens": "sky",
        "timber floor": "floor",
        "ceiling panels": "ceiling",
        "meadow": "grass",
        "paved roadway": "road",
        "lake water": "sea",
        "sandy dune": "sand",
        "alpine peak": "mountain",
        "glacier": "snow",
        "woven mat": "rug",
        "human": "person",
        "sedan": "car",
        "passenger coach": "bus",
        "oak tree": "tree",
        "log cabin": "house",
        "settee": "sofa",
        "wooden seat": "chair",
        "sailing vessel": "boat",
        "reading light": "lamp",
        "pottery jar": "vase",
        "framed artwork": "painting",
        "songbird": "bird",
        "canine": "dog",
        "parasol": "umbrella",
        "inflatable ball": "ball",
        "teacup": "cup",
        "clownfish": "fish",
        "timepiece": "clock",
        "helium balloon": "balloon",
        "toadstool": "mushroom",
        "checkered moth": "butterfly",
        "boulder": "rock",
        "wooden crate": "crate",
    },
    domain=Domain(
        layouts={
            "frozen lake": 1.0,
            "indoor garden": 1.1,
            "flooded room": 1.0,
            "desert road": 1.0,
            "roof terrace": 1.0,
        },
        noise=6.0,
        blur=0.7,
        exposure=0.15,
        saturation=0.7,
        contrast=0.85,
        vignette=0.05,
        quality=(70, 80),
    ),
    crowds=False,
)
"""To evaluate on only: no training set has its names, its layouts, or names at all for its boulders and crates."""
