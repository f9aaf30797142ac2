/* The guest's own program: its PID 1, and what busybox has no applet for.
 *
 * PID 1 reads commands from the second serial port, a line each, gives each to sh, and answers
 * with what it printed, the byte 0x1e, its exit status and a newline. The first such answer says
 * that the guest is up. The first serial port is the kernel's console.
 *
 *   guest exchange listen|connect ADDRESS PORT SENT RECEIVED
 *       one TCP connection, both directions at once: the file SENT goes out, what comes in is
 *       written to RECEIVED, until both ends have seen the other's end of stream; IPv4 or IPv6
 *   guest card INTERFACE
 *       "rx_entries N", "tx_entries N", then every counter of its driver, as "NAME N"
 *   guest pattern INTERFACE PEER FLOW FRAMES_PER_S TOTALS
 *       frames that prove themselves (csrc/driver/frame.h) to the MAC address PEER, at that rate,
 *       none with 0, numbered from 0; and every byte of those that come with the same flow is
 *       checked. It goes on in the background, its process is what is printed; at each SIGUSR1 the
 *       file TOTALS appears, "NAME N" a line
 *   guest dirty KIB
 *       writes to each page of so much memory, again and again, in the background
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/ether.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "driver/flow.h"
#include "driver/frame.h"

enum { PART_SIZE = 65536, LINE_SIZE = 4096, CONNECT_TRIES = 100, SILENCE_MS = 60000 };
enum { DIRTY_PAGE = 4096, DIRTY_PAUSE_US = 10000 };

static void fail(const char *what)
{
    fprintf(stderr, "guest: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* The caller is told our process and goes on; from here on nobody reads what we print. */
static void background(void)
{
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child) {
        printf("%d\n", child);
        exit(0);
    }
    int nothing = open("/dev/null", O_WRONLY);
    dup2(nothing, 1);
    dup2(nothing, 2);
}

/* ---- exchange ---- */

union address {
    struct sockaddr any;
    struct sockaddr_in ip;
    struct sockaddr_in6 ipv6;
};

static union address address_of(const char *host, const char *port)
{
    union address address = {.ipv6 = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port))}};
    if (inet_pton(AF_INET6, host, &address.ipv6.sin6_addr) == 1)
        return address;
    address = (union address){.ip = {.sin_family = AF_INET, .sin_port = htons(atoi(port))}};
    if (inet_pton(AF_INET, host, &address.ip.sin_addr) != 1)
        fail("address");
    return address;
}

static int tcp_listen(const union address *address)
{
    int one = 1, listener = socket(address->any.sa_family, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, &address->any, sizeof *address) || listen(listener, 1))
        fail("listen");
    struct pollfd wait = {.fd = listener, .events = POLLIN};
    if (poll(&wait, 1, SILENCE_MS) != 1) {
        errno = ETIMEDOUT;
        fail("accept");
    }
    return accept(listener, NULL, NULL);
}

/* The other guest may not listen yet: a refusal is tried again, for ten seconds. */
static int tcp_connect(const union address *address)
{
    for (int i = 0; i < CONNECT_TRIES; i++) {
        int connection = socket(address->any.sa_family, SOCK_STREAM, 0);
        if (!connect(connection, &address->any, sizeof *address))
            return connection;
        if (errno != ECONNREFUSED)
            break;
        close(connection);
        usleep(100000);
    }
    fail("connect");
    return -1;
}

/* What is read from the file and not yet sent; `end` once the file has no more. */
struct outgoing {
    char block[PART_SIZE];
    size_t first, count;
    int end;
};

static void send_some(int connection, int file, struct outgoing *out)
{
    if (!out->count) {
        ssize_t n = read(file, out->block, PART_SIZE);
        if (n < 0)
            fail("read");
        out->first = 0;
        out->count = (size_t)n;
        if (!n) {
            out->end = 1;
            shutdown(connection, SHUT_WR);
            return;
        }
    }
    ssize_t n = send(connection, out->block + out->first, out->count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN)
        fail("send");
    if (n > 0) {
        out->first += (size_t)n;
        out->count -= (size_t)n;
    }
}

