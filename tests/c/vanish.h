/* Memory that can vanish, a page at a time: each page is the first of a file of its own. */
#ifndef TESTS_VANISH_H
#define TESTS_VANISH_H

#include <unistd.h>

#include "check.h"

struct vanishing {
    uint8_t *host;
    size_t page_count;
    int fd[64]; /* of each page */
};

static inline void vanishing_back(struct vanishing *memory, size_t page)
{
    uint8_t *at = memory->host + page * PAGE;
    int fd = memory->fd[page] = memfd_create("page", MFD_CLOEXEC);
    CHECK(ftruncate(fd, PAGE) == 0);
    CHECK(mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at);
}

static inline void vanishing_take(struct vanishing *memory, size_t page_count)
{
    memory->host = guarded_pages(page_count * PAGE);
    memory->page_count = page_count;
    CHECK(page_count <= COUNT(memory->fd));
    for (size_t page = 0; page < page_count; page++)
        vanishing_back(memory, page);
}

static inline void vanish(struct vanishing *memory, size_t page)
{
    CHECK(ftruncate(memory->fd[page], 0) == 0);
}

static inline void vanishing_give(struct vanishing *memory)
{
    for (size_t page = 0; page < memory->page_count; page++)
        CHECK(close(memory->fd[page]) == 0);
    CHECK(munmap(memory->host - PAGE, (memory->page_count + 2) * PAGE) == 0);
}

#endif
