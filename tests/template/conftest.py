"""Leaves out tests of files that are no longer those of the template."""

import pytest
from digests import shipped


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `shipped("FILE")` if the file is no longer the template's."""
    for item in items:
        if (marker := item.get_closest_marker("shipped")) and not shipped(marker.args[0]):
            item.add_marker(pytest.mark.skip(reason=f"{marker.args[0]} is your own"))
