/*
 * The network as programs see it: an interface that the kernel has set up by `ip=dhcp`, ping, and HTTP.
 */
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>

static struct sockaddr_in address_of(const char *at)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    unsigned int address = 0;

    for (int i = 0; i < 4; i++, at += *at != 0)
        address = address << 8 | decimal(&at);
    to.sin_addr.s_addr = __builtin_bswap32(address);
    to.sin_port = __builtin_bswap16(decimal(&at));
    return to;
}

static void ping(struct sockaddr_in to)
{
    struct timeval patience = {20, 0};
    unsigned char packet[8 + 56] = {8, 0, 0, 0, 0x12, 0x34, 0, 1};
    unsigned long sum = 0;

    for (int i = 8; i < 64; i++)
        packet[i] = i;
    for (int i = 0; i < 64; i += 2)
        sum += packet[i] << 8 | packet[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    packet[2] = ~sum >> 8;
    packet[3] = ~sum;
    long fd = CALL(SYS_socket, AF_INET, SOCK_RAW, IPPROTO_ICMP);
    CALL5(SYS_setsockopt, fd, SOL_SOCKET, 20 /* SO_RCVTIMEO */, &patience, sizeof patience);
    syscall6(SYS_sendto, fd, (long)packet, sizeof packet, 0, (long)&to, sizeof to);
    for (int tries = 0; tries < 8; tries++) {
        long count = CALL(SYS_read, fd, buffer, CHUNK);
        if (count < 0)
            break;
        if (count >= 28 && buffer[20] == 0 && buffer[24] == 0x12 && buffer[25] == 0x34) {
            text("net: ping came back with ");
            number(count - 28);
            text(" bytes\n");
            say();
            break;
        }
    }
    CALL(SYS_close, fd, 0, 0);
}

static long call_server(const struct sockaddr_in *to, const char *method, unsigned long length)
{
    long fd = CALL(SYS_socket, AF_INET, SOCK_STREAM, 0);
    long error = CALL(SYS_connect, fd, to, sizeof *to);
    if (error)
        failed("connect", error);
    text(method);
    text(" /data HTTP/1.0\r\nContent-Length: ");
    number(length);
    text("\r\n\r\n");
    CALL(SYS_write, fd, line, used);
    used = 0;
    return fd;
}

/* Read an answer to its end, and sum up what comes after its header. */
static void answer(long fd, const char *what)
{
    unsigned int crc = 0;
    unsigned long length = 0;
    int ends = 0;

    for (long count; (count = CALL(SYS_read, fd, buffer, CHUNK)) > 0;) {
        long at = 0;
        for (; ends < 4 && at < count; at++)
            ends = buffer[at] == "\r\n\r\n"[ends] ? ends + 1 : buffer[at] == '\r';
        crc = crc32(crc, buffer + at, count - at);
        length += count - at;
    }
    CALL(SYS_close, fd, 0, 0);
    sum_up(what, length, crc);
}

/* Fetch and send on one processor: what it sends goes through one queue, which its answers come by as well. */
static void transfer(int cpu)
{
    struct sockaddr_in to = address_of(setting(environment, "server", "10.0.0.1:80"));
    const char *bytes = setting(environment, "bytes", "65536");
    unsigned long size = decimal(&bytes);
    unsigned int crc = 0, seed = 2 + cpu;

    pin(cpu);
    text("net: processor ");
    number(cpu);
    text("\n");
    say();
    answer(call_server(&to, "GET", 0), "net: fetched");
    long fd = call_server(&to, "PUT", size);
    for (unsigned long done = 0; done < size; done += CHUNK) {
        fill(&seed);
        crc = crc32(crc, buffer, CHUNK);
        for (long sent = 0; sent < CHUNK;) {
            long count = CALL(SYS_write, fd, buffer + sent, CHUNK - sent);
            if (count <= 0) {
                failed("send", count);
                return;
            }
            sent += count;
        }
    }
    sum_up("net: sent", size, crc);
    answer(fd, "net: answered");
}

static void net(void)
{
    text("net: address of ");
    quote("/sys/class/net/eth0/address");
    text(" mtu ");
    quote("/sys/class/net/eth0/mtu");
    text("\n");
    say();
    ping(address_of(setting(environment, "ping", "10.0.0.1")));
    for (int cpu = 0; cpu < processors(); cpu++)
        transfer(cpu);
}

/* What `ethtool -L eth0 combined PAIRS` does. */
static void use_queue_pairs(int pairs)
{
    struct ethtool_channels channels = {.cmd = ETHTOOL_SCHANNELS, .combined_count = pairs};
    struct ifreq request = {.ifr_name = "eth0", .ifr_data = (void *)&channels};
    long fd = CALL(SYS_socket, AF_INET, SOCK_DGRAM, 0);
    long error = CALL(SYS_ioctl, fd, SIOCETHTOOL, &request);

    if (error)
        failed("ethtool", error);
    CALL(SYS_close, fd, 0, 0);
}

static void await_carrier(const char *state)
{
    for (int tries = 0; tries < PATIENCE; tries++) {
        used = 0;
        quote("/sys/class/net/eth0/carrier");
        int there = begins(line, state);
        used = 0;
        if (there)
            break;
        rest();
    }
    text("link: carrier ");
    quote("/sys/class/net/eth0/carrier");
    text("\n");
    say();
}

static void cable(void)
{
    wait_for("link");
    await_carrier("0");
    await_carrier("1");
}
