"""Words in names of files and folders, and what they say about the role of an image."""

import re

from project.data.config import given_split


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


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
TRUTH = word_set("gt groundtruth truth")  # annotations, or images that a network should restore
# Where images show the two sides of one patient, or stand before the number of a frame, a tile or a position: no roles.
SIDES = word_set("left right l r od os sinister dexter")
SERIES = SIDES | word_set("t time tp f fr frame z slice sl plane stack x y row col s p pos position xy fov field site")
NOT_DATA = word_set("thumb thumbs thumbnail thumbnails preview previews macosx")
LABELS = word_set("label labels class classes target category diagnosis dx kind type species breed phenotype tags")
UNSORTED = word_set("unlabeled unlabelled unsorted unknown")  # folders that are no classes
GROUPS = word_set(
    "monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun day week date batch plate "
    "well patient subject donor mouse animal rat slide experiment exp run session series seq sequence case site "
    "pos position center hospital field fov city"
)


def words(text: str) -> list[str]:
    """The words and numbers of a name, in lower case: left, img, 8, bit and 21 of "leftImg8bit_21"."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+|\d+", text)]


def meaning(text: str) -> str:
    """The role that a text names, "" for none; "channel" only beside a number or a color."""
    present = words(text)
    roles = {MEANINGS[word] for word in present if word in MEANINGS}
    numbered = any(word.isdecimal() for word in present) or {"red", "green", "blue", "yellow"} & {*present}
    if re.fullmatch(r"[-_]000\d", text):  # nnU-Net
        roles, numbered = {"channel"}, True
    if "channel" in roles and not numbered:
        roles -= {"channel"}
    return next((role for role in ROLES if role in roles), "")


def is_group(name: str) -> bool:
    """Whether a folder is called as a day, a patient, a plate ..., or by a date."""
    return bool({*words(name)} & GROUPS or re.match(r"(19|20)\d\d[-_.]?\d\d[-_.]?\d\d", name))


def split_of_folder(name: str) -> tuple[str, str, str]:
    """The texts before, of and after a given split in the name of a folder, as in "images_val"; "" for none."""
    splits = "training|train|validation|valid|val|testing|test"
    match = re.fullmatch(rf"((?:.*[-_ ])?)({splits})(.*)", name, re.IGNORECASE)
    return (match[1], match[2], match[3]) if match and given_split(match[2]) else (name, "", "")
