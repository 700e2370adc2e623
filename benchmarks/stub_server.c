/* A server of streamed completions that costs next to nothing, for benchmarks of load clients (client.py builds it).

   stub_server TTFT_MS ITL_MS CHUNKS ARRIVALS

   Prints its port on 127.0.0.1. Each POST gets CHUNKS chunks of one token in the layout of vLLM's /v1/completions: the
   first after TTFT_MS, the others every ITL_MS, then the usage and [DONE]. Each GET gets a list of one model. When its
   standard input ends it writes to ARRIVALS when each POST came (monotonic ns, one a line) and prints, as JSON, how many
   it answered, its CPU time and how late its own chunks were. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 8192 /* of 1 ms: the longest TTFT or ITL */
#define MAX_FDS 65536
#define MAX_REQUESTS 4000000

struct connection {
    char in[16384];
    int used, step, next;
    int64_t due_ns;
};
static struct connection *connections[MAX_FDS];
static int slots[SLOTS];
static int64_t arrivals[MAX_REQUESTS];
static float late_ms[MAX_REQUESTS * 4];
static long requests, answered, written, dropped;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void say(int fd, const char *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size) dropped++;
}

static int as_chunk(char *out, const char *json) {
    int size = (int)strlen(json) + 8; /* "data: " and two line ends */
    return sprintf(out, "%x\r\ndata: %s\n\n\r\n", size, json);
}

static void schedule(int fd, int64_t due_ns) {
    struct connection *c = connections[fd];
    int slot = (int)((due_ns + 999999) / 1000000 % SLOTS);
    c->due_ns = due_ns;
    c->next = slots[slot];
    slots[slot] = fd;
}

static void chunk_out(int fd, int chunks) {
    struct connection *c = connections[fd];
    char json[512], out[2048];
    int size = 0;
    if (c->step == 0)
        size += sprintf(out, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                             "transfer-encoding: chunked\r\n\r\n");
    c->step++;
    sprintf(json,
            "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":1764270000,"
            "\"model\":\"stub\",\"choices\":[{\"index\":0,\"text\":\" word\",\"logprobs\":null,\"finish_reason\":%s,"
            "\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":16,\"total_tokens\":%d,\"completion_tokens\":%d}}",
            c->step == chunks ? "\"length\"" : "null", 16 + c->step, c->step);
    size += as_chunk(out + size, json);
    if (c->step == chunks) {
        sprintf(json, "{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\"created\":"
                      "1764270000,\"model\":\"stub\",\"choices\":[],\"usage\":{\"prompt_tokens\":16,\"total_tokens\":%d,"
                      "\"completion_tokens\":%d}}", 16 + chunks, chunks);
        size += as_chunk(out + size, json);
        size += as_chunk(out + size, "[DONE]");
        size += sprintf(out + size, "0\r\n\r\n");
        answered++;
    }
    say(fd, out, (size_t)size);
}

static void drop(int fd) { /* what is scheduled for it finds it closed */
    close(fd);
    connections[fd]->used = -1;
}

static void take(int fd, int64_t ttft_ns) {
    struct connection *c = connections[fd];
    ssize_t got = recv(fd, c->in + c->used, sizeof c->in - 1 - (size_t)c->used, MSG_DONTWAIT);
    if (got <= 0) {
        drop(fd);
        return;
    }
    c->used += (int)got;
    c->in[c->used] = 0;
    char *body = strstr(c->in, "\r\n\r\n");
    if (!body) return;
    char *length = strcasestr(c->in, "content-length:");
    int size = (int)(body + 4 - c->in) + (length && length < body ? atoi(length + 15) : 0);
    if (c->used < size) return;
    c->used = 0;
    if (!strncmp(c->in, "GET", 3)) {
        const char *models = "{\"object\":\"list\",\"data\":[{\"id\":\"stub\",\"object\":\"model\",\"root\":\"stub\"}]}";
        char out[512];
        int n = sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                        strlen(models), models);
        say(fd, out, (size_t)n);
        return;
    }
    c->step = 0;
    int64_t came_ns = now_ns();
    if (requests < MAX_REQUESTS) arrivals[requests] = came_ns;
    requests++;
    schedule(fd, came_ns + ttft_ns);
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void report(const char *path) {
    FILE *file = fopen(path, "w");
    for (long i = 0; file && i < requests && i < MAX_REQUESTS; i++) fprintf(file, "%lld\n", (long long)arrivals[i]);
    if (file) fclose(file);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
                   + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    qsort(late_ms, (size_t)written, sizeof *late_ms, ascending);
    printf("{\"requests\": %ld, \"answered\": %ld, \"dropped\": %ld, \"cpu_s\": %.3f, \"late_p50_ms\": %.3f, "
           "\"late_p99_ms\": %.3f}\n", requests, answered, dropped, cpu_s,
           written ? (double)late_ms[written / 2] : 0.0, written ? (double)late_ms[written * 99 / 100] : 0.0);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int64_t ttft_ns = (int64_t)(atof(argv[1]) * 1e6), itl_ns = (int64_t)(atof(argv[2]) * 1e6);
    int chunks = atoi(argv[3]), on = 1;
    memset(slots, -1, sizeof slots);
    int server = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(server, (struct sockaddr *)&address, size) || listen(server, 4096)) return 1;
    getsockname(server, (struct sockaddr *)&address, &size);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = server}, events[512];
    epoll_ctl(poll, EPOLL_CTL_ADD, server, &event);
    event.data.fd = 0;
    epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int64_t slot_ms = now_ns() / 1000000;
    for (;;) {
        int ready = epoll_wait(poll, events, 512, 1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == 0) {
                char none[64];
                if (read(0, none, sizeof none) > 0) continue;
                report(argv[4]);
                return 0;
            }
            if (fd != server) {
                take(fd, ttft_ns);
                continue;
            }
            int accepted = accept(server, NULL, NULL);
            if (accepted < 0 || accepted >= MAX_FDS) continue;
            setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            if (!connections[accepted]) connections[accepted] = calloc(1, sizeof(struct connection));
            connections[accepted]->used = 0;
            event.data.fd = accepted;
            epoll_ctl(poll, EPOLL_CTL_ADD, accepted, &event);
        }
        int64_t until_ms = now_ns() / 1000000;
        for (; slot_ms <= until_ms; slot_ms++) {
            int fd = slots[slot_ms % SLOTS];
            slots[slot_ms % SLOTS] = -1;
            while (fd >= 0) {
                struct connection *c = connections[fd];
                int following = c->next;
                if (c->used >= 0) {
                    int64_t t_ns = now_ns();
                    if (written < MAX_REQUESTS * 4) late_ms[written++] = (float)(t_ns - c->due_ns) / 1e6f;
                    chunk_out(fd, chunks);
                    if (c->step < chunks) schedule(fd, c->due_ns + itl_ns);
                }
                fd = following;
            }
        }
    }
}
