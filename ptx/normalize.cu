// `normalize`, `denormalize`: scaling a window by statistics of itself, and back.
//
// Not the normalisation of features (`norm`). Sums and moments are f64, because a window of large
// values would lose its spread in f32; the scaled values are f32, with the shift in two parts.
//
// Ladder (H200, 2026-11-21, 128 MiB of windows)
// 1. A block a row and tile of channels; moments in two passes, medians by counting, both over
//    memory that the first pass has brought into the first-level cache: 14-21% of the bandwidth,
//    medians 2-3%. Kept for windows of more than 1024 steps. Prefixes: a warp a patch, then one
//    scan over the patches.
// 2. Windows of up to 1024 steps: a warp a series, in registers, sorted there for medians; several
//    channels through a tile of shared memory. With moments in f64 27-46% (conversions), with
//    moments in f32 around a pivot and no skipped code between the steps 80% at 512 steps of one
//    channel, 31% at 96 (the f64 arithmetic of every fit), 35-38% of several channels; medians
//    11-19%. One row takes 4.3 us with its launch, 6.7 with medians (27 in the first version).

#include <cuda_pipeline.h>

#include "run.cuh"
#include "sort.cuh"

// --- scalers -------------------------------------------------------------------------------------

enum Center : u32 { ZERO = 0, MEAN = 1, MEDIAN = 2, LAST = 3, MINIMUM = 4, MIDRANGE = 5 };

enum Spread : u32 {
    ONE = 0,
    DEVIATION = 1,
    SAMPLE_DEVIATION = 2,
    DEVIATION_INSIDE = 3,
    MEDIAN_DEVIATION = 4,
    RANGE = 5,
    HALF_RANGE = 6,
    MEAN_MAGNITUDE = 7,
};

enum ZeroSpread : u32 { KEEP = 0, VALUE = 1, CENTER_MAGNITUDE = 2, COLLAPSE = 3 };

struct Scaler {
    u32 center;
    u32 spread;
    u32 zero;
    u32 is_asinh;
    float inside; // the root of the spread
    float value;  // of the zero rule
    float eps;
    u32 reserved;
};

__device__ __forceinline__ bool needs_median(const Scaler &s) {
    return s.center == MEDIAN || s.spread == MEDIAN_DEVIATION;
}

// Whether anything but moments is needed.
__device__ __forceinline__ bool needs_extremes(const Scaler &s) {
    return s.center > MEAN || s.spread >= MEDIAN_DEVIATION;
}

// Count, mean and sum of squared deviations.
struct Moments {
    double count;
    double mean;
    double squares;
};

// Of both samples together (Chan, Golub and LeVeque, 1979).
__device__ __forceinline__ Moments merge(const Moments &a, const Moments &b) {
    double count = a.count + b.count;
    if (b.count == 0.0) return a;
    if (a.count == 0.0) return b;
    double delta = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.count * share};
}

// What else a scaler may ask of the observed values. `last` is the latest, by `position`, which is
// negative where there is none.
struct Extremes {
    double magnitude; // sum of |x|
    long long position;
    float smallest;
    float largest;
    float last;
    u32 unknown; // whether one is NaN
};

__device__ __forceinline__ Extremes no_extremes() {
    return {0.0, -1, INFINITY, -INFINITY, 0.0f, 0};
}

__device__ __forceinline__ Extremes join(const Extremes &a, const Extremes &b) {
    bool later = b.position > a.position;
    return {a.magnitude + b.magnitude,
            later ? b.position : a.position,
            fminf(a.smallest, b.smallest),
            fmaxf(a.largest, b.largest),
            later ? b.last : a.last,
            a.unknown | b.unknown};
}

__device__ __forceinline__ void observe(Extremes &e, float x, long long position) {
    e.magnitude += fabs((double)x);
    if (position > e.position) e.position = position, e.last = x;
    e.smallest = fminf(e.smallest, x);
    e.largest = fmaxf(e.largest, x);
    e.unknown |= x != x;
}

// A shift in two parts, because a window of large values needs more digits than f32 has, and what
// is divided by.
struct Fit {
    float high;
    float low;
    float divisor;
    float factor; // its reciprocal, or 0 where that is no normal number
};

struct Pair {
    double shift;
    double scale;
};