/* 1 at the end of the stream. */
static int receive_some(int connection, int file)
{
    static char block[PART_SIZE];
    ssize_t n = recv(connection, block, sizeof block, MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN)
        fail("receive");
    if (n > 0 && write(file, block, (size_t)n) != n)
        fail("write");
    return n == 0;
}

static int exchange(char **argument)
{
    static struct outgoing out;
    union address address = address_of(argument[1], argument[2]);
    int sent = open(argument[3], O_RDONLY);
    int received = open(argument[4], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (sent < 0 || received < 0)
        fail("open");
    int listens = !strcmp(argument[0], "listen");
    int connection = listens ? tcp_listen(&address) : tcp_connect(&address);
    for (int end = 0; !end || !out.end;) {
        short events = (end ? 0 : POLLIN) | (out.end ? 0 : POLLOUT);
        struct pollfd wait = {.fd = connection, .events = events};
        if (poll(&wait, 1, SILENCE_MS) != 1) {
            errno = ETIMEDOUT;
            fail("exchange");
        }
        if (!end && wait.revents & (POLLIN | POLLHUP | POLLERR))
            end = receive_some(connection, received);
        if (!out.end && wait.revents & POLLOUT)
            send_some(connection, sent, &out);
    }
    return 0;
}

/* ---- card ---- */

static void ethtool(int socket, const char *interface, void *command, const char *what)
{
    struct ifreq request = {.ifr_data = command};
    strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
    if (ioctl(socket, SIOCETHTOOL, &request))
        fail(what);
}

static int card(char **argument)
{
    const char *interface = argument[0];
    int socket_fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ethtool_ringparam ring = {.cmd = ETHTOOL_GRINGPARAM};
    ethtool(socket_fd, interface, &ring, "ring sizes");
    printf("rx_entries %u\ntx_entries %u\n", ring.rx_pending, ring.tx_pending);

    struct ethtool_drvinfo driver = {.cmd = ETHTOOL_GDRVINFO};
    ethtool(socket_fd, interface, &driver, "driver");
    struct ethtool_gstrings *names = calloc(1, sizeof *names + driver.n_stats * ETH_GSTRING_LEN);
    struct ethtool_stats *stats = calloc(1, sizeof *stats + driver.n_stats * sizeof stats->data[0]);
    if (!names || !stats)
        fail("memory");
    *names = (struct ethtool_gstrings){ETHTOOL_GSTRINGS, ETH_SS_STATS, driver.n_stats};
    ethtool(socket_fd, interface, names, "counter names");
    *stats = (struct ethtool_stats){ETHTOOL_GSTATS, driver.n_stats};
    ethtool(socket_fd, interface, stats, "counters");
    for (unsigned i = 0; i < driver.n_stats; i++)
        printf("%.*s %llu\n", ETH_GSTRING_LEN, names->data + i * ETH_GSTRING_LEN, stats->data[i]);
    return 0;
}

/* ---- pattern ---- */

enum pattern_limit {
    PATTERN_SIZE_MIN = 60,
    PATTERN_SIZE_MAX = 1514,
    PATTERN_SIZE_STEP = 61, /* no divisor of their difference: all sizes come up */
    PATTERN_BUFFER = 8 << 20,
};

struct pattern {
    int packets; /* a packet socket of our frames alone */
    uint32_t flow;
    uint64_t station[2];     /* what our frames begin with */
    uint64_t theirs[2];      /* what theirs have to begin with */
    uint64_t interval_ns;    /* 0: none is sent */
    uint64_t next_ns;        /* when the next one is due */
    uint64_t sent, corrupt;
    struct flow received;
};

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void pattern_station(uint64_t station[2], const uint8_t *to, const uint8_t *from,
                            uint32_t flow)
{
    uint8_t head[16] = {[12] = FRAME_ETHERTYPE >> 8, FRAME_ETHERTYPE & 0xff, (uint8_t)flow};
    memcpy(head, to, 6);
    memcpy(head + 6, from, 6);
    memcpy(station, head, sizeof head);
}

static void pattern_open(struct pattern *pattern, const char *interface, const char *peer)
{
    int size = PATTERN_BUFFER;
    struct ifreq request = {0};
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(FRAME_ETHERTYPE),
        .sll_ifindex = (int)if_nametoindex(interface),
    };
    const struct ether_addr *there = ether_aton(peer);
    pattern->packets = socket(AF_PACKET, SOCK_RAW, 0);
    strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
    if (!there || ioctl(pattern->packets, SIOCGIFHWADDR, &request) ||
        setsockopt(pattern->packets, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) ||
        bind(pattern->packets, (const struct sockaddr *)&address, sizeof address))
        fail("pattern");
    const uint8_t *here = (const uint8_t *)request.ifr_hwaddr.sa_data;
    pattern_station(pattern->station, there->ether_addr_octet, here, pattern->flow);
    pattern_station(pattern->theirs, here, there->ether_addr_octet, pattern->flow);
}

