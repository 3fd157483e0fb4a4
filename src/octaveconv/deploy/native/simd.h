// One vector of floats, in the compiler's own vector extensions: the same source becomes AVX-512, AVX2 or NEON code.
#pragma once
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__)
constexpr int LANES = 16;       // floats in a register
constexpr int TILE = 8;         // pixels of a tile: 8 x 3 sums, 3 weights and a pixel fill the 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int TILE = 4;         // 4 x 3 sums, 3 weights and a pixel: 16 registers
#else
constexpr int LANES = 4;
constexpr int TILE = 8;         // NEON has 32 registers; on anything else the compiler does what it can
#endif
#if defined(BFLOAT16) && defined(__AMX_BF16__)
constexpr int PANEL = 2;        // vectors of output channels of a tile: with 2 x 16 pixels they fill the matrix unit
#else
constexpr int PANEL = 3;
#endif

#define INLINE inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t VecInt __attribute__((vector_size(4 * LANES)));
typedef uint32_t Pairs __attribute__((vector_size(4 * LANES)));  // of bfloat16, the first one in the lower half
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

INLINE Vec load(const float* from) {
    Vec x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

// Only the first `count` floats, if that is fewer.
INLINE void store(float* to, Vec x, int count) {
    if (__builtin_expect(count >= LANES, 1)) store(to, x);
    else if (count > 0) std::memcpy(to, &x, 4 * count);
}

INLINE Vec splat(float x) { return x - Vec{}; }

INLINE Vec as_floats(Pairs bits) {
    Vec x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE Vec load(const uint16_t* from) {
    Halves x;
    std::memcpy(&x, from, sizeof x);
    return as_floats(__builtin_convertvector(x, Pairs) << 16);
}

// To the nearest bfloat16, ties to even; a NaN stays.
INLINE Halves to_bfloat16(Vec x) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
    Pairs bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
    return __builtin_convertvector(bits >> 16, Halves);
#endif
}

INLINE void store(uint16_t* to, Vec x, int count) {
    Halves y = to_bfloat16(x);
    if (__builtin_expect(count >= LANES, 1)) std::memcpy(to, &y, sizeof y);
    else if (count > 0) std::memcpy(to, &y, 2 * count);
}

// Both keep a NaN, as PyTorch's activations do.
INLINE Vec at_least(Vec x, float low) { return x < low ? splat(low) : x; }
INLINE Vec at_most(Vec x, float high) { return x > high ? splat(high) : x; }

// e^x to about 1 ulp: 2^n times a polynomial in the rest, |rest| <= ln(2)/2.
INLINE Vec exponential(Vec x) {
    Vec clipped = at_most(at_least(x, -87.0f), 88.0f);
    Vec rounded = (clipped * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest integer, by the mantissa
    Vec rest = clipped - rounded * 0.693359375f + rounded * 2.12194440e-4f;
    Vec y = splat(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        y = y * rest + c;
    y = y * rest * rest + rest + 1.0f;
    VecInt power = (__builtin_convertvector(rounded, VecInt) + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    return y * scale;
}

// 0 below -87, for it may be a factor of x, which may be infinite.
INLINE Vec sigmoid(Vec x) { return x < -87.0f ? splat(0.0f) : 1.0f / (1.0f + exponential(-x)); }

INLINE Vec hyperbolic_tangent(Vec x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// x tanh(log(1 + e^x)); from 30 on it is x.
INLINE Vec mish(Vec x) {
    Vec e = exponential(at_most(x, 30.0f));
    Vec n = e * (e + 2.0f);
    return x * (x < -87.0f ? splat(0.0f) : n / (n + 2.0f));
}

// x (1 + erf(x / sqrt(2))) / 2 to 1e-7: Abramowitz and Stegun, 7.1.26.
INLINE Vec gelu(Vec x) {
    Vec z = (x < 0.0f ? -x : x) * 0.70710678119f;
    Vec t = 1.0f / (1.0f + 0.3275911f * z);
    Vec y = splat(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) y = y * t + c;
    Vec beyond = z > 9.0f ? splat(0.0f) : 0.5f * y * t * exponential(-z * z);  // the probability beyond |x|
    return x > 0.0f ? x - at_most(x, 15.0f) * beyond : x * beyond;
}
