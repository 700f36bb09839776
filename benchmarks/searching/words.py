"""Words for a text tower: names and glosses of things, sentences around them, and written classes.

The names and glosses are WordNet's, as timm ships them with ImageNet's lists. The class names of
the image sets are written out here, since folders are called `water_lilly` or `14`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from timm.data import ImageNetInfo

from vprompt.core.randomness import numpy_stream
from vprompt.data.task import Task

TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a bright photo of a {}.",
    "a small {}.",
    "a drawing of a {}.",
    "a painting of a {}.",
    "a sketch of a {}.",
    "a photo of a {}, a type of flower.",
    "a photo of a {}, a type of animal.",
    "a photo of a {}, a type of pet.",
    "{} texture.",
    "a satellite photo of {}.",
    "a traffic sign: {}.",
    "this is a {}.",
    "many {}.",
    "X X X X {}.",
)


@dataclass(frozen=True)
class ImageSet:
    """An image set whose classes have names that a person would use.

    `renamed` holds the names that are not those of the folders, by folder.
    """

    template: str = TEMPLATES[0]
    renamed: dict[str, str] | None = None

    def named(self, task: Task) -> Task:
        """Return the task with these class names and this sentence."""
        known = self.renamed or {}
        names = [known.get(name, name.replace("_", " ").lower()) for name in task.classes]
        return replace(task, classes=tuple(names), templates=(self.template,))


SIGNS = [
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no overtaking",
    "no overtaking by trucks",
    "right of way at the next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "general danger",
    "dangerous curve to the left",
    "dangerous curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road works",
    "traffic lights",
    "pedestrians",
    "children crossing",
    "bicycles crossing",
    "ice and snow",
    "wild animals crossing",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "straight ahead only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by trucks",
]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

SETS = {
    "caltech101": ImageSet(
        renamed={
            "BACKGROUND_Google": "cluttered background",
            "Faces": "face",
            "Faces_easy": "close-up of a face",
            "Leopards": "leopard",
            "Motorbikes": "motorbike",
            "airplanes": "airplane",
            "binocular": "binoculars",
            "buddha": "Buddha statue",
            "car_side": "car from the side",
            "cougar_body": "cougar",
            "garfield": "Garfield, a cartoon cat",
            "hawksbill": "hawksbill turtle",
            "ketch": "ketch, a sailing boat",
            "schooner": "schooner, a sailing boat",
            "sea_horse": "seahorse",
            "snoopy": "Snoopy, a cartoon dog",
            "tick": "tick, a small arachnid",
            "water_lilly": "water lily",
            "watch": "wrist watch",
            "yin_yang": "yin yang symbol",
        }
    ),
    "cifar100": ImageSet(
        renamed={
            "bass": "bass, a fish",
            "can": "tin can",
            "plain": "open plain",
            "ray": "ray, a fish",
            "seal": "seal, a sea animal",
            "tank": "army tank",
        }
    ),
    "dtd10": ImageSet("{} texture."),
    "gtsrb": ImageSet("a traffic sign: {}.", {f"{row:02}": name for row, name in enumerate(SIGNS)}),
    "oxford_flowers17": ImageSet(
        "a photo of a {}, a type of flower.",
        {"lily_valley": "lily of the valley", "tigerlily": "tiger lily"},
    ),
    "oxford_pets3": ImageSet(
        "a photo of a {}, a type of pet.",
        {"Abyssinian": "Abyssinian cat", "Bengal": "Bengal cat"},
    ),
    "pacs": ImageSet("a picture of a {}."),
    "rsscn7": ImageSet(
        "a satellite photo of {}.",
        {
            "Field": "fields",
            "Grass": "grassland",
            "Industry": "factories",
            "Parking": "a parking lot",
            "Resident": "houses",
            "RiverLake": "a river or lake",
        },
    ),
    "chars74k_digits": ImageSet(
        "a photo of the digit {}.", {str(row): name for row, name in enumerate(DIGITS)}
    ),
}


def thousand() -> list[str]:
    """Return the first name of each of ImageNet's 1,000 classes, in their order."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(row).partition(",")[0] for row in range(1000)]


def corpus(names: Sequence[str], *, things: int, sentences: int, seed: int = 0) -> list[str]:
    """Return the sentences to learn from: names alone, in templates, and glosses.

    Every one of `names` stands alone and in so many `sentences`. Of the other things that WordNet
    has pictures of, so many `things` are drawn, each alone, in two templates, and as its gloss.
    """
    rng, info = numpy_stream(seed, "corpus"), ImageNetInfo("imagenet-22k")
    found = []

    def write(name: str, count: int) -> None:
        chosen = rng.choice(len(TEMPLATES), count, replace=False)
        found.extend([name, *(TEMPLATES[index].replace("{}", name) for index in chosen)])

    for name in names:
        write(name, sentences)
    for row in rng.permutation(info.num_classes())[:things]:
        label = info.index_to_label_name(int(row))
        write(info.label_name_to_description(label).partition(",")[0], 2)
        found.append(info.label_name_to_description(label, detailed=True).rpartition(": ")[2])
    return list(dict.fromkeys(found))
