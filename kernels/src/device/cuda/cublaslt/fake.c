// A fake cuBLASLt whose functions log their calls to LOG. With -DCREATE=1 it finds no driver, with
// -DCHECK=15 it supports no algorithm, with -DWORKSPACE=N every algorithm needs N bytes, with
// -DFOUND=0 it has no algorithm.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifndef CREATE
#define CREATE 0
#endif
#ifndef CHECK
#define CHECK 0
#endif
#ifndef WORKSPACE
#define WORKSPACE 0
#endif
#ifndef FOUND
#define FOUND 2
#endif

typedef struct { uint64_t words[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Heuristic;

static int things;
static int note(const char* call, long long a, long long b, long long c) {
    FILE* log = fopen(LOG, "a");
    fprintf(log, "%s %lld %lld %lld\n", call, a, b, c);
    return fclose(log);
}
static int create(const char* call, void** thing, long long a, long long b, long long c) {
    *thing = (void*)(intptr_t)++things;
    return note(call, a, b, c);
}
static long long number(const void* value, size_t bytes) {
    long long number = 0;
    memcpy(&number, value, bytes);
    return number;
}

size_t cublasLtGetVersion(void) { return 130002; }
const char* cublasLtGetStatusName(int status) { return status == 15 ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_NOT_INITIALIZED"; }
int cublasLtCreate(void** handle) { *handle = (void*)1; return CREATE; }
int cublasLtMatmulDescCreate(void** operation, int compute, int scale) { return create("operation", operation, compute, scale, 0); }
int cublasLtMatmulDescSetAttribute(void* operation, int attribute, const void* value, size_t bytes) {
    return note("operation_set", attribute, number(value, bytes), bytes);
}
int cublasLtMatmulDescDestroy(void* operation) { things--; return 0; }
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return stride == (int64_t)rows ? create("layout", layout, type, rows, columns) : 7;
}
int cublasLtMatrixLayoutDestroy(void* layout) { things--; return 0; }
int cublasLtMatmulPreferenceCreate(void** preference) { return create("preference", preference, 0, 0, 0); }
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
    return note("preference_set", attribute, number(value, bytes), bytes);
}
int cublasLtMatmulPreferenceDestroy(void* preference) { things--; return 0; }
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* operation, void* a, void* b, void* c, void* d, void* preference, int wanted,
                                   Heuristic* found, int* returned) {
    if (FOUND == 0) return 15;
    *returned = wanted < FOUND ? wanted : FOUND;
    for (int i = 0; i < *returned; i++) {
        memset(&found[i], 0, sizeof found[i]);
        found[i].algorithm.words[0] = 100 + i;
    }
    return note("heuristic", wanted, *returned, things);
}
int cublasLtMatmulAlgoCheck(void* handle, void* operation, void* a, void* b, void* c, void* d, const Algorithm* algorithm, Heuristic* result) {
    result->workspace = WORKSPACE;
    return CHECK;
}
int cublasLtMatmul(void* handle, void* operation, const float* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
                   const float* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm, void* workspace,
                   size_t workspace_bytes, void* stream) {
    note("matmul", (long long)(*alpha * 1000), (long long)*beta, algorithm->words[0]);
    return note("addresses", (intptr_t)a, (intptr_t)b, (intptr_t)d) || (c != d && *beta == 0) || workspace_bytes != 32 << 20;
}