// `moments` may cover more than what was observed; `count` numbers were.
__device__ __forceinline__ Pair fit(const Scaler &s, const Moments &moments, const Extremes &e,
                                    double count, float median, float distance) {
    if (moments.count == 0.0) return {0.0, 1.0};
    double smallest = e.unknown ? NAN : e.smallest, largest = e.unknown ? NAN : e.largest;
    double center = 0.0;
    switch (s.center) {
    case MEAN: center = moments.mean; break;
    case MEDIAN: center = e.unknown ? NAN : median; break;
    case LAST: center = e.last; break;
    case MINIMUM: center = smallest; break;
    case MIDRANGE: center = (smallest + largest) / 2.0; break;
    }
    double spread = 1.0, variance = moments.squares / moments.count;
    switch (s.spread) {
    case DEVIATION: spread = sqrt(variance); break;
    case SAMPLE_DEVIATION: spread = sqrt(moments.squares / fmax(moments.count - 1.0, 1.0)); break;
    case DEVIATION_INSIDE: spread = sqrt(variance + (double)s.inside); break;
    case MEDIAN_DEVIATION:
        spread = distance;
        if (distance == 0.0f) spread = sqrt(variance) * 0.6744897501960817;
        // The median's own distance is ∞ − ∞.
        if (e.unknown || isinf(median)) spread = NAN;
        break;
    case RANGE: spread = largest - smallest; break;
    case HALF_RANGE: spread = (largest - smallest) / 2.0; break;
    case MEAN_MAGNITUDE: spread = e.magnitude / count; break;
    }
    if (spread == 0.0 && s.zero == VALUE) spread = s.value;
    if (spread == 0.0 && s.zero == CENTER_MAGNITUDE) spread = fabs(center) + (double)s.value;
    return {center, spread + (double)s.eps};
}

__device__ __forceinline__ Fit ready(const Scaler &s, const Pair &pair) {
    Fit f;
    f.high = (float)pair.shift;
    f.low = (float)(pair.shift - (double)f.high);
    if (!isfinite(f.low)) f.low = 0.0f;
    bool collapses = s.zero == COLLAPSE && pair.scale < (double)s.value;
    f.divisor = collapses ? 1.0f : (float)pair.scale;
    bool is_normal = fabsf(f.divisor) > 0x1p-120f && fabsf(f.divisor) < 0x1p120f;
    f.factor = is_normal ? __frcp_rn(f.divisor) : 0.0f;
    return f;
}

__device__ __forceinline__ float divided(const Fit &f, float x) {
    float away = (x - f.high) - f.low;
    return f.factor != 0.0f ? away * f.factor : __fdiv_rn(away, f.divisor);
}

__device__ __forceinline__ float scaled(const Scaler &s, const Fit &f, float x) {
    float y = divided(f, x);
    return s.is_asinh ? asinhf(y) : y;
}

// --- windows -------------------------------------------------------------------------------------

struct NormalizeArguments {
    const float *x;    // [batch, time, channels]
    const float *mask; // [batch, time, mask_width] or absent
    float *y;
    float *statistics;
    const float *weight; // [channels] or absent
    const float *bias;
    const RunHeader *header;
    const float *state; // [slots, 3, channels] or absent
    float *new_state;   // [batch, 3, channels]
    u64 time;
    u64 until; // statistics are of the times before this
    u32 channels;
    u32 mask_width;
    u32 tile;
    u32 slots;
    u32 tiles;
    u32 is_zeroed; // where not observed
    u32 batch;
    u32 pitch; // floats from one step of a tile in shared memory to the next
    Divisor by_tile;
    Scaler scaler;
};

__device__ __forceinline__ Moments carried(const NormalizeArguments &p, u32 row, u32 channel,
                                           u32 width) {
    const float *state = p.state + p.header->slots[row] * 3ull * width + channel;
    return {state[0], state[width], state[2ull * width]};
}

__device__ __forceinline__ void carry(const NormalizeArguments &p, u32 row, u32 channel, u32 width,
                                      const Moments &m) {
    float *state = p.new_state + row * 3ull * width + channel;
    state[0] = (float)m.count;
    state[width] = (float)m.mean;
    state[2ull * width] = (float)m.squares;
}

// --- short windows -------------------------------------------------------------------------------

constexpr int SHORT_THREADS = 512;

