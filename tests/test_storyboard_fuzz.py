"""Whatever a file holds, it is a board or an error with a cure."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svi_story.errors import InputError
from svi_story.storyboard.schema import Storyboard
from svi_story.storyboard.source import BoardFile, load
from tests.test_storyboard_schema import PARTS, SCHEMA, accepts

GOOD = sorted((Path(__file__).parent / "boards").glob("good-*.yaml"))
NAMES = sorted({name for part in PARTS for name in part.model_fields})
