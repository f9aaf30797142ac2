"""How commands end that start processes and make folders: whoever asks them to, as by Ctrl-C."""

import signal


def end_as_by_ctrl_c() -> None:
    """SIGTERM and SIGHUP, unless it is ignored (nohup), leave as little behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
