"""A host in 20 lines that answers ARP and ping for 10.0.0.1:  ping_me.py [/tmp/ping.sock]"""

import sys

import vhostfast

MAC, IP = list(b"\x02\0\0\0\0\x01"), [10, 0, 0, 1]
ARP_REQUEST = bytes.fromhex("0806 0001 0800 06 04 0001")
ECHO = [8, 0, 0x45, 1, 8]  # IP, version and header length, ICMP, echo request


class PingMe(vhostfast.NetDevice):
    def receive(self, packets):
        for p in packets:  # numpy arrays of uint8, Ethernet frames
            if bytes(p[12:22]) == ARP_REQUEST and p[38:42].tolist() == IP:  # who has our IP?
                p[32:42], p[22:32], p[21] = p[22:32].copy(), MAC + IP, 2
            elif p.size >= 42 and p[[12, 13, 14, 23, 34]].tolist() + p[30:34].tolist() == ECHO + IP:
                p[26:30], p[30:34], p[34] = p[30:34].copy(), p[26:30].copy(), 0
                total = int.from_bytes(p[36:38].tobytes()) + 0x0800  # type 8 became 0
                p[36:38] = list((total % 0xFFFF or 0xFFFF).to_bytes(2))
            else:
                continue
            p[0:6], p[6:12] = p[6:12].copy(), MAC
            self.send([p])


print("Give a guest this socket and the address 10.0.0.2/24, and ping 10.0.0.1 in it", flush=True)
vhostfast.serve(PingMe(), *sys.argv[1:2] or ["/tmp/ping.sock"])
