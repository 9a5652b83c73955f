// A fake NCCL library for tests: it moves no data, logs the calls to the file LOG, and returns
// errors as the macros PENDING and LATER say.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef PENDING
#define PENDING 0 // first state queries that return ncclInProgress; -1: all of them
#endif
#ifndef LATER
#define LATER 0 // result of state queries after the first one that succeeded
#endif

#ifndef ABORT_HANGS
#define ABORT_HANGS 0
#endif
#ifndef VERSION
#define VERSION 22707
#endif

typedef struct { char bytes[128]; } id_t_;
typedef struct { size_t size; unsigned magic, version; int blocking, cga, min, max; const char *net; int split; } config_t_;

static int looks;
static int communicator;

static void note(const char *text) {
  FILE *file = fopen(LOG, "a");
  fprintf(file, "%s\n", text);
  fclose(file);
}

int ncclGetVersion(int *version) { *version = VERSION; return 0; }
int ncclGetUniqueId(id_t_ *id) { memset(id, 7, sizeof *id); return 0; }
int ncclCommInitRankConfig(void **comm, int ranks, id_t_ id, int rank, config_t_ *config) {
  char text[99];
  if (config->magic != 0xcafebeef || config->blocking != 0 || config->size != sizeof *config) return 4;
  sprintf(text, "init %d of %d", rank, ranks);
  note(text);
  *comm = &communicator;
  return 7;
}
int ncclCommGetAsyncError(void *comm, int *state) {
  looks++;
  *state = PENDING < 0 || looks <= PENDING ? 7 : looks == PENDING + 1 ? 0 : LATER;
  return 0;
}
int ncclCommFinalize(void *comm) { note("finalize"); return 0; }
int ncclCommDestroy(void *comm) { note("destroy"); return 0; }
int ncclCommAbort(void *comm) { note("abort"); if (ABORT_HANGS) pause(); return 0; }
const char *ncclGetErrorString(int code) { return code == 6 ? "remote process exited or there was a network error" : "other"; }
const char *ncclGetLastError(void *comm) { return "socket closed by host-7"; }
static int call(const char *name, size_t count, int type) {
  char text[99];
  sprintf(text, "%s of %zu, type %d", name, count, type);
  note(text);
  return 0;
}
int ncclAllGather(const void *a, void *b, size_t n, int t, void *c, void *s) { return call("all-gather", n, t); }
int ncclAllReduce(const void *a, void *b, size_t n, int t, int op, void *c, void *s) { return call("all-reduce", n, t); }
int ncclReduceScatter(const void *a, void *b, size_t n, int t, int op, void *c, void *s) { return call("reduce-scatter", n, t); }
int ncclBroadcast(const void *a, void *b, size_t n, int t, int r, void *c, void *s) { return call("broadcast", n, t); }
