"""What vhostfast raises on purpose. Anything else that escapes is a bug."""


class VhostfastError(Exception):
    """The root: every error below is an expected event, with a sentence fit for a log."""


class ProtocolError(VhostfastError):
    """The peer broke the rules of vhost-user.

    `request` names the message (or "header", "channel"), `field` what was wrong in it, `value`
    what came and `limit` what would have been right.
    """

    def __init__(self, request: str, field: str, value: object, limit: str) -> None:
        super().__init__(request, field, value, limit)
        self.request = request
        self.field = field
        self.value = value
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.request}: {self.field} is {self.value}, must be {self.limit}"


class MemoryVanished(ProtocolError):
    """The peer has taken away memory that it had shared: its file was cut short, or there was no
    huge page left for it."""


class Disconnected(VhostfastError):
    """The peer has closed the socket, or the connection was reset."""


class UsageError(VhostfastError):
    """A wrong option; the sentence names it and says what to do. Exit code 2."""


class EnvironmentLacks(VhostfastError):
    """The machine lacks something; the sentence says what, and how to get it. Exit code 3."""
