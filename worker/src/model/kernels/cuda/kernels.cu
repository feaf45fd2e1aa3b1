// What lies between the products and convolutions of the networks, each in one pass over its tensors.
//
// Images are (batch, pixels, channels), channels side by side. Values are read and written in T (float, half, bfloat16)
// and N at a time (16 bytes where the sizes allow); arithmetic is in float. The order of every sum is a function of
// the shapes alone, so results are the same on every GPU, in every batch and at every run: no atomics anywhere.
//
// Every kernel that reads tensors comes as NAME_T_N: see the end of the file.

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

constexpr unsigned ALL = 0xffffffffu;

// What a group's mean and variance are made of.
struct Moments {
    float mean;
    float squares; // of the distances from the mean, added up
};

template <typename T, int N> struct alignas(sizeof(T) * N) Values {
    T at[N];
};

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__half x) { return __half2float(x); }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow(float x) { return x; }
template <> __device__ inline __half narrow(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }

template <typename T, int N> __device__ inline void load(float (&x)[N], const T* from) {
    const auto values = *reinterpret_cast<const Values<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = wide(values.at[i]);
}

template <typename T, int N> __device__ inline void store(T* to, const float (&x)[N]) {
    Values<T, N> values;
#pragma unroll
    for (int i = 0; i < N; i++) values.at[i] = narrow<T>(x[i]);
    *reinterpret_cast<Values<T, N>*>(to) = values;
}

__device__ inline float sum_of_warp(float x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL, x, apart);
    return x;
}

// Group normalisation, first half: the moments of every group of channels in every run of pixels.
// Grid (runs, batch). A block has `rows` rows of threads; thread (row, column) adds up N channels of every rows-th
// pixel of its run. `added` (batch, channels), where there is any, is added to every pixel first.
// moments: (batch, groups, runs). Shared memory: rows x channels Moments, channels Moments.
template <typename T, int N>
__device__ void group_moments(const T* x, const T* added, Moments* moments, int pixels, int channels, int groups,
                              int per_run, int rows) {
    extern __shared__ Moments shared[];
    Moments* of_channels = shared + rows * channels;
    const int columns = channels / N, run = blockIdx.x, entry = blockIdx.y;
    const int first = run * per_run, last = min(first + per_run, pixels);
    const int row = threadIdx.x / columns, channel = threadIdx.x % columns * N;
    if (row < rows) {
        float shift[N] = {}, start[N] = {}, sum[N] = {}, squares[N] = {};
        if (added) load<T, N>(shift, added + int64_t(entry) * channels + channel);
        int count = 0;
#pragma unroll 4
        for (int pixel = first + row; pixel < last; pixel += rows, count++) {
            float value[N];
            load<T, N>(value, x + (int64_t(entry) * pixels + pixel) * channels + channel);
#pragma unroll
            for (int i = 0; i < N; i++) {
                // Distances from the first value: their squares lose nothing where the mean is far from 0.
                if (count == 0) start[i] = value[i];
                const float apart = value[i] - start[i];
                sum[i] += apart;
                squares[i] += apart * apart;
            }
        }
        const float of = fmaxf(float(count), 1.f);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float mean = sum[i] / of;
            shared[row * channels + channel + i] = {start[i] + mean + shift[i], squares[i] - sum[i] * mean};
        }
    }
    __syncthreads();
    // Rows into one (Chan, Golub and LeVeque), then channels into their group.
    const int run_pixels = last - first;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        float mean = 0, squares = 0;
        for (int r = 0; r < rows; r++) {
            const int count = r < run_pixels ? (run_pixels - r - 1) / rows + 1 : 0;
            mean += shared[r * channels + c].mean * count;
        }
        mean /= run_pixels;
        for (int r = 0; r < rows; r++) {
            const int count = r < run_pixels ? (run_pixels - r - 1) / rows + 1 : 0;
            const float apart = shared[r * channels + c].mean - mean;
            if (count) squares += shared[r * channels + c].squares + count * apart * apart;
        }
        of_channels[c] = {mean, squares};
    }
    __syncthreads();
    const int per_group = channels / groups;
    for (int g = threadIdx.x; g < groups; g += blockDim.x) {
        float mean = 0, squares = 0;
        for (int c = g * per_group; c < (g + 1) * per_group; c++) mean += of_channels[c].mean;
        mean /= per_group;
        for (int c = g * per_group; c < (g + 1) * per_group; c++) {
            const float apart = of_channels[c].mean - mean;
            squares += of_channels[c].squares + run_pixels * apart * apart;
        }
        moments[(int64_t(entry) * groups + g) * gridDim.x + run] = {mean, squares};
    }
}

