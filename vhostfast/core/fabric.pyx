"""Ports, the forwarding between them, and the workers' loop.

The control plane changes anything here only while the workers rest, but for counters (read), faults
(cleared on a port without rings) and the forwarding table's ageing.
"""

cimport cython
from libc.errno cimport ENOENT, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport close

import os
import time

from vhostfast.core.memory cimport log as struct_log, region_table
from vhostfast.core.ring cimport Ring, ring as struct_ring
from vhostfast.core.ring import FAULTS


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "worker.h" nogil:
    enum:
        CACHE_LINE
        COUNTER_COUNT
        PAIR_COUNT_MAX
        PORT_COUNT_MAX
        WORKER_COUNT_MAX
        WORKER_GO
        WORKER_REST
        WORKER_STOP
        EPOLLIN
        EPOLLET
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        FAULT_KICK
        FAULT_NONE
        LEVEL_COUNT

    struct fdb:
        pass
    struct counters:
        uint64_t value[0]
    struct port:
        uint32_t index
        uint32_t receiver_count
        struct_ring *receiver[0]
        port *peer
        const region_table *regions
        struct_log *log
        uint32_t fault
        int event_fd
    struct fabric:
        int policy
        uint32_t port_count
        port *port[0]
        port *by_index[0]
        bint tells_logs
        fdb fdb
    struct source:
        struct_ring *ring
        port *port
        uint32_t queue
        struct_ring *waits_for
        uint32_t flooded
    struct accounts:
        pass
    struct burst:
        fabric *fabric
        counters counters[0]
        accounts accounts
    void accounts_forgive(accounts *accounts)
    void burst_init(burst *burst, fabric *fabric)
    void guard_install()
    bint bell_install()
    void inject(burst *burst, port *sender, const uint8_t *frame, uint32_t size)
    ctypedef uint32_t (*burst_function)(burst *, source *)
    struct worker:
        int mode
        uint32_t source_count
        source *source
        burst_function forward
        uint64_t spin_cycles
        int epoll_fd
        int wake_fd
        uint64_t busy_cycles
        uint64_t packets
        uint64_t sleeps
        burst burst

    union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    burst_function burst_at(int level)
    uint64_t cycle_count()
    void fdb_age(fdb *fdb, uint8_t limit)
    void fdb_forget_port(fdb *fdb, uint32_t port)
    int fdb_find(fdb *fdb, uint64_t mac)
    void fdb_learn(fdb *fdb, uint64_t mac, uint32_t port)
    void worker_init(worker *worker)
    void worker_run(worker *worker)
    void worker_tell(worker *worker, int word)
    uint32_t worker_turn(worker *worker)


POLICIES = ("learn", "patch", "loopback", "drop")  # enum policy
MODES = ("poll", "interrupt", "adaptive")  # enum worker_mode
LEVELS = ("baseline", "avx2", "avx512")  # enum level
COUNTERS = (  # enum counter
    "rx_packets", "rx_bytes", "rx_dropped_malformed", "rx_dropped_no_receiver", "rx_filtered",
    "tx_packets", "tx_bytes", "tx_dropped_full", "tx_dropped_too_big", "tx_dropped_costly",
)
EVENTS = ("connections", "connections_refused", "messages_refused", "faults", "log_pages_missed")
assert len(COUNTERS) == COUNTER_COUNT
assert len(LEVELS) == LEVEL_COUNT
CALLS_NEVER_WAIT = bell_install()

SPIN_SECONDS = 50e-6


