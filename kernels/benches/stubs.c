// Stub libraries for rehearsals without a GPU: libcuda (-DDRIVER), cuBLASLt (-DBLAS) and NVRTC
// (-DNVRTC, with its version in -DMAJOR and -DMINOR). Device memory is host memory, copies copy,
// kernels and products do nothing. The NVRTC stub compiles nothing: it writes the name of the
// kernel to the file that STUB_COMPILED names, and returns an error.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef DRIVER
typedef uint64_t pointer;
static int handle;
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "stub"); return 0; }
int cuDeviceGetPCIBusId(char *name, int size, int device) { snprintf(name, size, "0000:00:00.0"); return 0; }
// Attributes 75 and 76 are the major and minor compute capability.
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &handle; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *all) { *all = (size_t)80 << 30; *free = *all / 2; return 0; }
int cuMemAlloc_v2(pointer *address, size_t bytes) { *address = (pointer)calloc(bytes, 1); return *address ? 0 : 2; }
int cuMemFree_v2(pointer address) { free((void *)address); return 0; }
// Reserved addresses have no memory until a mapping provides it.
int cuMemAddressReserve(pointer *address, size_t bytes, size_t alignment, pointer wanted, unsigned long long flags) {
  *address = (pointer)mmap(0, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *address == (pointer)MAP_FAILED ? 2 : 0;
}
int cuMemAddressFree(pointer address, size_t bytes) { return munmap((void *)address, bytes) ? 1 : 0; }
int cuMemGetAllocationGranularity(size_t *bytes, const void *properties, int option) { *bytes = 2 << 20; return 0; }
int cuMemCreate(unsigned long long *memory, size_t bytes, const void *properties, unsigned long long flags) { *memory = bytes; return 0; }
int cuMemRelease(unsigned long long memory) { return 0; }
int cuMemMap(pointer address, size_t bytes, size_t offset, unsigned long long memory, unsigned long long flags) { return bytes == memory ? 0 : 1; }
int cuMemSetAccess(pointer address, size_t bytes, const void *access, size_t count) {
  return mprotect((void *)address, bytes, PROT_READ | PROT_WRITE) ? 1 : 0;
}
int cuMemUnmap(pointer address, size_t bytes) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  return mmap((void *)address, bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED ? 1 : 0;
}
int cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { *memory = calloc(bytes, 1); return *memory ? 0 : 2; }
int cuMemFreeHost(void *memory) { free(memory); return 0; }
int cuMemcpyHtoDAsync_v2(pointer to, const void *from, size_t bytes, void *stream) { memcpy((void *)to, from, bytes); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, pointer from, size_t bytes, void *stream) { memcpy(to, (void *)from, bytes); return 0; }
int cuMemcpyDtoDAsync_v2(pointer to, pointer from, size_t bytes, void *stream) { memmove((void *)to, (void *)from, bytes); return 0; }
int cuMemsetD8Async(pointer to, unsigned char value, size_t bytes, void *stream) { memset((void *)to, value, bytes); return bytes ? 0 : 1; }
int cuMemsetD8_v2(pointer to, unsigned char value, size_t bytes) { memset((void *)to, value, bytes); return bytes ? 0 : 1; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = &handle; return 0; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
int cuStreamSynchronize(void *stream) { return 0; }
int cuStreamQuery(void *stream) { return 0; }
int cuEventCreate(void **event, unsigned flags) { *event = &handle; return 0; }
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventQuery(void *event) { return 0; }
int cuEventElapsedTime(float *ms, void *begin, void *end) { *ms = 0.5; return 0; }
int cuEventDestroy_v2(void *event) { return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = &handle; return memcmp(image, "\x7f" "ELF", 4) ? 200 : 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = &handle; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
  return gx && gy && gz ? 0 : 1;
}
int cuGetErrorName(int code, const char **text) { *text = "CUDA_ERROR_OF_THE_STUB"; return 0; }
int cuGetErrorString(int code, const char **text) { *text = "an error of the stub"; return 0; }
#endif

#ifdef BLAS
typedef struct { uint64_t data[8]; } algorithm;
typedef struct { algorithm algo; size_t workspace; int state; float waves; int reserved[4]; } result;
static int handle;
size_t cublasLtGetVersion(void) { return 130000; }
const char *cublasLtGetStatusName(int code) { return "CUBLAS_STATUS_OF_THE_STUB"; }
int cublasLtCreate(void **lt) { *lt = &handle; return 0; }
int cublasLtDestroy(void *lt) { return 0; }
int cublasLtMatmulDescCreate(void **d, int compute, int scale) { *d = &handle; return 0; }
int cublasLtMatmulDescSetAttribute(void *d, int attribute, const void *value, size_t bytes) { return 0; }
int cublasLtMatmulDescDestroy(void *d) { return 0; }
int cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t columns, int64_t stride) { *l = &handle; return 0; }
int cublasLtMatrixLayoutSetAttribute(void *l, int attribute, const void *value, size_t bytes) { return 0; }
int cublasLtMatrixLayoutDestroy(void *l) { return 0; }
int cublasLtMatmulPreferenceCreate(void **p) { *p = &handle; return 0; }
int cublasLtMatmulPreferenceSetAttribute(void *p, int attribute, const void *value, size_t bytes) { return 0; }
int cublasLtMatmulPreferenceDestroy(void *p) { return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *lt, void *d, void *a, void *b, void *c, void *out, void *p, int wanted, result *found, int *count) {
  memset(found, 0, sizeof *found);
  *count = 1;
  return 0;
}
int cublasLtMatmulAlgoCheck(void *lt, void *d, void *a, void *b, void *c, void *out, const algorithm *algo, result *found) {
  memset(found, 0, sizeof *found);
  return 0;
}
int cublasLtMatmul(void *lt, void *d, const void *alpha, const void *x, void *a, const void *y, void *b, const void *beta, const void *c, void *lc, void *out, void *lo, const algorithm *algo, void *workspace, size_t bytes, void *stream) {
  return 0;
}
#endif

#ifdef NVRTC
static int program;
int nvrtcVersion(int *major, int *minor) { *major = MAJOR; *minor = MINOR; return 0; }
int nvrtcGetNumSupportedArchs(int *count) { *count = 1; return 0; }
int nvrtcGetSupportedArchs(int *archs) { *archs = 90; return 0; }
int nvrtcCreateProgram(void **made, const char *source, const char *name, int headers, const char *const *texts, const char *const *names) {
  const char *log = getenv("STUB_COMPILED"), *kernel = strstr(source, "extern \"C\"");
  FILE *file = log ? fopen(log, "a") : 0;
  if (file) fprintf(file, "%.200s\n", kernel ? kernel : source), fclose(file);
  *made = &program;
  return 0;
}
int nvrtcCompileProgram(void *made, int count, const char *const *options) { return 6; }
int nvrtcDestroyProgram(void **made) { return 0; }
int nvrtcGetProgramLogSize(void *made, size_t *bytes) { *bytes = 1; return 0; }
int nvrtcGetProgramLog(void *made, char *log) { *log = 0; return 0; }
int nvrtcGetPTXSize(void *made, size_t *bytes) { *bytes = 0; return 0; }
int nvrtcGetPTX(void *made, char *ptx) { return 0; }
int nvrtcGetCUBINSize(void *made, size_t *bytes) { *bytes = 0; return 0; }
int nvrtcGetCUBIN(void *made, char *cubin) { return 0; }
const char *nvrtcGetErrorString(int code) { return "the stub compiles nothing"; }
#endif