// Mean and variance of every group, of its moments in all runs. Grid (groups, batch), one warp each.
// statistics: (batch, groups, 2).
__device__ void group_statistics(const Moments* moments, float* statistics, int pixels, int per_group, int runs,
                                 int per_run) {
    const int64_t group = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    const Moments* of_group = moments + group * runs;
    float mean = 0;
    for (int r = threadIdx.x; r < runs; r += 32) mean += of_group[r].mean * float(min(per_run, pixels - r * per_run));
    mean = sum_of_warp(mean) / float(pixels);
    float squares = 0;
    for (int r = threadIdx.x; r < runs; r += 32) {
        const Moments m = of_group[r];
        const float count = float(min(per_run, pixels - r * per_run)) * per_group;
        squares += m.squares + count * (m.mean - mean) * (m.mean - mean);
    }
    squares = sum_of_warp(squares);
    if (threadIdx.x == 0) {
        statistics[2 * group] = mean;
        statistics[2 * group + 1] = squares / (float(pixels) * per_group);
    }
}

// Group normalisation, second half, and x sigmoid(x) where `silu` is set. Grid and threads as for the moments, with
// runs of their own. An entry's statistics start `stride` values after those of the one before.
// Shared memory: 2 channels floats.
template <typename T, int N>
__device__ void group_norm(const T* x, const T* added, const float* statistics, const T* weight, const T* bias,
                           T* out, int pixels, int channels, int groups, int per_run, int rows, int stride, float eps,
                           int silu) {
    extern __shared__ float factors[];
    float *scales = factors, *shifts = factors + channels;
    const int columns = channels / N, run = blockIdx.x, entry = blockIdx.y, per_group = channels / groups;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const float* of_group = statistics + int64_t(entry) * stride + 2 * (c / per_group);
        const float scale = rsqrtf(of_group[1] + eps) * wide(weight[c]);
        const float plus = added ? wide(added[int64_t(entry) * channels + c]) : 0.f;
        scales[c] = scale;
        shifts[c] = wide(bias[c]) + (plus - of_group[0]) * scale;
    }
    __syncthreads();
    const int row = threadIdx.x / columns, channel = threadIdx.x % columns * N;
    if (row >= rows) return;
    float scale[N], shift[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        scale[i] = scales[channel + i];
        shift[i] = shifts[channel + i];
    }
    const int first = run * per_run, last = min(first + per_run, pixels);
#pragma unroll 4
    for (int pixel = first + row; pixel < last; pixel += rows) {
        const int64_t at = (int64_t(entry) * pixels + pixel) * channels + channel;
        float value[N];
        load<T, N>(value, x + at);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float normal = value[i] * scale[i] + shift[i];
            value[i] = silu ? normal / (1.f + expf(-normal)) : normal;
        }
        store<T, N>(out + at, value);
    }
}

// Layer normalisation of rows of `width` values: a warp per row, which it reads three times (from the cache).
template <typename T, int N>
__device__ void layer_norm(const T* x, const T* weight, const T* bias, T* out, int64_t rows, int width, float eps) {
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    const int lane = threadIdx.x % 32;
    x += row * width;
    out += row * width;
    float sum = 0;
    for (int at = lane * N; at < width; at += 32 * N) {
        float value[N];
        load<T, N>(value, x + at);
#pragma unroll
        for (int i = 0; i < N; i++) sum += value[i];
    }
    const float mean = sum_of_warp(sum) / width;
    float squares = 0;
    for (int at = lane * N; at < width; at += 32 * N) {
        float value[N];
        load<T, N>(value, x + at);
#pragma unroll
        for (int i = 0; i < N; i++) squares += (value[i] - mean) * (value[i] - mean);
    }
    const float factor = rsqrtf(sum_of_warp(squares) / width + eps);
    for (int at = lane * N; at < width; at += 32 * N) {
        float value[N], scale[N], shift[N];
        load<T, N>(value, x + at);
        load<T, N>(scale, weight + at);
        load<T, N>(shift, bias + at);
#pragma unroll
        for (int i = 0; i < N; i++) value[i] = (value[i] - mean) * factor * scale[i] + shift[i];
        store<T, N>(out + at, value);
    }
}

