"""Rewrite the tables of docs/protocol.md from the code: python docs/make_protocol.py

The text between the tables is written by hand, in docs/protocol.md itself.
"""

import inspect
import re
from enum import IntFlag
from pathlib import Path

from vhostfast.protocol.features import Offer, ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import SPEC, Empty, OfVring, Payload, Spec

PAGE = Path(__file__).with_name("protocol.md")
MARKED = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
MEMBER = re.compile(r"^    (\w+) = 1 << (\d+)  # (.+)$", re.MULTILINE)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def body(payload: type[Payload]) -> str:
    low, high = payload.sizes()
    return f"{payload.__name__} ({span(low, high)})" if high else ""


def needs(spec: Spec) -> str:
    if isinstance(spec.needs, VirtioFeature):
        return f"{spec.needs.name} offered"
    return str(spec.needs.name) if spec.needs else ""


def requests() -> str:
    head = ["#", "request", "payload (bytes)", "names a vring", "fds", "needs", "answer"]
    return table(
        head,
        [
            [
                str(int(request)),
                request.name,
                body(spec.payload),
                "yes" if issubclass(spec.payload, OfVring) else "",
                span(*spec.fds) if spec.fds[1] else "",
                needs(spec),
                f"own: {body(spec.reply)}" if spec.reply else "if asked",
            ]
            for request, spec in sorted(SPEC.items())
        ],
    )


def payloads() -> str:
    """What each payload's docstring says of it."""
    used = {spec.payload for spec in SPEC.values()} | {s.reply for s in SPEC.values() if s.reply}
    rows = [
        [
            payload.__name__,
            ", ".join(r.name for r in SPEC if payload in (SPEC[r].payload, SPEC[r].reply)),
            " ".join(inspect.getdoc(payload).split()),
        ]
        for payload in sorted(used - {Empty}, key=lambda payload: payload.__name__)
    ]
    return table(["payload", "of", "what it is; anything else is refused"], rows)


def features(flags: type[IntFlag], offered: IntFlag) -> str:
    """Bit, name and comment of each line of the enumeration."""
    return table(
        ["bit", "name", "offered", "what it is"],
        [
            [bit, name, "yes" if flags[name] in offered else "", text]
            for name, bit, text in MEMBER.findall(inspect.getsource(flags))
        ],
    )


MAKERS = {
    "requests": requests,
    "payloads": payloads,
    "virtio": lambda: features(VirtioFeature, Offer.net().features),
    "protocol": lambda: features(ProtocolFeature, Offer.net().protocol_features),
}


def render(page: str) -> str:
    """The page with its tables as the code has them."""
    return MARKED.sub(lambda found: found[1] + "\n" + MAKERS[found[2]]() + "\n" + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
