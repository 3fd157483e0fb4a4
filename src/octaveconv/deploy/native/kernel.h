// The heart: one tile of the multi-source GEMM with everything that follows it. docs/engine.md explains the blocking.
#pragma once
#include <algorithm>

#include "program.h"
#include "simd.h"

// Sums of MR pixels x NV vectors of output channels, in registers.
template <int MR, int NV>
using Sums = Vec[MR][NV];

constexpr int STEPS = 4;  // channels of one round of the inner loop

// Weights that will be read soon. Each round of the inner loop asks for two lines of them, so that they are there when
// their panel begins; four at once would stall the loop.
struct Ahead {
    const char *at = nullptr, *end = nullptr;

    void fetch() {
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + 64, 0, 2);
        at += 128;
    }
};

constexpr int64_t PREFETCHED = 1 << 20;  // bytes of a panel that are prefetched at most; more would evict others

inline Ahead weights_of(const Panel& panel) {
    return {panel.weights, panel.weights + std::min<int64_t>(panel.weights_end - panel.weights, PREFETCHED)};
}

constexpr int GRAIN = sizeof(float) / sizeof(Real);  // channels that lie side by side in the weights

INLINE int whole(int count) { return (count + GRAIN - 1) / GRAIN * GRAIN; }

// sums += pixels x weights for N channels starting at `k`; per channel NV loads, MR broadcasts, MR * NV multiply-adds.
template <int MR, int NV, int N>
INLINE void multiply_channels(Sums<MR, NV>& sums, const float* const (&from)[MR], int k, const float* weights) {
    for (int n = 0; n < N; n++) {
        Vec row[NV];
        for (int v = 0; v < NV; v++) row[v] = load(weights + (n * NV + v) * LANES);
        for (int p = 0; p < MR; p++) {
            Vec pixel = splat(from[p][k + n]);
            for (int v = 0; v < NV; v++) sums[p][v] += pixel * row[v];
        }
    }
}

INLINE Vec multiply_pairs(Vec sum, Pairs x, Pairs y) {
#if defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#else
    return sum + as_floats(x << 16) * as_floats(y << 16) + as_floats(x & 0xffff0000) * as_floats(y & 0xffff0000);
#endif
}

// The same in bfloat16, two channels at once.
template <int MR, int NV, int N>
INLINE void multiply_channels(Sums<MR, NV>& sums, const uint16_t* const (&from)[MR], int k, const uint16_t* weights) {
    for (int n = 0; n < N; n += 2) {
        Pairs row[NV];
        for (int v = 0; v < NV; v++) std::memcpy(&row[v], weights + (n * NV + 2 * v) * LANES, sizeof row[v]);
        for (int p = 0; p < MR; p++) {
            uint32_t pair = 0;
            std::memcpy(&pair, from[p] + k + n, N == 1 ? 2 : 4);
            for (int v = 0; v < NV; v++) sums[p][v] = multiply_pairs(sums[p][v], pair - Pairs{}, row[v]);
        }
    }
}

template <int MR, int NV>
INLINE void multiply(Sums<MR, NV>& sums, const Real* const (&from)[MR], const Real* weights, int count, Ahead& ahead) {
    Ahead lines = ahead;  // a copy, for registers
    int k = 0;
    for (; k + STEPS <= count; k += STEPS, weights += STEPS * NV * LANES) {
        if (lines.at < lines.end) lines.fetch();
        multiply_channels<MR, NV, STEPS>(sums, from, k, weights);
    }
    for (; k + GRAIN <= count; k += GRAIN, weights += GRAIN * NV * LANES)
        multiply_channels<MR, NV, GRAIN>(sums, from, k, weights);
    if (k < count) multiply_channels<MR, NV, 1>(sums, from, k, weights);
    ahead.at = lines.at;
}

// Add the terms [first, last) for the pixels that start at `pixel`.
template <int MR, int NV>
INLINE void convolve(Sums<MR, NV>& sums, const Layer& layer, const Panel& panel, int first, int last, int pixel,
                     Ahead& ahead) {
    for (int t = first; t < last; t++) {
        const Term& term = layer.terms[t];
        const Slice slice = panel.slices[t];
        const Real* weights = slice.weights;
        for (int tap = 0; tap < term.tap_count; tap++) {
            const Real* from[MR];
            const Real* source = term.source + term.taps[tap] + slice.first;
            for (int p = 0; p < MR; p++) from[p] = source + term.pixels[pixel + p];
            if (!term.depthwise) {
                multiply<MR, NV>(sums, from, weights, slice.count, ahead);
                weights += whole(slice.count) * NV * LANES;
                continue;
            }
            for (int v = 0; v < NV; v++, weights += LANES) {
                Vec weight = load(weights);
                for (int p = 0; p < MR; p++) sums[p][v] += load(from[p] + v * LANES) * weight;
            }
        }
    }
}

template <int MR, int NV>
INLINE void add(Sums<MR, NV>& sums, const Addend& addend, int channel, int pixel) {
    for (int p = 0; p < MR; p++) {
        int at = addend.per_block ? (pixel + p) / 4 : pixel + p;
        const Real* from = addend.source + addend.pixels[at] + channel;
        const Real* gate = addend.gate ? addend.gate + addend.gate_pixels[pixel + p] + channel : nullptr;
        for (int v = 0; v < NV; v++) {
            Vec x = load(from + v * LANES);
            sums[p][v] += gate ? x * load(gate + v * LANES) : x;
        }
    }
}