/* Frames of a time in which we did not run are not made up for. */
static void pattern_send(struct pattern *pattern)
{
    static uint8_t block[PATTERN_SIZE_MAX];
    uint64_t now = now_ns();
    if (!pattern->interval_ns || now < pattern->next_ns)
        return;
    uint64_t range = PATTERN_SIZE_MAX - PATTERN_SIZE_MIN + 1;
    uint32_t size = PATTERN_SIZE_MIN + (uint32_t)(pattern->sent * PATTERN_SIZE_STEP % range);
    frame_fill(block, pattern->station, pattern->sent, size);
    if (send(pattern->packets, block, size, MSG_DONTWAIT) == (ssize_t)size)
        pattern->sent++;
    else if (errno != EAGAIN && errno != ENOBUFS)
        fail("send");
    pattern->next_ns += pattern->interval_ns;
    if (pattern->next_ns < now)
        pattern->next_ns = now + pattern->interval_ns;
}

/* False once nothing waits. A good frame of another flow is somebody else's here. */
static bool pattern_receive(struct pattern *pattern)
{
    static uint8_t block[PATTERN_SIZE_MAX + 1];
    ssize_t size = recv(pattern->packets, block, sizeof block, MSG_DONTWAIT | MSG_TRUNC);
    if (size < 0)
        return false;
    struct frame frame = frame_load(block);
    bool good = size >= FRAME_PROVEN_MIN && size <= PATTERN_SIZE_MAX &&
                frame_look(&frame, (uint32_t)size, true) == FRAME_GOOD &&
                frame_holds(block, &frame) && frame.station[0] == pattern->theirs[0];
    if (good && frame_flow(&frame) != pattern->flow)
        return true;
    if (!good || frame.station[1] != pattern->theirs[1] ||
        !flow_note(&pattern->received, frame.sequence))
        pattern->corrupt++;
    return true;
}

/* The file is there only when it is whole. */
static void pattern_report(const struct pattern *pattern, const char *path)
{
    char partial[128];
    const struct flow *in = &pattern->received;
    snprintf(partial, sizeof partial, "%s.partial", path);
    FILE *file = fopen(partial, "w");
    if (!file)
        fail(partial);
    fprintf(file, "sent %lu\nreceived %lu\nmissing %lu\nreordered %lu\nrepeated %lu\ncorrupt %lu\n",
            pattern->sent, in->received, in->missing, in->reordered, in->repeated,
            pattern->corrupt);
    if (fclose(file) || rename(partial, path))
        fail(path);
}

