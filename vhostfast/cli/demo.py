"""vhostfast demo."""


def demo() -> None:
    """Two built-in virtual machines exchange verified packets through the switch."""
