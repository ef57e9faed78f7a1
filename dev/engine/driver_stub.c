/* libcuda.so.1 for machines without a GPU driver: what the official wheels' libraries look up in it when they are
 * loaded. Every call answers CUDA_ERROR_NO_DEVICE, so that PyTorch and SGLang find no GPU and run on the CPU.
 * Never put it where a real driver is. */
#define CUDA_ERROR_NO_DEVICE 100
#define ABSENT(name) \
    int name(void) { return CUDA_ERROR_NO_DEVICE; }

/* spatial_ops: SM partitions */
ABSENT(cuCtxFromGreenCtx)
ABSENT(cuCtxPopCurrent_v2)
ABSENT(cuCtxPushCurrent_v2)
ABSENT(cuDevResourceGenerateDesc)
ABSENT(cuDevSmResourceSplitByCount)
ABSENT(cuDeviceGetDevResource)
ABSENT(cuGreenCtxCreate)
ABSENT(cuGreenCtxDestroy)
ABSENT(cuGreenCtxGetDevResource)
ABSENT(cuStreamCreate)

/* common_ops, flash_ops */
ABSENT(cuDriverGetVersion)
ABSENT(cuGetErrorString)
ABSENT(cuPointerGetAttribute)
ABSENT(cuGetProcAddress_v2)
