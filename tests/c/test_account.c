/* Who has its turn, who sits out, and for how long. */
#include "account.h"

#include "check.h"

static struct accounts accounts;

static uint32_t slices_until(bool (*holds)(struct accounts *, uint32_t), bool wanted)
{
    uint32_t slices = 0;
    for (; holds(&accounts, 3) != wanted; slices++)
        accounts.slice++;
    return slices;
}

static void start(void)
{
    accounts_forgive(&accounts);
    accounts.slice = UINT32_MAX - 1; /* it wraps amid */
    CHECK(account_admits(&accounts, 3) && !account_refuses(&accounts, 3));
}

static void test_turns(void)
{
    start();
    account_turn(&accounts, 3, QUANTUM_CYCLES - 1);
    CHECK(account_admits(&accounts, 3)); /* and so have its other queues, in this slice */
    account_turn(&accounts, 3, 10 * QUANTUM_CYCLES + 1);
    CHECK(account_admits(&accounts, 3));
    accounts.slice++;
    CHECK(!account_admits(&accounts, 3) && account_admits(&accounts, 4));
    SAME(0, slices_until(account_admits, true), 10);
    accounts.slice += 1000; /* nothing is kept for later */
    CHECK(account_admits(&accounts, 3));
    account_turn(&accounts, 3, 2 * QUANTUM_CYCLES);
    SAME(1, slices_until(account_admits, false), 1);
    account_turn(&accounts, 3, UINT64_MAX);
    accounts.slice += DEBT_CYCLES_MAX / QUANTUM_CYCLES + 2;
    CHECK(account_admits(&accounts, 3));
}

static void test_receivers(void)
{
    const uint32_t pieces_max = OWED_CYCLES_MAX / PIECE_CYCLES;
    start();
    CHECK(!account_minds(PIECES_COMMON + 1024, 65536));
    CHECK(account_minds(PIECES_COMMON + 1025, 65536));
    CHECK(!account_minds(PIECES_COMMON, 63) && account_minds(PIECES_COMMON + 1, 63));
    account_room(&accounts, 3, pieces_max);
    CHECK(!account_refuses(&accounts, 3));
    account_room(&accounts, 3, 1);
    CHECK(account_refuses(&accounts, 3) && !account_refuses(&accounts, 4));
    CHECK(account_admits(&accounts, 4));
    /* Who sent the two frames pays for its own work only. */
    account_turn(&accounts, 4, OWED_CYCLES_MAX + PIECE_CYCLES + 100);
    SAME(1, accounts.port[4].credit, QUANTUM_CYCLES - 100);
    account_turn(&accounts, 4, 100);
    SAME(2, accounts.port[4].credit, QUANTUM_CYCLES - 200);
    /* The receiver sends nothing before it has paid, and gets frames again a little sooner. */
    CHECK(account_admits(&accounts, 3)); /* in this slice it was, before */
    SAME(3, slices_until(account_refuses, false), 1);
    CHECK(!account_admits(&accounts, 3));
    SAME(4, slices_until(account_admits, true), 64);
}

int main(void)
{
    test_turns();
    test_receivers();
    return 0;
}