INLINE Vec activate(Vec x, const Output& output) {
    switch (output.activation) {
        case SIGMOID: return sigmoid(x);
        case SILU: return x * sigmoid(x);
        case HARD_SIGMOID: return at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
        case HARD_SWISH: return x * at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
        case LEAKY: return x > 0.0f ? x : x * output.low;
        case ELU: return x > 0.0f ? x : (exponential(x) - 1.0f) * output.low;
        case TANH: return hyperbolic_tangent(x);
        case GELU: return gelu(x);
        case GELU_TANH: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
        case MISH: return mish(x);
        default: return at_most(at_least(x, output.low), output.high);
    }
}

// Write one output; four pixels in a row are a 2x2 block, which pooling averages while it is in registers.
template <int MR, int NV>
INLINE void write(const Sums<MR, NV>& sums, const Output& output, int channel, int pixel) {
    constexpr int GROUP = MR % 4 ? 1 : 4;
    for (int v = 0; v < NV; v++) {
        int at = channel + v * LANES;
        Vec scale = output.scale ? load(output.scale + at) : splat(1.0f);
        Vec shift = output.scale ? load(output.shift + at) : Vec{};
        for (int block = 0; block < MR / GROUP; block++) {
            Vec total = {};
            for (int i = 0; i < GROUP; i++) {
                int p = block * GROUP + i;
                Vec y = sums[p][v];
                if (output.scale) y = y * scale + shift;
                y = activate(y, output);
                if (output.full) store(output.full + output.pixels[pixel + p] + at, y, output.full_channels - at);
                total += y;
            }
            if (output.pooled)
                store(output.pooled + output.blocks[pixel / 4 + block] + at, total * 0.25f,
                      output.pooled_channels - at);
        }
    }
}

// Prefetch the lines that the end of a tile reads and writes: they arrive during its multiplications.
template <int MR, int NV>
INLINE void touch(const Layer& layer, int channel, int pixel) {
    for (int i = 0; i < layer.addend_count; i++)
        for (int p = 0; p < MR && !layer.addends[i].per_block; p++)
            for (int v = 0; v < NV; v++)
                __builtin_prefetch(layer.addends[i].source + layer.addends[i].pixels[pixel + p] + channel + v * LANES);
    for (int i = 0; i < layer.output_count; i++)
        for (int p = 0; p < MR && layer.outputs[i].full; p++)
            for (int v = 0; v < NV; v++)
                __builtin_prefetch(layer.outputs[i].full + layer.outputs[i].pixels[pixel + p] + channel + v * LANES, 1);
}

// A tile from its initial sums, which are the bias or the coarse terms of its blocks, to all its outputs. If the matrix
// unit has computed its own terms already, `staged` holds their sums.
template <int MR, int NV>
void tile(const Layer& layer, const Panel& panel, int pixel, const float* coarse, const float* staged, Ahead& ahead) {
    Sums<MR, NV> sums;
    for (int p = 0; p < MR; p++)
        for (int v = 0; v < NV; v++)
            sums[p][v] = load(coarse ? coarse + (p / 4 * NV + v) * LANES : panel.bias + v * LANES);
    if (staged) {
        for (int p = 0; p < MR; p++)
            for (int v = 0; v < NV; v++) sums[p][v] += load(staged + (p * NV + v) * LANES);
    } else {
        touch<MR, NV>(layer, panel.channel, pixel);
        convolve<MR, NV>(sums, layer, panel, 0, layer.term_count, pixel, ahead);
    }
    for (int i = 0; i < layer.addend_count; i++) add<MR, NV>(sums, layer.addends[i], panel.channel, pixel);
    for (int i = 0; i < layer.output_count; i++) write<MR, NV>(sums, layer.outputs[i], panel.channel, pixel);
}

// The coarse terms of MR low pixels, each of which starts the sums of a 2x2 block of high ones.
template <int MR, int NV>
void coarse_tile(const Layer& layer, const Panel& panel, int block, float* coarse, Ahead& ahead) {
    Sums<MR, NV> sums;
    for (int p = 0; p < MR; p++)
        for (int v = 0; v < NV; v++) sums[p][v] = load(panel.bias + v * LANES);
    convolve<MR, NV>(sums, layer, panel, layer.term_count, layer.term_count + layer.coarse_count, block, ahead);
    for (int p = 0; p < MR; p++)
        for (int v = 0; v < NV; v++) store(coarse + (p * NV + v) * LANES, sums[p][v]);
}

using Tile = void (*)(const Layer&, const Panel&, int, const float*, const float*, Ahead&);
using CoarseTile = void (*)(const Layer&, const Panel&, int, float*, Ahead&);

template <int... MR>
struct Tiles {
    static constexpr Tile fine[sizeof...(MR)][3] = {{tile<MR + 1, 1>, tile<MR + 1, 2>, tile<MR + 1, 3>}...};
    static constexpr CoarseTile coarse[sizeof...(MR)][3] = {
        {coarse_tile<MR + 1, 1>, coarse_tile<MR + 1, 2>, coarse_tile<MR + 1, 3>}...};
};

#if defined(__AVX__) && !defined(__AVX512F__)
using All = Tiles<0, 1, 2, 3>;
#else
using All = Tiles<0, 1, 2, 3, 4, 5, 6, 7>;
#endif
