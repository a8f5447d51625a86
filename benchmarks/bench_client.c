/* Single-row inserts into a SQLite database, as litefs bench does them: what it is measured against.
 *
 *     bench_client PATH SECONDS ROW_SIZE
 *
 * Makes the database, which must not exist, and prints "SQLITE_VERSION INSERTS_PER_SECOND P50_NS P99_NS".
 */
#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { WARMUP = 1000, POOL = 1 << 20 };

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void check(sqlite3 *database, int code, int wanted) {
    if (code != wanted) {
        fprintf(stderr, "bench_client: %s\n", sqlite3_errmsg(database));
        exit(1);
    }
}

static int by_value(const void *a, const void *b) {
    int64_t first = *(const int64_t *)a, second = *(const int64_t *)b;
    return (first > second) - (first < second);
}

static void insert(sqlite3 *database, sqlite3_stmt *statement, const char *pool, int row, int64_t number) {
    sqlite3_bind_int64(statement, 1, number);
    sqlite3_bind_blob(statement, 2, pool + number * 7919 % (POOL - row), row, SQLITE_STATIC);
    check(database, sqlite3_step(statement), SQLITE_DONE);
    check(database, sqlite3_reset(statement), SQLITE_OK);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: bench_client PATH SECONDS ROW_SIZE\n");
        return 2;
    }
    int row = atoi(argv[3]);
    int64_t length = (int64_t)(atof(argv[2]) * 1e9), count = 0, room = 1 << 20;
    int64_t *latencies = malloc(room * sizeof *latencies);
    char *pool = malloc(POOL);
    if (latencies == NULL || pool == NULL || row < 0 || row >= POOL)
        return 2;
    sqlite3_randomness(POOL, pool);
    sqlite3 *database;
    sqlite3_stmt *statement;
    check(NULL, sqlite3_open(argv[1], &database), SQLITE_OK);
    check(database,
          sqlite3_exec(database,
                       "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
                       "CREATE TABLE entry(id INTEGER PRIMARY KEY, num INTEGER, data BLOB)",
                       NULL, NULL, NULL),
          SQLITE_OK);
    check(database,
          sqlite3_prepare_v2(database, "INSERT INTO entry(num, data) VALUES(?,?)", -1, &statement, NULL),
          SQLITE_OK);
    for (int64_t number = 0; number < WARMUP; number++)
        insert(database, statement, pool, row, number);
    int64_t start = now_ns(), last = start;
    while (last - start < length) {
        insert(database, statement, pool, row, WARMUP + count);
        int64_t now = now_ns();
        if (count == room) {
            latencies = realloc(latencies, (room *= 2) * sizeof *latencies);
            if (latencies == NULL)
                return 2;
        }
        latencies[count++] = now - last;
        last = now;
    }
    qsort(latencies, count, sizeof *latencies, by_value);
    printf("%s %.1f %lld %lld\n", sqlite3_libversion(), count * 1e9 / (last - start),
           (long long)latencies[count / 2], (long long)latencies[count * 99 / 100]);
    sqlite3_finalize(statement);
    sqlite3_close(database);
    return 0;
}
