// What surrounds the steps of a program: inputs in, new states committed, outputs out.
//
// Not an op. A program of the latency class is `begin`, the steps, `finish`, in one graph: data and
// completion go through mapped host memory, so nothing waits for a copy engine or a stream. One of
// the throughput class copies by the copy engines and keeps `begin` for the header alone.
//
// Ladder, H200, one run from header and inputs in host memory to the flag there, p50 of a graph of
// two kernels, 20 KB in and 4 bytes out (2026-11-21):
//   copy engine for header and inputs       16.4 us: 9 us of its own, whatever the size
//   every block reads the header itself     11-25 us: reads of one line of host memory are served
//                                           one after another, about 1 us each
//   one block, one chunk a thread at a time  9.2 us: a second round trip over the bus
//   bulk copies through shared memory        8.5 us: no better, and Hopper alone
//   one chunk a thread, blocks of 1024       7.8 us; 256 KB 12.1 (engine 16.4), 1 MB 27.4 (32.7):
//                                           53 GB/s, the bus. Ships. Regions are one range of
//                                           chunks, or each would cost a round trip.
//   1.5 MB in, f32 in chunks by the engine  the host's 105 us for writing it, and 12 more
//   the same rounded to f16, by six threads  14 us of writing, then 21 here
//   and read here while it is written        18 us of writing, then 6: ships (`program_stage`)
//   two or more blocks write the outputs     1.1 us more than one block, up to 256 KB
#include "dependent.cuh"
#include "overlap.cuh"
#include "run.cuh"

// 16-byte chunks from one place to another; both are 256-byte aligned and padded to it.
struct Region {
    unsigned long long from;
    unsigned long long to;
    unsigned long long end; // chunks of this region and those before it
};

// A state's new rows, `[batch, elements]`, and its store, `[slots, elements]`.
struct NewState {
    unsigned long long rows;
    unsigned long long store;
    unsigned long long elements;
};

constexpr int REGIONS = 16;
constexpr int STATES = 16;

struct BeginArguments {
    Region region[REGIONS];
    unsigned regions;
    unsigned reserved;
};

struct FinishArguments {
    unsigned long long header;  // in device memory where there are states, else in the host's
    unsigned long long flag;    // 0 to publish nothing
    unsigned long long counter; // of blocks that are done; zero before and after
    NewState state[STATES];
    Region region[REGIONS];
    unsigned states;
    unsigned regions;
};

// Host memory may change between two runs, so no cache may serve it.
static __device__ __forceinline__ uint4 load_fresh(unsigned long long at) {
    uint4 v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

// Chunks of all regions, each by one thread: those of different regions are under way together.
static __device__ __forceinline__ void copy(const Region *region, unsigned regions) {
    if (regions == 0) return;
    unsigned long long chunks = region[regions - 1].end;
    unsigned step = gridDim.x * blockDim.x;
    for (unsigned long long i = blockIdx.x * blockDim.x + threadIdx.x; i < chunks; i += step) {
        unsigned r = 0;
        while (i >= region[r].end) r++;
        unsigned long long offset = 16 * (i - (r > 0 ? region[r - 1].end : 0));
        *reinterpret_cast<uint4 *>(region[r].to + offset) = load_fresh(region[r].from + offset);
    }
}

// An input that the host is still writing, chunk by chunk, a block each.
struct StageArguments {
    unsigned long long from;
    unsigned long long to;
    unsigned long long flags;       // in host memory, `STAGE_FLAG_BYTES` apart: not 0 once written,
                                    // and 0 again here
    unsigned long long chunk_bytes; // 16-byte multiples
    unsigned long long bytes;
};

// Apart, because reads of one line of host memory are served one after another.
constexpr int STAGE_FLAG_BYTES = 256;

// Copies each chunk as soon as it is written. The host raises all flags, also where it fails.
extern "C" __global__ void __launch_bounds__(1024) program_stage(const StageArguments a) {
    if (threadIdx.x == 0) {
        unsigned long long flag = a.flags + blockIdx.x * (unsigned long long)STAGE_FLAG_BYTES;
        unsigned written;
        do {
            asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
                         : "=r"(written)
                         : "l"(flag)
                         : "memory");
        } while (written == 0);
        asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(flag), "r"(0) : "memory");
    }
    __syncthreads();
    unsigned long long first = blockIdx.x * a.chunk_bytes;
    unsigned long long end = min(first + a.chunk_bytes, a.bytes);
    for (unsigned long long at = first + threadIdx.x * 16; at < end; at += blockDim.x * 16)
        *reinterpret_cast<uint4 *>(a.to + at) = load_fresh(a.from + at);
}

// Copies regions: the header and the inputs from mapped host memory.
extern "C" __global__ void __launch_bounds__(1024) program_begin(const BeginArguments a) {
    wait_for_earlier();
    copy(a.region, a.regions);
}

// Commits new states, copies the outputs to mapped host memory, and says that the run is done.
extern "C" __global__ void __launch_bounds__(1024) program_finish(const FinishArguments a) {
    let_later_start();
    const RunHeader *header = reinterpret_cast<const RunHeader *>(a.header);
    // Of a run without states the header is in host memory. One block reads it meanwhile; of
    // several the last, because one line there is not read by many at once.
    unsigned sequence = 0;
    bool early = gridDim.x == 1 && a.states == 0;
    if (a.flag != 0 && early && threadIdx.x == 0) sequence = load_fresh(a.header).x;
    earlier_have_ended();
    unsigned first = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned step = gridDim.x * blockDim.x;
    copy(a.region, a.regions);
    unsigned rows = a.states > 0 ? header->rows : 0;
    for (unsigned s = 0; s < a.states; s++) {
        const float *from = reinterpret_cast<const float *>(a.state[s].rows);
        float *store = reinterpret_cast<float *>(a.state[s].store);
        unsigned long long elements = a.state[s].elements;
        unsigned long long total = rows * elements;
        for (unsigned long long i = first; i < total; i += step) {
            unsigned long long row = i / elements;
            unsigned long long slot = header->slots[row];
            store[slot * elements + (i - row * elements)] = from[i];
        }
    }
    if (a.flag == 0) return;
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (gridDim.x > 1) {
        __threadfence_system();
        unsigned *counter = reinterpret_cast<unsigned *>(a.counter);
        if (atomicAdd(counter, 1u) != gridDim.x - 1) return;
        *counter = 0;
        __threadfence_system();
    }
    if (!early) sequence = load_fresh(a.header).x;
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(a.flag), "r"(sequence) : "memory");
}

// Does nothing: the driver says how many blocks of a cluster fit with all shared memory.
extern "C" __global__ void program_probe(const BeginArguments a) {
    extern __shared__ unsigned memory[];
    if (a.regions == 0xffffffffu) memory[threadIdx.x] = threadIdx.x;
}