static _Noreturn void pattern(char **argument)
{
    static struct pattern pattern;
    struct signalfd_siginfo signal = {0};
    sigset_t set;
    uint64_t rate = strtoull(argument[3], NULL, 10);
    pattern.flow = (uint32_t)strtoul(argument[2], NULL, 10);
    pattern.interval_ns = rate ? 1000000000 / rate : 0;
    pattern_open(&pattern, argument[0], argument[1]);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    struct pollfd wait[] = {
        {.fd = pattern.packets, .events = POLLIN},
        {.fd = signalfd(-1, &set, SFD_NONBLOCK), .events = POLLIN},
    };
    for (background();;) {
        uint64_t now = now_ns();
        uint64_t left = pattern.next_ns > now ? pattern.next_ns - now : 0;
        struct timespec until_next = {.tv_nsec = (long)left};
        ppoll(wait, 2, pattern.interval_ns ? &until_next : NULL, NULL);
        while (pattern_receive(&pattern))
            ;
        pattern_send(&pattern);
        if (read(wait[1].fd, &signal, sizeof signal) == sizeof signal)
            pattern_report(&pattern, argument[4]);
    }
}

/* ---- dirty ---- */

static _Noreturn void dirty(char **argument)
{
    size_t size = strtoul(argument[0], NULL, 10) * 1024;
    volatile char *block = calloc(1, size);
    if (!block)
        fail("memory");
    for (background();; usleep(DIRTY_PAUSE_US))
        for (size_t i = 0; i < size; i += DIRTY_PAGE)
            block[i]++;
}

/* ---- PID 1 ---- */

static void load(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/modules/%s.ko", name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || syscall(SYS_finit_module, file, "", 0))
        fprintf(stderr, "guest: %s: %s\n", path, strerror(errno));
    close(file);
}

static void prepare(void)
{
    static const char *const modules[] = {
        "failover", "net_failover", "virtio_ring", "virtio",
        "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_net",
    };
    mount("proc", "/proc", "proc", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("tmpfs", "/tmp", "tmpfs", 0, "size=75%");
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++)
        load(modules[i]);
    setenv("PATH", "/bin", 1);
}

/* Raw: no echo, no line editing, no carriage returns. */
static int open_commands(void)
{
    struct termios mode;
    int serial = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (serial < 0 || tcgetattr(serial, &mode))
        fail("ttyS1");
    cfmakeraw(&mode);
    cfsetspeed(&mode, B115200);
    mode.c_cflag |= CLOCAL;
    tcsetattr(serial, TCSANOW, &mode);
    return serial;
}

static void read_line(int serial, char *line)
{
    size_t size = 0;
    for (char c; size < LINE_SIZE - 1 && read(serial, &c, 1) == 1 && c != '\n';)
        line[size++] = c;
    line[size] = 0;
}

static int run(int serial, const char *line)
{
    int status = 0;
    pid_t child = fork();
    if (!child) {
        int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, 0);
        dup2(serial, 1);
        dup2(serial, 2);
        execl("/bin/sh", "sh", "-c", line, NULL);
        _exit(127);
    }
    /* Whatever else has ended and has no parent but us is reaped on the way. */
    for (pid_t ended; (ended = wait(&status)) != child && ended > 0;)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static _Noreturn void serve(void)
{
    static char line[LINE_SIZE];
    prepare();
    int serial = open_commands();
    for (int status = 0;; status = run(serial, line)) {
        tcdrain(serial);
        dprintf(serial, "\x1e%d\n", status);
        read_line(serial, line);
    }
}

int main(int count, char **argument)
{
    if (getpid() == 1)
        serve();
    if (count == 7 && !strcmp(argument[1], "exchange"))
        return exchange(argument + 2);
    if (count == 3 && !strcmp(argument[1], "card"))
        return card(argument + 2);
    if (count == 7 && !strcmp(argument[1], "pattern"))
        pattern(argument + 2);
    if (count == 3 && !strcmp(argument[1], "dirty"))
        dirty(argument + 2);
    fputs("usage: guest exchange listen|connect ADDRESS PORT SENT RECEIVED\n"
          "       guest card INTERFACE\n"
          "       guest pattern INTERFACE PEER FLOW FRAMES_PER_S TOTALS\n"
          "       guest dirty KIB\n", stderr);
    return 2;
}
