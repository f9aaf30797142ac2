"""docs/protocol.md says what the code does."""

import importlib.util
from pathlib import Path

from vhostfast.protocol.features import ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import Request

MAKER = Path(__file__).parents[2] / "docs" / "make_protocol.py"
spec = importlib.util.spec_from_file_location("make_protocol", MAKER)
maker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(maker)


def test_the_page_is_current():
    page = maker.PAGE.read_text()
    assert maker.render(page) == page, "run: python docs/make_protocol.py"


def test_the_page_has_every_request_and_every_bit():
    made = "".join(make() for make in maker.MAKERS.values())
    for name in [*Request.__members__, *VirtioFeature.__members__, *ProtocolFeature.__members__]:
        assert f"| {name} |" in made


def test_a_stale_table_is_seen():
    page = maker.PAGE.read_text()
    assert maker.render(page.replace("| 1 | GET_FEATURES |", "| 1 | GET_FUTURES |")) == page
