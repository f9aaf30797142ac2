/* Memory of machine 1 that vanishes amid a load: any page of its rings and tables, or its log. */
#ifndef FUZZ_LOSS_H
#define FUZZ_LOSS_H

#include "scene.h"
#include "vanish.h"

enum { LOSER = 1, LOSS_PAGES = HIGH_SIZE / PAGE };

static struct vanishing lost_memory, lost_log;
static bool lost;

/* Called amid the code under test. */
static void lose(uint64_t what)
{
    lost = true;
    if (what % (LOSS_PAGES + 1) == LOSS_PAGES)
        vanish(&lost_log, 0);
    else
        vanish(&lost_memory, what % (LOSS_PAGES + 1));
}

/* All is there again, and blank where it was lost. */
static void loss_mend(void)
{
    for (size_t page = 0; lost && page < LOSS_PAGES; page++)
        CHECK(ftruncate(lost_memory.fd[page], PAGE) == 0);
    if (lost)
        CHECK(ftruncate(lost_log.fd[0], PAGE) == 0);
}

static void loss_start(void)
{
    struct machine *it = &machine[LOSER];
    loss_mend();
    lost = false;
    if (lost_memory.host != NULL)
        return;
    machines_take();
    lost_memory = (struct vanishing){.host = it->table.region[2].host, .page_count = LOSS_PAGES};
    for (size_t page = 0; page < LOSS_PAGES; page++)
        vanishing_back(&lost_memory, page);
    vanishing_take(&lost_log, 1);
    it->log.word = (uint64_t *)lost_log.host;
    change_vanishes = lose;
    guard_install();
}

static void plan_loss(struct input *in)
{
    plan(in, (struct change){.value = take(in, 1)});
}

#endif