template <class T> __device__ __forceinline__ T sum_of_warp(T x) {
    for (int distance = 16; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

__device__ __forceinline__ float smallest_of_warp(float x) {
    for (int distance = 16; distance > 0; distance /= 2)
        x = fminf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// Of the numbers whose bits are set in `seen`; lane l has the times l, l + 32, l + 64, …
template <int K>
__device__ __forceinline__ Extremes extremes_of_warp(const float (&v)[K], u32 seen) {
    Extremes own = no_extremes();
#pragma unroll
    for (int r = 0; r < K; ++r)
        if (seen >> r & 1) observe(own, v[r], threadIdx.x % 32 + 32 * r);
    int last = __reduce_max_sync(0xffffffffu, (int)own.position);
    return {sum_of_warp(own.magnitude),
            last,
            smallest_of_warp(own.smallest),
            -smallest_of_warp(-own.largest),
            __shfl_sync(0xffffffffu, own.last, last & 31),
            (u32)__any_sync(0xffffffffu, own.unknown)};
}

struct Medians {
    float median;
    float distance; // lower median of |x − median|
};

// The numbers nearest to the median lie side by side among the sorted, so that the distance of a
// rank is that of the tightest window of as many.
template <int K>
__device__ __forceinline__ Medians medians_of_warp(const float (&v)[K], u32 seen, u32 count,
                                                   float *room) {
    u32 order[K];
#pragma unroll
    for (int r = 0; r < K; ++r)
        order[r] = seen >> r & 1 ? order_of(v[r]) : 0xffffffffu;
    sort_into<K>(order, room);
    u32 rank = count > 0 ? (count - 1) / 2 : 0;
    Medians m{room[sorted_place(rank)], INFINITY};
    for (u32 i = threadIdx.x % 32; i + rank < count; i += 32) {
        float below = m.median - room[sorted_place(i)];
        float above = room[sorted_place(i + rank)] - m.median;
        m.distance = fminf(m.distance, fmaxf(below, above));
    }
    m.distance = smallest_of_warp(m.distance);
    return m;
}

// In f32, but of differences from one of the numbers, which are no larger than the spread times
// the root of their count: what is lost is small beside the spread however far from zero they lie,
// and a constant row has a spread of exactly zero. Conversions to f64 would cost most of the time.
template <int K>
__device__ __forceinline__ Moments moments_of_warp(const float (&v)[K], u32 seen, u32 count) {
    float pivot = 0.0f, sum = 0.0f, rest = 0.0f, squares = 0.0f;
#pragma unroll
    for (int r = 0; r < K; ++r)
        if (seen >> r & 1) pivot = v[r];
    pivot = __shfl_sync(0xffffffffu, pivot, (__ffs(__ballot_sync(0xffffffffu, seen)) - 1) & 31);
#pragma unroll
    for (int r = 0; r < K; ++r)
        if (seen >> r & 1) sum += v[r] - pivot;
    float mean = count > 0 ? __fdiv_rn(sum_of_warp(sum), (float)count) : 0.0f;
#pragma unroll
    for (int r = 0; r < K; ++r) {
        float away = (v[r] - pivot) - mean;
        if (seen >> r & 1) squares = __fmaf_rn(away, away, squares), rest += away;
    }
    // What rounding has left of the sum of the differences corrects the mean.
    double correction = count > 0 ? (double)__fdiv_rn(sum_of_warp(rest), (float)count) : 0.0;
    double center = (double)pivot + ((double)mean + correction);
    return {(double)count, count > 0 ? center : 0.0, (double)sum_of_warp(squares)};
}

// Windows of at most 32 · K steps: a warp a series. Where there are several channels, a block has
// a tile of them and exchanges it with memory through shared memory; else a block has several rows.
template <int K> __device__ __forceinline__ void windows_short(const NormalizeArguments &p) {
    extern __shared__ float staged[];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, time = (u32)p.time;
    bool single = p.channels == 1;
    u32 row = single ? blockIdx.x * (blockDim.x / 32) + warp : blockIdx.x / p.tiles;
    u32 first = single ? 0 : blockIdx.x % p.tiles * p.tile, channel = single ? 0 : first + warp;
    bool works = row < p.batch && channel < p.channels && (!p.state || row < p.header->rows);
    u64 start = row * p.time * p.channels + first;
    float v[K];
    if (!single) {
        for (u32 i = threadIdx.x; i < time * p.tile; i += blockDim.x) {
            u32 t = i, c = divide(p.by_tile, t);
            if (row < p.batch && first + c < p.channels)
                __pipeline_memcpy_async(staged + t * p.pitch + c,
                                        p.x + start + (u64)t * p.channels + c, sizeof(float));
        }
        __pipeline_commit();
        __pipeline_wait_prior(0);
        __syncthreads();
    }
    const float *x = single ? p.x + start : staged + warp;
    u32 step = single ? 1 : p.pitch, seen = 0, known = 0;
#pragma unroll
    for (int r = 0; r < K; ++r) {
        u32 t = lane + 32 * r;
        v[r] = works && t < time ? x[t * step] : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < K; ++r)
        known |= (u32)(works && lane + 32 * r < time) << r;
    if (works && p.mask) {
        const float *mask = p.mask + row * p.time * p.mask_width + min(channel, p.mask_width - 1);
        u32 inside = known;
#pragma unroll
        for (int r = 0; r < K; ++r)
            if (inside >> r & 1 && mask[(u64)(lane + 32 * r) * p.mask_width] == 0.0f)
                known &= ~(1u << r);
    }
#pragma unroll
    for (int r = 0; r < K; ++r)
        seen |= lane + 32 * r < p.until ? known & 1u << r : 0;
    if (!single) __syncthreads(); // the tile has been read

    u32 count = __reduce_add_sync(0xffffffffu, __popc(seen));
    Moments moments = moments_of_warp<K>(v, seen, count);
    Extremes extremes = no_extremes();
    if (needs_extremes(p.scaler)) extremes = extremes_of_warp<K>(v, seen);
    Medians medians{0.0f, 0.0f};
    if (needs_median(p.scaler)) {
        medians = medians_of_warp<K>(v, seen, count, staged + warp * SORTED<K>);
        if (!single) __syncthreads(); // the room becomes the tile again
    }
    if (works && p.state) moments = merge(carried(p, row, channel, p.channels), moments);
    Pair pair = fit(p.scaler, moments, extremes, count, medians.median, medians.distance);
    if (works && lane == 0) {
        float *statistics = p.statistics + row * 2ull * p.channels + channel;
        statistics[0] = (float)pair.shift;
        statistics[p.channels] = (float)pair.scale;
        if (p.state) carry(p, row, channel, p.channels, moments);
    }

    Fit f = ready(p.scaler, pair);
    float weight = 1.0f, bias = 0.0f;
    if (works && p.weight) weight = p.weight[channel], bias = p.bias[channel];
    float *y = single ? p.y + start : staged + warp;
    // One loop a matter: code that is skipped as a whole is not fetched.
    if (f.factor != 0.0f)
#pragma unroll
        for (int r = 0; r < K; ++r)
            v[r] = ((v[r] - f.high) - f.low) * f.factor;
    else
#pragma unroll
        for (int r = 0; r < K; ++r)
            v[r] = divided(f, v[r]);
    if (p.scaler.is_asinh)
#pragma unroll
        for (int r = 0; r < K; ++r)
            v[r] = asinhf(v[r]);
    if (p.weight)
#pragma unroll
        for (int r = 0; r < K; ++r)
            v[r] = __fmaf_rn(v[r], weight, bias);
    if (p.is_zeroed)
#pragma unroll
        for (int r = 0; r < K; ++r)
            if (!(known >> r & 1)) v[r] = 0.0f;
#pragma unroll
    for (int r = 0; r < K; ++r) {
        u32 t = lane + 32 * r;
        if (works && t < time) y[t * step] = v[r];
    }
    if (single) return;
    __syncthreads();
    for (u32 i = threadIdx.x; i < time * p.tile; i += blockDim.x) {
        u32 t = i, c = divide(p.by_tile, t);
        if (row < p.batch && first + c < p.channels)
            p.y[start + (u64)t * p.channels + c] = staged[t * p.pitch + c];
    }
}

#define WINDOWS(K)                                                                                 \
    extern "C" __global__ void __launch_bounds__(SHORT_THREADS)                                    \
        normalize_windows_##K(const NormalizeArguments p) {                                        \
        windows_short<K>(p);                                                                       \
    }

WINDOWS(1)
WINDOWS(2)
WINDOWS(4)
WINDOWS(8)
WINDOWS(16)
WINDOWS(32)

// --- long windows --------------------------------------------------------------------------------

struct FirstPass {
    double count;
    double sum;
    Extremes extremes;
};

extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)
    normalize_windows_long(const NormalizeArguments p) {
    extern __shared__ FirstPass room[]; // one a thread
    __shared__ u32 counts[4 * TILE_CHANNELS];
    u32 row = blockIdx.x / p.tiles;
    if (p.state && row >= p.header->rows) return; // it has no slot
    Place at = place(p.tile, p.slots);
    u32 channel = blockIdx.x % p.tiles * p.tile + at.channel;
    bool works = at.slot < p.slots && channel < p.channels;
    u64 row_start = row * p.time;
    const float *x = p.x + row_start * p.channels + channel;
    float *y = p.y + row_start * p.channels + channel;
    const float *mask = p.mask + row_start * p.mask_width + min(channel, p.mask_width - 1);
    auto observed = [&](u64 t) { return !p.mask || mask[t * p.mask_width] != 0.0f; };
    u64 until = works ? p.until : 0;
    auto each = [&](auto visit) {
        for (u64 t = at.slot; t < until; t += at.slots)
            if (observed(t)) visit(x[t * p.channels], t);
    };

    FirstPass own{0.0, 0.0, no_extremes()};
    each([&](float x, u64 t) {
        own.count += 1.0;
        own.sum += (double)x;
        observe(own.extremes, x, (long long)t);
    });
    FirstPass all = across(at, room, own, [](const FirstPass &a, const FirstPass &b) {
        return FirstPass{a.count + b.count, a.sum + b.sum, join(a.extremes, b.extremes)};
    });
    double mean = all.count > 0.0 ? all.sum / all.count : 0.0, squares = 0.0;
    each([&](float x, u64) { squares += (x - mean) * (x - mean); });
    squares = across(at, reinterpret_cast<double *>(room), squares,
                     [](double a, double b) { return a + b; });
    Moments moments{all.count, mean, squares};

    float median = 0.0f, distance = 0.0f;
    if (needs_median(p.scaler)) {
        u32 rank = all.count > 0.0 ? ((u32)all.count - 1) / 2 : 0;
        median = select_rank(at, counts, rank, [&](auto visit) {
            each([&](float x, u64) { visit(x); });
        });
        if (p.scaler.spread == MEDIAN_DEVIATION)
            distance = select_rank(at, counts, rank, [&](auto visit) {
                each([&](float x, u64) { visit(fabsf(x - median)); });
            });
    }
    if (!works) return;
    if (p.state) moments = merge(carried(p, row, channel, p.channels), moments);
    Pair pair = fit(p.scaler, moments, all.extremes, all.count, median, distance);
    if (at.slot == 0) {
        float *statistics = p.statistics + row * 2ull * p.channels + channel;
        statistics[0] = (float)pair.shift;
        statistics[p.channels] = (float)pair.scale;
        if (p.state) carry(p, row, channel, p.channels, moments);
    }
    Fit f = ready(p.scaler, pair);
    float weight = p.weight ? p.weight[channel] : 1.0f, bias = p.weight ? p.bias[channel] : 0.0f;
    for (u64 t = at.slot; t < p.time; t += at.slots) {
        float value = scaled(p.scaler, f, x[t * p.channels]);
        if (p.weight) value = __fmaf_rn(value, weight, bias);
        y[t * p.channels] = p.is_zeroed && !observed(t) ? 0.0f : value;
    }
}

// --- prefixes ------------------------------------------------------------------------------------

// Patches whose statistics are in shared memory at a time.
constexpr int CHUNK = 256;
constexpr int PREFIX_THREADS = 256;

struct Summary {
    Moments moments;
    Extremes extremes;
};

// `WITH_EXTREMES`: whether they are needed; they travel with the moments only then.
template <bool WITH_EXTREMES>
__device__ __forceinline__ Summary join(const Summary &a, const Summary &b) {
    Summary s = a;
    s.moments = merge(a.moments, b.moments);
    if constexpr (WITH_EXTREMES) s.extremes = join(a.extremes, b.extremes);
    return s;
}

// Every member of another lane's: `shuffle` moves a number.
template <bool WITH_EXTREMES, class F>
__device__ __forceinline__ Summary moved(const Summary &s, F shuffle) {
    Summary t = s;
    t.moments = {shuffle(s.moments.count), shuffle(s.moments.mean), shuffle(s.moments.squares)};
    if constexpr (WITH_EXTREMES) {
        const Extremes &e = s.extremes;
        t.extremes = {shuffle(e.magnitude), shuffle(e.position), shuffle(e.smallest),
                      shuffle(e.largest),   shuffle(e.last),     shuffle(e.unknown)};
    }
    return t;
}

template <bool WITH_EXTREMES>
__device__ __forceinline__ Summary shuffled_up(const Summary &s, int distance) {
    return moved<WITH_EXTREMES>(
        s, [&](auto x) { return __shfl_up_sync(0xffffffffu, x, distance); });
}

template <bool WITH_EXTREMES>
__device__ __forceinline__ Summary of_lane(const Summary &s, int lane) {
    return moved<WITH_EXTREMES>(s, [&](auto x) { return __shfl_sync(0xffffffffu, x, lane); });
}

// A patch's, in every lane of a warp: `channels` is its length, `time` the number of patches.
template <bool WITH_EXTREMES, class Observed>
__device__ __forceinline__ Summary summarise(const NormalizeArguments &p, const float *x, u64 patch,
                             Observed observed) {
    u32 lane = threadIdx.x % 32;
    double count = 0.0, sum = 0.0, squares = 0.0;
    Extremes e = no_extremes();
    for (u32 i = lane; i < p.channels; i += 32) {
        u64 at = patch * p.channels + i;
        if (!observed(patch, i)) continue;
        count += 1.0;
        sum += (double)x[at];
        if (WITH_EXTREMES) observe(e, x[at], (long long)at);
    }
    count = sum_of_warp(count);
    sum = sum_of_warp(sum);
    double mean = count > 0.0 ? sum / count : 0.0;
    for (u32 i = lane; i < p.channels; i += 32) {
        double away = (double)x[patch * p.channels + i] - mean;
        if (observed(patch, i)) squares += away * away;
    }
    Summary s{{count, mean, sum_of_warp(squares)}, e};
    if constexpr (WITH_EXTREMES) {
        for (int distance = 1; distance < 32; distance *= 2) {
            Extremes other = shuffled_up<true>(s, distance).extremes;
            if ((int)lane >= distance) s.extremes = join(other, s.extremes);
        }
        s = of_lane<true>(s, 31);
    }
    return s;
}

template <bool WITH_EXTREMES>
__device__ __forceinline__ void prefixes(const NormalizeArguments &p) {
    __shared__ Summary summaries[CHUNK];
    __shared__ Fit fits[CHUNK];
    __shared__ float medians[CHUNK], distances[CHUNK];
    __shared__ u32 counts[4];
    u32 row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (p.state && row >= p.header->rows) return; // it has no slot
    const float *x = p.x + row * p.time * p.channels;
    float *y = p.y + row * p.time * p.channels;
    const float *mask = p.mask + row * p.time * p.mask_width;
    auto observed = [&](u64 patch, u32 i) {
        return !p.mask || mask[patch * p.mask_width + min(i, p.mask_width - 1)] != 0.0f;
    };
    Moments before{0.0, 0.0, 0.0};
    if (p.state) before = carried(p, row, 0, 1);
    if (p.state && p.time == 0 && threadIdx.x == 0) carry(p, row, 0, 1, before);
    Summary through{{0.0, 0.0, 0.0}, no_extremes()}; // all chunks so far; of warp 0 alone
    for (u64 first = 0; first < p.time; first += CHUNK) {
        u32 patches = (u32)min((u64)CHUNK, p.time - first);
        __syncthreads();
        for (u32 n = warp; n < patches; n += PREFIX_THREADS / 32) {
            Summary s = summarise<WITH_EXTREMES>(p, x, first + n, observed);
            if (lane == 0) summaries[n] = s;
        }
        __syncthreads();
        if (warp == 0)
            for (u32 n = lane; n < (patches + 31) / 32 * 32; n += 32) {
                Summary s{{0.0, 0.0, 0.0}, no_extremes()};
                if (n < patches) s = summaries[n];
                for (int distance = 1; distance < 32; distance *= 2) {
                    Summary other = shuffled_up<WITH_EXTREMES>(s, distance);
                    if ((int)lane >= distance) s = join<WITH_EXTREMES>(other, s);
                }
                s = join<WITH_EXTREMES>(through, s);
                if (n < patches) summaries[n] = s;
                through = of_lane<WITH_EXTREMES>(s, 31);
            }
        __syncthreads();
        if (WITH_EXTREMES && needs_median(p.scaler))
            for (u32 n = 0; n < patches; ++n) {
                Place at = place(1, PREFIX_THREADS);
                u64 seen = (first + n + 1) * p.channels;
                double count = summaries[n].moments.count;
                u32 rank = count > 0.0 ? ((u32)count - 1) / 2 : 0;
                auto each = [&](auto visit) {
                    for (u64 i = at.slot; i < seen; i += PREFIX_THREADS)
                        if (observed(i / p.channels, i % p.channels)) visit(x[i]);
                };
                float median = select_rank(at, counts, rank, each), distance = 0.0f;
                if (p.scaler.spread == MEDIAN_DEVIATION)
                    distance = select_rank(at, counts, rank, [&](auto visit) {
                        each([&](float x) { visit(fabsf(x - median)); });
                    });
                if (threadIdx.x == 0) medians[n] = median, distances[n] = distance;
            }
        __syncthreads();
        if (threadIdx.x < patches) {
            u32 n = threadIdx.x;
            Moments own = summaries[n].moments, all = p.state ? merge(before, own) : own;
            Pair pair = fit(p.scaler, all, summaries[n].extremes, own.count, medians[n],
                            distances[n]);
            float *statistics = p.statistics + (row * p.time + first + n) * 2;
            statistics[0] = (float)pair.shift;
            statistics[1] = (float)pair.scale;
            fits[n] = ready(p.scaler, pair);
            if (p.state && first + n + 1 == p.time) carry(p, row, 0, 1, all);
        }
        __syncthreads();
        for (u32 n = warp; n < patches; n += PREFIX_THREADS / 32)
            for (u32 i = lane; i < p.channels; i += 32) {
                u64 at = (first + n) * p.channels + i;
                float value = scaled(p.scaler, fits[n], x[at]);
                if (p.weight) value = __fmaf_rn(value, p.weight[i], p.bias[i]);
                y[at] = p.is_zeroed && !observed(first + n, i) ? 0.0f : value;
            }
    }
}

extern "C" __global__ void __launch_bounds__(PREFIX_THREADS)
    normalize_prefixes(const NormalizeArguments p) {
    prefixes<false>(p);
}

extern "C" __global__ void __launch_bounds__(PREFIX_THREADS)
    normalize_prefixes_extremes(const NormalizeArguments p) {
    prefixes<true>(p);
}

// --- denormalize ---------------------------------------------------------------------------------

struct DenormalizeArguments {
    const float *x; // [batch, steps, width]
    float *y;
    const float *shift; // of the first row and channel
    const float *scale;
    const float *weight; // [channels] or absent
    const float *bias;
    u64 row_stride; // from one row's statistics to the next
    u32 items;
    u32 channel; // the one that applies; ALL_CHANNELS for each its own
    Divisor width;
    Divisor steps;
    Divisor outputs; // of a channel
    float affine_eps;
    u32 is_asinh;
};

constexpr u32 ALL_CHANNELS = 0xffffffffu;

extern "C" __global__ void __launch_bounds__(256) denormalize(const DenormalizeArguments p) {
    constexpr int EACH = 4;
    u32 first = blockIdx.x * (blockDim.x * EACH) + threadIdx.x;
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        u32 item = first + u * blockDim.x;
        if (item >= p.items) continue;
        u32 rest = item, column = divide(p.width, rest), row = quotient(p.steps, rest);
        u32 channel = p.channel == ALL_CHANNELS ? quotient(p.outputs, column) : p.channel;
        u64 at = row * p.row_stride + channel;
        float x = p.x[item];
        if (p.weight)
            x = __fdiv_rn(x - p.bias[channel], p.weight[channel] + p.affine_eps);
        if (p.is_asinh) x = sinhf(x);
        p.y[item] = __fmaf_rn(x, p.scale[at], p.shift[at]);
    }
}
