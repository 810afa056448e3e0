"""Words in names of files and folders, and what they say about the role of an image."""

import re

from project.data.config import given_split

# Role -> words that name it. The first role that has a word in a name is that of the name.
ROLES = {
    "annotation": "mask masks label labels gt groundtruth truth seg segmentation segmentations annot annotation "
    "annotations annotated manual binary foreground fg trimap trimaps instance instances objects man track",
    "target": "target targets output outputs clean hr highres sharp",
    "light": "phase phasecontrast brightfield bf dic transmitted trans transmission pol bright",
    "stain": "fluorescence fluorescent fluor fluo gfp egfp rfp yfp cfp mcherry dapi hoechst cy3 cy5 fitc tritc txred "
    "actin tubulin dna membrane",
    "image": "image images img imgs im input inputs raw photo photos picture pictures scan scans original originals "
    "noisy lr lowres jpegimages",
    "channel": "ch channel w wavelength c red green blue yellow",
}
MEANINGS = {word: role for role, text in ROLES.items() for word in text.split()}
TRUTH = {"gt", "groundtruth", "truth"}  # annotations, or images that a network should restore
INSTANCES = {"instance", "instances", "object", "objects"}


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# What stands before the number of a frame, a tile or a position: such a part of a name is no role.
SERIES = word_set("t time tp f fr frame z slice sl plane stack x y row col r s p pos position xy fov field site tile")
NOT_DATA = word_set("thumb thumbs thumbnail thumbnails preview previews macosx")
GROUPS = word_set(
    "monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun day week date batch plate "
    "well patient subject donor mouse animal rat slide experiment exp run session series seq sequence case site "
    "center hospital field fov city"
)


def words(text: str) -> list[str]:
    """The words and numbers of a name, in lower case: left, img, 8, bit and 21 of "leftImg8bit_21"."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+|\d+", text)]


def meaning(text: str) -> str:
    """The role that a text names, "" for none; "channel" only beside a number or a color."""
    found = words(text)
    roles = [MEANINGS[word] for word in found if word in MEANINGS]
    if "channel" in roles:
        numbered = any(word.isdecimal() for word in found) or {"red", "green", "blue", "yellow"} & {*found}
        roles = [role for role in roles if role != "channel" or numbered]
    if "ground" in found and "truth" in found:
        return "annotation"
    return next((role for role in ROLES if role in roles), "")


def names_group(values: set[str]) -> bool:
    """Whether names of folders are those of days, patients, plates ... rather than of classes."""
    return all(any(word.isdecimal() for word in words(value)) or {*words(value)} & GROUPS for value in values)


def split_of_folder(name: str) -> tuple[str, str, str]:
    """The name of a given split in the name of a folder, and the texts before and after: "trainannot", "images_val".

    ("", "", "") where there is none.
    """
    if given_split(name):
        return name, "", ""
    splits = "training|train|validation|valid|val|testing|test"
    if match := re.fullmatch(rf"({splits})([-_ ]?[^\d]+)", name, re.IGNORECASE):
        return (match[1], "", match[2]) if meaning(match[2]) or match[2] in "AB" else ("", "", "")
    if (match := re.fullmatch(rf"([^\d]+[-_ ])({splits})", name, re.IGNORECASE)) and meaning(match[1]):
        return match[2], match[1], ""
    return "", "", ""
