"""Map coordinates: the geotransform of a GeoTIFF file, and the coordinate systems that it and GeoJSON declare."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from project.data.raw.headers import TIFF
from project.errors import UserError

# GeoTIFF, version 1.1: numbers of its TIFF tags ...
PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, KEYS = 33550, 33922, 34264, 34735
# ... of its keys, and values of these.
MODEL_TYPE, RASTER_TYPE, GEODETIC_CRS, PROJECTED_CRS, IS_GEOGRAPHIC, PIXEL_IS_POINT = 1024, 1025, 2048, 3072, 2, 2
USER_DEFINED = 32767
NO_CRS = {"", "none", "null", "pixel", "pixels", "local"}  # names that some software writes for pixel coordinates
ALIASES = {"CRS84": 4326, "CRS84h": 4326, "CRS83": 4269, "CRS27": 4267}
SAME = {900913: 3857, 3785: 3857, 102100: 3857, 102113: 3857}  # older codes of Web Mercator


def geotransform(path: Path) -> np.ndarray:
    """From the coordinates on the map to pixels, with (0, 0) the upper left corner of the image.

    Source: OGC GeoTIFF standard 1.1 (OGC 19-008r4), 7.1.1 and B.6, the tags ModelPixelScale and ModelTiepoint, or
    ModelTransformation, and the key GTRasterType.

    Returns:
        (2, 3) float64: `pixel = transform[:, :2] @ (x, y) + transform[:, 2]`.

    Raises:
        UserError: The file is no TIFF with these tags.
        Exception: It cannot be read; see `naming`.
    """
    tags = _tags(path)
    if TRANSFORMATION in tags:
        matrix = np.array(tags[TRANSFORMATION], np.float64).reshape(4, 4)
        to_map = matrix[[0, 0, 1, 1], [0, 1, 0, 1]].reshape(2, 2)
        origin = matrix[:2, 3]
    elif PIXEL_SCALE in tags and len(tags.get(TIEPOINTS, ())) == 6:
        i, j, _, x, y, _ = tags[TIEPOINTS]
        to_map = np.diag([tags[PIXEL_SCALE][0], -tags[PIXEL_SCALE][1]]).astype(np.float64)
        origin = np.array([x, y]) - to_map @ (i, j)
    else:
        raise UserError(
            "the TIFF file has no geotransform (ModelPixelScale with one ModelTiepoint, or ModelTransformation), which "
            "`coordinates: geo` needs"
        )
    from_map = np.linalg.inv(to_map)
    # Where (0, 0) is a point, it is the centre of the first pixel.
    is_point = _keys(tags).get(RASTER_TYPE) == PIXEL_IS_POINT
    return np.column_stack([from_map, -from_map @ origin + 0.5 * is_point])


def check_crs(name: str, path: Path) -> None:
    """Raise a `UserError` if outlines are in another coordinate system than the GeoTIFF file of their image.

    Args:
        name: See `declared_crs`; what is not known on both sides is not compared.
        path: Of the image.
    """
    keys = _keys(_tags(path))
    code = keys.get(PROJECTED_CRS) or (keys.get(GEODETIC_CRS) if keys.get(MODEL_TYPE) == IS_GEOGRAPHIC else None)
    declared = epsg(name)
    if code and code != USER_DEFINED and declared and declared != SAME.get(code, code):
        raise UserError(
            f'the outlines are in "{name}", the image is in EPSG:{code}; nothing is reprojected, save them in the '
            "coordinate system of the image"
        )


def declared_crs(content: Any) -> str:
    """The name of the coordinate system in the member `crs` of GeoJSON; "" where there is none, or it is null.

    Source: The GeoJSON Format Specification (2008), section 3. RFC 7946 has no `crs`.
    """
    objects = [content, *content.get("features", [])] if isinstance(content, dict) else content
    for each in objects:
        crs = each.get("crs") if isinstance(each, dict) else None
        if crs is not None:
            more = crs.get("properties") if isinstance(crs, dict) else None
            more = more if isinstance(more, dict) else {}
            code = f"EPSG:{more['code']}" if "code" in more else crs
            name = str(more.get("name", more.get("href", code)))
            return "" if name.casefold() in NO_CRS else name
    return ""


def epsg(name: str) -> int | None:
    """The EPSG code that a name such as "urn:ogc:def:crs:EPSG::32632" or "OGC:CRS84" means, if it is known."""
    if found := re.search(r"EPSG\W(?:[\d.]*\W)?(\d+)$", name, re.IGNORECASE):
        return SAME.get(code := int(found[1]), code)
    return ALIASES.get(re.split(r"[:/]", name)[-1])


def _tags(path: Path) -> dict[int, Any]:
    if path.suffix.lower() not in TIFF:
        raise UserError("`coordinates: geo` needs a GeoTIFF file; write them in pixels, or save the image as GeoTIFF")
    with tifffile.TiffFile(path) as tiff:
        found = {code: tiff.pages.first.tags.get(code) for code in (PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, KEYS)}
        return {code: tag.value for code, tag in found.items() if tag is not None}


def _keys(tags: dict[int, Any]) -> dict[int, int]:
    """Key -> value of the keys whose values are in the directory itself."""
    rows = np.array(tags.get(KEYS, ()), np.int64)[4:].reshape(-1, 4)
    return {int(key): int(value) for key, location, _, value in rows if location == 0}
