/* A few threads that run one function together, with barriers in between.
 *
 * The step has hundreds of short phases, so a barrier spins; it yields after a while,
 * for machines where somebody else has the other core. Between steps the threads sleep.
 */
#ifndef LORRY_POOL_H
#define LORRY_POOL_H

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Before a waiting thread offers its core to whoever else wants it. Where all cores are
 * taken, a step of 30 layers took 10 times longer with 20000 than with 100 (the thread
 * that the others wait for could not run); where they are free, it makes no difference. */
#define SPINS 100

typedef void (*Job)(void *argument, int thread);

typedef struct Pool {
    int size; /* the caller's thread included */
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t begun;
    unsigned long job_number;
    int stopping;
    Job job;
    void *argument;
    atomic_int arrived;
    atomic_uint phase;
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
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
        return;
    }
    int spins = 0;
    while (atomic_load_explicit(&pool->phase, memory_order_acquire) == phase) {
        if (++spins < SPINS) _mm_pause();
        else sched_yield();
    }
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
    *pool = (Pool){.size = 1};
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
