// What Python hands over: a program is a list of layers, in phases. records.py has the same structures, which are
// compared when the library is loaded (records.h).
// All maps are NHWC with a border of zeros around each image; a "pixel" is the offset of a pixel's first channel, in
// reals.
#pragma once
#include <cstdint>

#ifdef BFLOAT16
typedef uint16_t Real;  // of maps and weights: the upper half of a float
#else
typedef float Real;
#endif

enum Kind : int32_t { GEMM, MEAN, MAX_POOL, AVG_POOL, READ, WRITE, ZEROS, REFLECT, REPLICATE, CIRCULAR };
enum Activation : int32_t { CLAMP, SIGMOID, HARD_SWISH, HARD_SIGMOID, SILU, LEAKY, ELU, TANH, GELU, GELU_TANH, MISH };

// One map that a layer convolves.
struct Term {
    const Real* source;
    const int32_t* pixels;   // of each output pixel: where its window begins
    const int32_t* taps;     // of each tap: how far from there
    int32_t tap_count;
    int32_t depthwise;
};

// What one panel takes from one term: weights [tap][count][channels of the panel], or [tap][channels] if depthwise;
// in bfloat16 [tap][count / 2][channels of the panel][2], where an odd count has a zero beside its last one.
struct Slice {
    const Real* weights;
    int32_t first, count;    // input channels; more than one slice of channels only where there are groups
};

// Some vectors of output channels.
struct Panel {
    const Slice* slices;     // of the terms, then of the coarse terms
    const float* bias;
    const char *weights, *weights_end;  // of all slices
    int32_t channel, vectors;
};

// A map that is added as it is, or times a gate for each image and channel.
struct Addend {
    const Real* source;
    const int32_t* pixels;   // of each output pixel, or of each 2x2 block
    const Real* gate;
    const int32_t* gate_pixels;
    int32_t per_block;
};

// One way in which a layer's sum is kept: activation(sum * scale + shift), at full size, pooled 2x2, or both.
struct Output {
    Real* full;
    const int32_t* pixels;
    Real* pooled;
    const int32_t* blocks;
    const float *scale, *shift;
    int32_t full_channels, pooled_channels;  // channels from these on must not be written: they are of another map
    int32_t activation;
    float low, high;         // CLAMP's
};

// A window or whole-image operation, or a copy from and to a tensor outside.
struct Window {
    Real *source, *target;
    int32_t images, height, width, out_height, out_width, channels;
    int32_t kernel[2], stride[2], padding[2], count_padding;
    int32_t source_image, source_row, source_stride, target_image, target_row, target_stride;  // in reals
    int32_t slot, first;     // which tensor outside, and its first image
};

// A tensor that a call reads or writes.
struct Outside {
    Real* data;
    int64_t strides[4];      // of image, channel, row and column
    int64_t step;            // from one pass to the next
};

struct Layer {
    Kind kind;
    int32_t units;           // pixels, or 2x2 blocks if `blocks`
    int32_t blocks;          // pixels are in 2x2 blocks: 4 per unit
    int32_t term_count, coarse_count, panel_count, addend_count, output_count;
    int32_t pixels_outside;  // loop over pixels outside and panels inside: for weights that stay in the cache
    int32_t staged;          // the matrix unit may compute it: no term has groups
    int32_t channel_split;   // threads that share the panels; the others share the pixels
    const Term* terms;       // the coarse ones, at half the resolution, last
    const Panel* panels;
    const Addend* addends;
    const Output* outputs;
    const Window* window;
};

struct Program {
    const Layer* layers;
    const int32_t* phases;   // first layer of each phase, and the end; layers of a phase do not depend on each other
    int32_t phase_count;
};
