"""The whole audit: every shape that the back-end offers, exactly and at full speed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vhostfast.audit.exact import exact
from vhostfast.audit.full_speed import full_speed
from vhostfast.audit.report import Report, Row
from vhostfast.audit.shapes import SHAPES, Shape
from vhostfast.audit.stage import Stage
from vhostfast.core.witness import Witness
from vhostfast.driver.frontend import Frontend
from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.migration import Migration
from vhostfast.errors import Disconnected, EnvironmentLacks, ProtocolError, UsageError
from vhostfast.protocol.features import ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import Request

SABOTAGE = 0.1  # of the marks
PACKETS = 2000  # of an exact pass
ONE_WAY = (
    "nothing came to the guest, so only what it sends was audited. The back-end has to forward to"
    " it: from a second guest (another --socket) or, with one, back what it sends (loopback)"
)


def audit(
    sockets: Sequence[Path],
    *,
    seconds: float = 0.75,
    packets: int = PACKETS,
    shapes: Sequence[str] = (),
    sabotage: float = 0.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Audit the back-end behind one socket, or two that it joins.

    Each shape, or those of `shapes`, takes `packets` exactly and `seconds` at full speed;
    `progress` hears its name before. `sabotage` is the share of marks that is thrown away. Raises
    UsageError for more sockets, one twice or unknown shapes, EnvironmentLacks where nobody serves a
    socket, or the back-end can't log or has none of the shapes.
    """
    if not 1 <= len(sockets) <= 2:
        raise UsageError(
            f"{len(sockets)} sockets: give the migrated guest's and, if any, its peer's"
        )
    if len({path.resolve() for path in sockets}) < len(sockets):
        raise UsageError(f"socket {sockets[0]} is given twice: each guest needs its own")
    known = {shape.name: shape for shape in SHAPES}
    for name in shapes:
        if name not in known:
            raise UsageError(f"shape={name}: give one of {', '.join(map(repr, known))}")
    Witness(()).close()
    report = Report(sabotage=sabotage)
    offered = _offered(sockets)
    for shape in [known[name] for name in shapes] or SHAPES:
        if not shape.is_offered(*offered):
            report.not_offered.append(shape.name)
        elif report.not_reached:
            report.not_reached.append(shape.name)
        else:
            progress(shape.name)
            try:
                report.rows.append(_row(sockets, shape, seconds, packets, sabotage))
            except EnvironmentLacks:  # it was there for the first look: it has died since
                report.not_reached.append(shape.name)
    if not report.rows + report.not_reached:
        raise EnvironmentLacks(f"nothing to audit: not offered: {', '.join(report.not_offered)}")
    return report


def _offered(sockets: Sequence[Path]) -> tuple[VirtioFeature, ProtocolFeature, int]:
    """Features, protocol features and queue pairs: what all the sockets have."""
    features, protocol, pairs = ~VirtioFeature(0), ~ProtocolFeature(0), 1 << 15
    for path in sockets:
        try:
            with GuestMemory(((0, 1 << 20),)) as memory, Frontend(path, memory) as frontend:
                features &= VirtioFeature(frontend.ask(Request.GET_FEATURES))
                protocol &= frontend.protocol_features
                several = ProtocolFeature.MQ in frontend.protocol_features
                pairs = min(pairs, frontend.ask(Request.GET_QUEUE_NUM) if several else 1)
                if path == sockets[0]:
                    Migration(frontend).close()
        except (Disconnected, TimeoutError) as error:
            raise EnvironmentLacks(
                f"{path}: {error}. Has it a front-end already, or is this user not allowed?"
            ) from error
        except ProtocolError as error:
            raise EnvironmentLacks(f"{path} does not speak vhost-user: {error}") from error
    return features, protocol, pairs


def _row(
    sockets: Sequence[Path], shape: Shape, seconds: float, packets: int, sabotage: float
) -> Row:
    row = Row(shape.name)
    try:
        with Stage(sockets, shape) as stage:
            exact(stage, row, packets, sabotage)
            full_speed(stage, row, seconds, sabotage)
    except (Disconnected, ProtocolError, TimeoutError) as error:
        row.break_(str(error), "the audit of this shape ended there")
    if row.sent and not row.received:
        row.notes.append(ONE_WAY)
    return row
