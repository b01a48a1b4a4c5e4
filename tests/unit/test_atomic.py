"""Files that are the old one or the new one, whatever is in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_train import atomic


def test_an_empty_folder_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "marker.json"
    place.mkdir()
    atomic.write_json(str(place), {"schema": 1})
    assert place.read_text(encoding="utf-8") == '{\n  "schema": 1\n}\n'
    assert list(tmp_path.iterdir()) == [place]


def test_a_folder_with_something_in_it_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "marker.json"
    place.mkdir()
    (place / "theirs").touch()
    with pytest.raises(OSError, match="not empty"):
        atomic.write_json(str(place), {"schema": 1})
    assert list(tmp_path.rglob("*")) == [place, place / "theirs"]
