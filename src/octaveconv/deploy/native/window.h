// Operations on windows of pixels and on whole images, and the copies from and to outside tensors.
#pragma once
#include <algorithm>
#include <limits>

#include "threads.h"
#include "program.h"
#include "simd.h"

INLINE void mean(const Window& w, int thread, int threads) {
    int vectors = (w.channels + LANES - 1) / LANES;
    Range share(w.images * vectors, thread, threads);
    for (int i = share.first; i < share.last; i++) {
        int image = i / vectors, channel = i % vectors * LANES;
        Vec total = {};
        for (int y = 0; y < w.height; y++) {  // row by row: one long sum of floats would lose precision
            const Real* from = w.source + int64_t(image) * w.source_image + y * w.source_row + channel;
            Vec row = {};
            for (int x = 0; x < w.width; x++) row += load(from + x * w.source_stride);
            total += row;
        }
        store(w.target + int64_t(image) * w.target_image + channel, total * (1.0f / float(w.height * w.width)),
              w.channels - channel);
    }
}

template <bool MAX>
void pool(const Window& w, int thread, int threads) {
    Range share(w.images * w.out_height, thread, threads);
    for (int i = share.first; i < share.last; i++) {
        int image = i / w.out_height, y = i % w.out_height;
        int top = y * w.stride[0] - w.padding[0];
        int y0 = std::max(top, 0), y1 = std::min(top + w.kernel[0], w.height);
        Real* to = w.target + int64_t(image) * w.target_image + y * w.target_row;
        for (int x = 0; x < w.out_width; x++, to += w.target_stride) {
            int left = x * w.stride[1] - w.padding[1];
            int x0 = std::max(left, 0), x1 = std::min(left + w.kernel[1], w.width);
            int padded = (std::min(top + w.kernel[0], w.height + w.padding[0]) - top) *
                         (std::min(left + w.kernel[1], w.width + w.padding[1]) - left);
            float share_of_pixel = 1.0f / float(w.count_padding ? padded : (y1 - y0) * (x1 - x0));
            for (int c = 0; c < w.channels; c += LANES) {
                Vec sum = MAX ? splat(-std::numeric_limits<float>::infinity()) : Vec{};
                for (int yy = y0; yy < y1; yy++) {
                    const Real* from = w.source + int64_t(image) * w.source_image + yy * w.source_row + c;
                    for (int xx = x0; xx < x1; xx++) {
                        Vec pixel = load(from + xx * w.source_stride);
                        if (MAX) sum = (pixel > sum) | (pixel != pixel) ? pixel : sum;  // a NaN stays
                        else sum += pixel;
                    }
                }
                store(to + c, MAX ? sum : sum * share_of_pixel, w.channels - c);
            }
        }
    }
}

// The pixel of a map of `size` pixels that one beyond its edge repeats, or -1 for a zero.
INLINE int repeated(int at, int size, Kind kind) {
    if (at >= 0 && at < size) return at;
    switch (kind) {
        case REFLECT: at = at < 0 ? -at : 2 * size - 2 - at; break;
        case CIRCULAR: at = (at % size + size) % size; break;
        case REPLICATE: break;
        default: return -1;
    }
    return std::min(std::max(at, 0), size - 1);
}

inline void pad(const Window& w, Kind kind, int thread, int threads) {
    Range share(w.images * w.out_height, thread, threads);
    for (int i = share.first; i < share.last; i++) {
        int image = i / w.out_height, y = i % w.out_height;
        int row = repeated(y - w.padding[0], w.height, kind);
        Real* to = w.target + int64_t(image) * w.target_image + y * w.target_row;
        for (int x = 0; x < w.out_width; x++, to += w.target_stride) {
            int column = repeated(x - w.padding[1], w.width, kind);
            if (row < 0 || column < 0) {
                std::memset(to, 0, w.channels * sizeof(Real));
                continue;
            }
            const Real* from = w.source + int64_t(image) * w.source_image + row * w.source_row + column * w.source_stride;
            std::memcpy(to, from, w.channels * sizeof(Real));
        }
    }
}

// Copy between an outside tensor, of any strides, and a map.
template <bool READS>
void copy(const Window& w, const Outside& outside, int64_t pass, int thread, int threads) {
    Range share(w.images * w.height, thread, threads);
    for (int i = share.first; i < share.last; i++) {
        int image = i / w.height, y = i % w.height;
        Real* row =
            outside.data + pass * outside.step + (w.first + image) * outside.strides[0] + y * outside.strides[2];
        Real* map = READS ? w.target + int64_t(image) * w.target_image + y * w.target_row
                           : w.source + int64_t(image) * w.source_image + y * w.source_row;
        int stride = READS ? w.target_stride : w.source_stride;
        if (outside.strides[1] == 1) {  // the channels of a pixel are side by side there, too
            for (int x = 0; x < w.width; x++) {
                Real* there = row + x * outside.strides[3];
                std::memcpy(READS ? map + x * stride : there, READS ? there : map + x * stride, w.channels * sizeof(Real));
            }
            continue;
        }
        for (int c = 0; c < w.channels; c++) {
            Real* there = row + c * outside.strides[1];
            for (int x = 0; x < w.width; x++) {
                if (READS) map[x * stride + c] = there[x * outside.strides[3]];
                else there[x * outside.strides[3]] = map[x * stride + c];
            }
        }
    }
}
