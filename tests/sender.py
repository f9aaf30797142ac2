"""A guest to be killed: python tests/sender.py SOCKET. It sends to mac(1) as fast as it goes."""

import sys

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Load, Station, Traffic, mac


def main(path: str) -> None:
    with GuestMemory(((0, 8 << 20),)) as memory, Frontend(path, memory) as frontend:
        frontend.start()
        station = Station(frontend, mac(3), mac(1), flow=3)
        traffic = Traffic([station], Load(sizes=(64, 300, 1500)), idle="wait")
        print("ready", flush=True)
        traffic.run()


if __name__ == "__main__":
    main(sys.argv[1])