cdef void *allocate(size_t size) except NULL:
    cdef size_t rounded = (size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    cdef void *memory = aligned_alloc(CACHE_LINE, rounded)
    if memory == NULL:
        raise MemoryError
    memset(memory, 0, rounded)
    return memory


cdef void close_once(int *fd) noexcept:
    if fd[0] >= 0:
        close(fd[0])
    fd[0] = -1


def levels():
    """The instruction-set levels that this CPU has, best first."""
    return tuple(LEVELS[i] for i in reversed(range(LEVEL_COUNT)) if burst_at(i) != NULL)


@cython.final
cdef class Port:
    cdef port *c
    cdef readonly str name
    cdef readonly Fabric fabric
    cdef readonly dict rings
    cdef dict events

    def __cinit__(self, Fabric fabric, str name, uint32_t index):
        self.c = <port *>allocate(sizeof(port))
        self.c.event_fd = -1
        self.c.index = index
        self.c.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fabric = fabric
        self.name = name
        self.rings = {}
        self.events = dict.fromkeys(EVENTS, 0)

    def __dealloc__(self):
        if self.c != NULL:
            close_once(&self.c.event_fd)
        free(self.c)

    @property
    def index(self):
        return self.c.index

    @property
    def event_fd(self):
        return self.c.event_fd

    @property
    def fault(self):
        return FAULTS[self.c.fault] if self.c.fault else None

    @property
    def receivers(self):
        return [self.rings[index] for index in sorted(self.rings) if index % 2 == 0]

    @property
    def transmitters(self):
        return [self.rings[index] for index in sorted(self.rings) if index % 2 == 1]

    def attach(self, Ring ring not None):
        self.rings[ring.index] = ring

    def detach(self, Ring ring not None):
        self.rings.pop(ring.index, None)

    def reset(self):
        if self.rings:
            raise RuntimeError(f"{self.name}: rings are still attached")
        self.c.fault = 0
        fdb_forget_port(&self.fabric.c.fdb, self.c.index)

    def count(self, str event, amount=1):
        self.events[event] += amount

    def counters(self):
        cdef Worker worker
        total = dict.fromkeys(COUNTERS, 0)
        for i, name in enumerate(COUNTERS):
            total[name] = self.fabric.control.counters[self.c.index].value[i]
            for worker in self.fabric.workers:
                total[name] += worker.c.burst.counters[self.c.index].value[i]
        return total | self.events


@cython.final
cdef class Fabric:
    cdef fabric *c
    cdef burst *control  # the control plane's own hands
    cdef readonly str forward
    cdef dict ports_by_index
    cdef list workers

    def __cinit__(self, str forward="learn"):
        if forward not in POLICIES:
            raise ValueError(f"forward is {forward!r}, must be one of {', '.join(POLICIES)}")
        self.c = <fabric *>allocate(sizeof(fabric))
        self.control = <burst *>allocate(sizeof(burst))
        burst_init(self.control, self.c)
        self.c.policy = POLICIES.index(forward)
        self.forward = forward
        self.ports_by_index = {}
        self.workers = []
        guard_install()

    def __dealloc__(self):
        free(self.control)
        free(self.c)

    @property
    def ports(self):
        return tuple(self.ports_by_index[i] for i in sorted(self.ports_by_index))

    def add_port(self, str name):
        index = next((i for i in range(PORT_COUNT_MAX) if i not in self.ports_by_index), None)
        if index is None:
            raise ValueError(f"port {name}: there are {PORT_COUNT_MAX} ports already")
        port = Port(self, name, index)
        self.ports_by_index[index] = port
        self.lay_out()
        return port

    def remove_port(self, Port port not None):
        port.reset()
        del self.ports_by_index[port.index]
        self.lay_out()

    def close(self):
        cdef Port port
        cdef Worker worker
        for port in self.ports:
            close_once(&port.c.event_fd)
        for worker in self.workers:
            close_once(&worker.c.epoll_fd)
            close_once(&worker.c.wake_fd)

    def lay_out(self):
        """Tell the workers which rings there are. They rest meanwhile.

        A port whose kicks can't be waited for has a fault then. What is raised, for lack of memory,
        leaves the workers without any ring, until they are laid out again.
        """
        cdef Port port
        cdef Ring ring
        cdef Worker worker
        for worker in self.workers:
            worker.c.source_count = 0
        self.c.port_count = 0
        self.c.tells_logs = False
        for index in range(PORT_COUNT_MAX):
            self.c.by_index[index] = NULL
        for port in self.ports:
            self.c.port[self.c.port_count] = self.c.by_index[port.c.index] = port.c
            self.c.port_count += 1
            peer = self.ports_by_index.get(port.index ^ 1)
            port.c.peer = (<Port>peer).c if peer is not None else NULL
            port.c.receiver_count = 0
            port.c.log = NULL
            port.c.regions = NULL
            for ring in port.rings.values():
                port.c.log = ring.c.marker.log
                port.c.regions = ring.c.regions
                self.c.tells_logs |= port.c.log != NULL and port.c.log.event_fd >= 0
            for ring in port.receivers:
                port.c.receiver[port.c.receiver_count] = ring.c
                port.c.receiver_count += 1
        self._deal_sources()

    def _deal_sources(self):
        """A transmit ring belongs to one worker: each gets an equal share, in order."""
        sources = [(port, ring) for port in self.ports for ring in port.transmitters]
        busy = min(len(self.workers), len(sources))
        shares = [
            sources[i * len(sources) // busy:(i + 1) * len(sources) // busy] if i < busy else []
            for i in range(len(self.workers))
        ]
        fillers, watched = {}, set()
        for one in self.workers:
            watched |= (<Worker>one).kicks
        for worker, share in zip(self.workers, shares):
            targets = self._targets(share)
            for ring in targets:
                fillers.setdefault(ring, set()).add(worker)
            worker.set_sources(share, targets)
        for ring, workers in fillers.items():
            (<Ring>ring).c.shared = len(workers) > 1
        self._watch(watched)

    def _watch(self, set watched):
        """Wait for kicks: those that somebody waited for already come first, if room is short."""
        cdef Worker worker
        cdef Port port
        owners = {ring: port for port in self.ports for ring in port.rings.values()}
        for old in (True, False):
            for worker in self.workers:
                for ring in worker.held:
                    if (ring.kick_fd in watched) == old and not worker.watch(ring):
                        port = owners[ring]
                        port.c.fault = port.c.fault or FAULT_KICK
                        os.eventfd_write(port.c.event_fd, 1)

    def _targets(self, list sources):
        """The receive rings that frames of these (port, transmit ring) may reach, each once."""
        receivers = {port: port.receivers for port in self.ports}
        if self.forward == "learn":
            senders = {port for port, _ in sources}
            return [ring for port in self.ports if senders - {port} for ring in receivers[port]]
        reached = {}
        for port, ring in sources:
            peer = self.ports_by_index.get(port.index ^ 1)
            rings = receivers.get({"loopback": port, "patch": peer}.get(self.forward))
            if rings:
                reached[rings[ring.index // 2 % len(rings)]] = None
        return list(reached)

    def inject(self, Port port not None, const uint8_t[::1] frame not None):
        """Send a frame as if the port's guest had. The workers rest meanwhile."""
        inject(self.control, port.c, &frame[0], <uint32_t>frame.shape[0])

    def age(self, uint8_t limit):
        fdb_age(&self.c.fdb, limit)

    def find(self, bytes mac):
        index = fdb_find(&self.c.fdb, int.from_bytes(mac, "little"))
        return self.ports_by_index.get(index)

    def learn(self, bytes mac, Port port not None):
        fdb_learn(&self.c.fdb, int.from_bytes(mac, "little"), port.c.index)


@cython.final
cdef class Worker:
    cdef worker *c
    cdef readonly Fabric fabric
    cdef readonly str mode
    cdef readonly str level
    cdef set kicks
    cdef list held

    def __cinit__(self, Fabric fabric not None, str mode="adaptive", str level=None):
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, must be one of {', '.join(MODES)}")
        level = level or os.environ.get("VHOSTFAST_LEVEL") or levels()[0]
        if level not in levels():
            raise ValueError(f"level is {level!r}, must be one of {', '.join(levels())}")
        if len(fabric.workers) == WORKER_COUNT_MAX:
            raise ValueError(f"there are {WORKER_COUNT_MAX} workers already")
        self.c = <worker *>allocate(sizeof(worker))
        self.c.epoll_fd = self.c.wake_fd = -1
        worker_init(self.c)
        self.c.mode = MODES.index(mode)
        self.c.forward = burst_at(LEVELS.index(level))
        burst_init(&self.c.burst, fabric.c)
        self.c.spin_cycles = <uint64_t>(cycles_per_second() * SPIN_SECONDS)
        self.c.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.c.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.c.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.mode = mode
        self.level = level
        self.fabric = fabric
        self.kicks = set()
        self.held = []
        # All that there can be: the kernel gives pages as they are used.
        self.c.source = <source *>calloc(PORT_COUNT_MAX * PAIR_COUNT_MAX, sizeof(source))
        if self.c.source == NULL:
            raise MemoryError
        if not self._watch(self.c.wake_fd):
            raise OSError(errno, os.strerror(errno))
        fabric.workers.append(self)

    def __dealloc__(self):
        if self.c == NULL:
            return
        close_once(&self.c.epoll_fd)
        close_once(&self.c.wake_fd)
        free(self.c.source)
        free(self.c)

    def _watch(self, int fd):
        cdef epoll_event event
        event.events = EPOLLIN | EPOLLET
        event.data.u64 = fd
        return epoll_ctl(self.c.epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0

    def _unwatch(self, int fd):
        cdef epoll_event event
        if epoll_ctl(self.c.epoll_fd, EPOLL_CTL_DEL, fd, &event) < 0 and errno != ENOENT:
            raise OSError(errno, f"kick fd: {os.strerror(errno)}")

    def set_sources(self, list sources, list targets):
        """The (port, transmit ring) to poll, and the receive rings that they fill; `watch` each."""
        cdef source *entry
        cdef Ring ring
        cdef Port port
        for i, (port, ring) in enumerate(sources):
            entry = &self.c.source[i]
            entry.port = port.c
            entry.ring = ring.c
            entry.queue = ring.index // 2
            entry.waits_for = NULL
            entry.flooded = 0
        self.held = [ring for _, ring in sources] + targets
        kicks = {(<Ring>ring).kick_fd for ring in self.held}
        # A ring without a kick has to be polled, whatever the mode (vhost-user, SET_VRING_KICK).
        self.c.mode = MODES.index("poll" if -1 in kicks else self.mode)
        kicks.discard(-1)
        for fd in self.kicks - kicks:
            self._unwatch(fd)
        self.kicks &= kicks
        self.c.source_count = len(sources)

    def watch(self, Ring ring not None):
        """Wake up for the ring's kicks; False if the kernel has no room for that."""
        if ring.kick_fd < 0 or ring.kick_fd in self.kicks:
            return True
        if not self._watch(ring.kick_fd):
            return False
        self.kicks.add(ring.kick_fd)
        return True

    def run(self):
        with nogil:
            worker_run(self.c)

    def turn(self, bint forgive=True):
        cdef uint32_t moved
        with nogil:
            worker_tell(self.c, WORKER_GO)
            if forgive:
                accounts_forgive(&self.c.burst.accounts)
            moved = worker_turn(self.c)
            worker_tell(self.c, WORKER_REST)
        return moved

    def go(self):
        worker_tell(self.c, WORKER_GO)

    def rest(self):
        with nogil:
            worker_tell(self.c, WORKER_REST)

    def stop(self):
        with nogil:
            worker_tell(self.c, WORKER_STOP)

    @property
    def busy_cycles(self):
        return self.c.busy_cycles

    @property
    def packets(self):
        return self.c.packets

    @property
    def sleeps(self):
        return self.c.sleeps


_rate = 0.0


def cycles_per_second():
    """The rate of the counter behind busy_cycles, measured once over two milliseconds."""
    global _rate
    if _rate == 0.0:
        begin, start = cycle_count(), time.perf_counter()
        time.sleep(0.002)
        _rate = (cycle_count() - begin) / (time.perf_counter() - start)
    return _rate