// (rows, 2 width) -> (rows, width): the first half times GELU of the second. A thread per N values.
template <typename T, int N> __device__ void gate(const T* x, T* out, int64_t rows, int width) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (at >= rows * width) return;
    const int64_t row = at / width, column = at % width;
    float value[N], gate[N];
    load<T, N>(value, x + row * 2 * width + column);
    load<T, N>(gate, x + row * 2 * width + width + column);
#pragma unroll
    for (int i = 0; i < N; i++) {
        value[i] *= 0.5f * gate[i] * (1.f + erff(gate[i] * 0.70710678118654752f));
    }
    store<T, N>(out + at, value);
}

// The channels of `a`, then those of `b`, of every pixel. A thread per N values.
template <typename T, int N>
__device__ void concat(const T* a, const T* b, T* out, int64_t pixels, int of_a, int of_b) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    const int channels = of_a + of_b;
    if (at >= pixels * channels) return;
    const int64_t pixel = at / channels;
    const int channel = at % channels;
    const T* from = channel < of_a ? a + pixel * of_a + channel : b + pixel * of_b + channel - of_a;
    *reinterpret_cast<Values<T, N>*>(out + at) = *reinterpret_cast<const Values<T, N>*>(from);
}

// Images of h x w as images of height x width, to the nearest neighbour. A thread per N values.
template <typename T, int N>
__device__ void resize(const T* x, T* out, int64_t batch, int h, int w, int height, int width, int channels) {
    const int64_t at = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (at >= batch * height * width * channels) return;
    const int64_t pixel = at / channels;
    const int channel = at % channels, column = pixel % width, row = pixel / width % height;
    const int64_t entry = pixel / width / height;
    const int64_t from = (entry * h + int64_t(row) * h / height) * w + int64_t(column) * w / width;
    *reinterpret_cast<Values<T, N>*>(out + at) = *reinterpret_cast<const Values<T, N>*>(x + from * channels + channel);
}

} // namespace

#define KERNELS(T, NAME, N)                                                                                           \
    extern "C" __global__ void group_moments_##NAME##_##N(const T* x, const T* added, Moments* moments, int pixels,   \
                                                          int channels, int groups, int per_run, int rows) {          \
        group_moments<T, N>(x, added, moments, pixels, channels, groups, per_run, rows);                              \
    }                                                                                                                 \
    extern "C" __global__ void group_norm_##NAME##_##N(                                                               \
        const T* x, const T* added, const float* statistics, const T* weight, const T* bias, T* out, int pixels,      \
        int channels, int groups, int per_run, int rows, int stride, float eps, int silu) {                           \
        group_norm<T, N>(x, added, statistics, weight, bias, out, pixels, channels, groups, per_run, rows, stride,    \
                         eps, silu);                                                                                  \
    }                                                                                                                 \
    extern "C" __global__ void layer_norm_##NAME##_##N(const T* x, const T* weight, const T* bias, T* out,            \
                                                       int64_t rows, int width, float eps) {                          \
        layer_norm<T, N>(x, weight, bias, out, rows, width, eps);                                                     \
    }                                                                                                                 \
    extern "C" __global__ void gate_##NAME##_##N(const T* x, T* out, int64_t rows, int width) {                       \
        gate<T, N>(x, out, rows, width);                                                                              \
    }                                                                                                                 \
    extern "C" __global__ void concat_##NAME##_##N(const T* a, const T* b, T* out, int64_t pixels, int of_a,          \
                                                   int of_b) {                                                        \
        concat<T, N>(a, b, out, pixels, of_a, of_b);                                                                  \
    }                                                                                                                 \
    extern "C" __global__ void resize_##NAME##_##N(const T* x, T* out, int64_t batch, int h, int w, int height,       \
                                                   int width, int channels) {                                         \
        resize<T, N>(x, out, batch, h, w, height, width, channels);                                                   \
    }

// 16 bytes at a time, and one value.
KERNELS(float, f32, 4)
KERNELS(float, f32, 1)
KERNELS(__half, f16, 8)
KERNELS(__half, f16, 1)
KERNELS(__nv_bfloat16, bf16, 8)
KERNELS(__nv_bfloat16, bf16, 1)

extern "C" __global__ void group_statistics_f32_1(const Moments* moments, float* statistics, int pixels,
                                                  int per_group, int runs, int per_run) {
    group_statistics(moments, statistics, pixels, per_group, runs, per_run);
}
