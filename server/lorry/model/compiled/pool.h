/* A few threads that run one function together, with barriers in between.
 *
 * The step has hundreds of short phases, so a barrier spins. Not for long: on a machine
 * where somebody else has the other core, the thread that is waited for cannot run while
 * its core is being spun on, so the waiting one sleeps. Between steps all of them do.
 */
#ifndef LORRY_POOL_H
#define LORRY_POOL_H

#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Bounds of the turns that a waiting thread spins before it sleeps. Within them it learns:
 * a wait that ended in time earns more, one that did not halves them. Measured in
 * server/decisions/0005-compiled-step.md. */
#define LEAST_SPINS 32
#define MOST_SPINS 1000

typedef void (*Job)(void *argument, int thread);

/* Two lines of a cache, which processors fetch in pairs. Threads that wait look at `phase`: they
 * would lose its line to every thread that arrives. */
#define APART 128

typedef struct Pool {
    int size; /* the caller's thread included */
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t begun;
    unsigned long job_number;
    int stopping;
    Job job;
    void *argument;
    char before[APART];
    atomic_int arrived;
    char between[APART];
    atomic_uint phase;
    atomic_int asleep, spins;
    char after[APART];
} Pool;

typedef struct {
    Pool *pool;
    int thread;
} Worker;

static void barrier(Pool *pool) {
    if (pool->size == 1) return;
    unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->size - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        /* In one order with the sleeper's, who counts itself and then looks at the phase:
         * one of the two sees the other. */
        atomic_store(&pool->phase, phase + 1);
        if (atomic_load(&pool->asleep))
            syscall(SYS_futex, &pool->phase, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
        return;
    }
    const int spins = atomic_load_explicit(&pool->spins, memory_order_relaxed);
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&pool->phase, memory_order_acquire) != phase) {
            if (spins < MOST_SPINS)
                atomic_store_explicit(&pool->spins, spins + spins / 8, memory_order_relaxed);
            return;
        }
        _mm_pause();
    }
    atomic_store_explicit(&pool->spins, spins / 2 > LEAST_SPINS ? spins / 2 : LEAST_SPINS,
                          memory_order_relaxed);
    atomic_fetch_add(&pool->asleep, 1);
    while (atomic_load(&pool->phase) == phase)
        syscall(SYS_futex, &pool->phase, FUTEX_WAIT_PRIVATE, phase, NULL, NULL, 0);
    atomic_fetch_sub(&pool->asleep, 1);
}

static void *pool_worker(void *given) {
    Worker me = *(Worker *)given;
    free(given);
    unsigned long seen = 0;
    for (;;) {
        pthread_mutex_lock(&me.pool->lock);
        while (me.pool->job_number == seen && !me.pool->stopping)
            pthread_cond_wait(&me.pool->begun, &me.pool->lock);
        seen = me.pool->job_number;
        int stopping = me.pool->stopping;
        pthread_mutex_unlock(&me.pool->lock);
        if (stopping) return NULL;
        me.pool->job(me.pool->argument, me.thread);
        barrier(me.pool);
    }
}

/* Runs `job` in every thread and returns when all are done. */
static void pool_run(Pool *pool, Job job, void *argument) {
    pthread_mutex_lock(&pool->lock);
    pool->job = job;
    pool->argument = argument;
    pool->job_number++;
    pthread_cond_broadcast(&pool->begun);
    pthread_mutex_unlock(&pool->lock);
    job(argument, 0);
    barrier(pool);
}

static void pool_stop(Pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->stopping = 1;
    pthread_cond_broadcast(&pool->begun);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i < pool->size; i++) pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->begun);
    free(pool->threads);
}

/* 0, or -1 where threads cannot be had. */
static int pool_start(Pool *pool, int size) {
    *pool = (Pool){.size = 1, .spins = MOST_SPINS};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->begun, NULL);
    pool->threads = calloc((size_t)size, sizeof *pool->threads);
    if (!pool->threads) return -1;
    for (int i = 1; i < size; i++) {
        Worker *worker = malloc(sizeof *worker);
        if (worker) *worker = (Worker){pool, i};
        if (!worker || pthread_create(&pool->threads[i], NULL, pool_worker, worker)) {
            free(worker);
            pool_stop(pool);
            return -1;
        }
        pool->size = i + 1;
    }
    return 0;
}

#endif
