// Layers by the processor's matrix unit, where there is one (Intel's AMX, bfloat16). It multiplies 16 pixels by 16
// output channels over 32 input channels at once, but needs the pixels at equal distances. So some pixels' windows
// are first "staged": copied side by side, with all terms and taps of a pixel in one row.
#pragma once
#include "kernel.h"
#include "threads.h"

#if defined(BFLOAT16) && defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

// The unit as one thread uses it, during a run.
class MatrixUnit {
   public:
    // Linux must be asked, once per process, before the unit's registers may be used.
    static bool allowed() {
        constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
        static const bool answer = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
        return answer;
    }

    MatrixUnit() {
        if (!allowed()) return;
        alignas(64) uint8_t config[64] = {1};                             // the palette
        for (int tile = 0; tile < 8; tile++) config[16 + 2 * tile] = 64;  // bytes of a row
        for (int tile = 0; tile < 8; tile++) config[48 + tile] = 16;      // rows
        _tile_loadconfig(config);
    }
    ~MatrixUnit() {
        if (allowed()) _tile_release();
    }
    MatrixUnit(const MatrixUnit&) = delete;
};

constexpr int ROWS = 16, DEPTH = 32;  // of a tile: pixels, and input channels
constexpr int RUN = 2 * ROWS;         // pixels that are multiplied at once
constexpr int STAGED = 1 << 20;       // bytes, about half of a core's second-level cache

struct alignas(64) Line {  // of the cache; a row of a tile is one
    Real reals[DEPTH];
};

// Some terms of a layer, as rows of the staging area.
struct Rows {
    const Layer& layer;
    int first, last;          // terms
    int channels = 0, depth;  // of a row; depth is whole tiles

    Rows(const Layer& layer, int first, int last) : layer(layer), first(first), last(last) {
        for (int t = first; t < last; t++) channels += layer.terms[t].tap_count * whole(slice(t).count);
        depth = (channels + DEPTH - 1) / DEPTH * DEPTH;
    }

    const Slice& slice(int term) const { return layer.panels[0].slices[term]; }
    int stride() const { return depth ? depth + DEPTH : 0; }  // not a power of two: rows would collide in the cache

    // Copy `count` pixels, a few at a time, so that their taps find their sources in the first-level cache.
    void stage(int pixel, int count, Real* to) const {
        for (int done = 0; done < count; done += ROWS, to += ROWS * stride())
            stage_few(pixel + done, std::min(ROWS, count - done), to);
    }

   private:
    void stage_few(int pixel, int count, Real* to) const {
        Real* const end = to + depth;
        for (int t = first; t < last; t++) {
            const Term& term = layer.terms[t];
            const int wanted = slice(t).count;
            for (int tap = 0; tap < term.tap_count; tap++, to += whole(wanted))
                copy(term.source + term.taps[tap], term.pixels + pixel, count, wanted, to);
        }
        for (int p = 0; p < count; p++) std::memset(to + p * stride(), 0, sizeof(Real) * (end - to));
    }

    // In whole lines; what is too much is overwritten next.
    void copy(const Real* from, const int32_t* pixels, int count, int wanted, Real* to) const {
        const int step = stride();
        for (int p = 0; p < count; p++, to += step) {
            const Real* window = from + pixels[p];
            for (int k = 0; k < wanted; k += DEPTH) std::memcpy(to + k, window + k, sizeof(Line));
            if (wanted % 2) to[wanted] = 0;
        }
    }
};

// out [RUN][NV * 16] = pixels [RUN][depth] x weights [depth / 2][NV * 16][2]; for up to 16 pixels, only its first half.
template <int NV>
INLINE void multiply_run(const Rows& rows, const Real* pixels, int count, const Real* weights, float* out,
                         Ahead& ahead) {
    const int from_row = sizeof(Real) * rows.stride(), weights_row = NV * 64;
    const bool two = count > ROWS;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < rows.depth; k += DEPTH, weights += DEPTH * NV * 16) {
        _tile_loadd(4, pixels + k, from_row);
        _tile_loadd(6, weights, weights_row);
        _tile_dpbf16ps(0, 4, 6);
        if (NV == 2) {
            _tile_loadd(7, weights + 32, weights_row);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two) {
            _tile_loadd(5, pixels + ROWS * rows.stride() + k, from_row);
            _tile_dpbf16ps(2, 5, 6);
            if (NV == 2) _tile_dpbf16ps(3, 5, 7);
        }
        for (int i = 0; i < 8 && ahead.at < ahead.end; i++) ahead.fetch();
    }
    _tile_stored(0, out, weights_row);
    if (NV == 2) _tile_stored(1, out + 16, weights_row);
    if (!two) return;
    _tile_stored(2, out + ROWS * NV * 16, weights_row);
    if (NV == 2) _tile_stored(3, out + ROWS * NV * 16 + 16, weights_row);
}

// One panel for some staged pixels or blocks. The matrix unit is one run ahead of the tiles that finish its sums.
template <int NV>
void run_panel(const Layer& layer, const Panel& panel, const Rows& fine, const Rows& coarse, const Real* pixels,
               const Real* coarse_pixels, int first, int units, Ahead ahead) {
    alignas(64) float sums[2][RUN * NV * LANES], coarse_sums[2][ROWS * NV * LANES];
    const int scale = layer.blocks ? 4 : 1, count = units * scale;

    auto multiply = [&](int p) {
        if (p >= count) return;
        if (fine.depth)
            multiply_run<NV>(fine, pixels + p * fine.stride(), std::min(RUN, count - p), panel.slices[0].weights,
                             sums[p / RUN % 2], ahead);
        const int block = p / 4;
        if (!coarse.depth || block % ROWS) return;
        float* start = coarse_sums[block / ROWS % 2];
        multiply_run<NV>(coarse, coarse_pixels + block * coarse.stride(), ROWS, panel.slices[coarse.first].weights,
                         start, ahead);
        for (int i = 0; i < ROWS * NV; i++)
            store(start + i * LANES, load(start + i * LANES) + load(panel.bias + i % NV * LANES));
    };

    multiply(0);
    for (int p = 0; p < count; p += RUN) {
        multiply(p + RUN);
        for (int q = p; q < std::min(p + RUN, count); q += TILE) {
            const int block = q / 4;
            All::fine[std::min(TILE, count - q) - 1][NV - 1](
                layer, panel, first * scale + q,
                coarse.depth ? coarse_sums[block / ROWS % 2] + block % ROWS * NV * LANES : nullptr,
                fine.depth ? sums[p / RUN % 2] + (q - p) * NV * LANES : nullptr, ahead);
        }
    }
}

// Stage as many pixels as the cache holds, or one run if the loop over pixels is outside, for all panels.
inline void gemm_staged(const Layer& layer, Range panels, Range all, Ahead next) {
    const Rows fine(layer, 0, layer.term_count), coarse(layer, layer.term_count, layer.term_count + layer.coarse_count);
    const int scale = layer.blocks ? 4 : 1, run = layer.blocks ? ROWS : RUN;  // in units
    const int reals = scale * fine.stride() + coarse.stride();                // of a unit
    const int fitting = STAGED / int(sizeof(Real)) / reals / run * run;
    const int together = layer.pixels_outside ? run : std::max(run, fitting);
    static thread_local std::vector<Line> area;
    area.resize(std::max(area.size(), size_t(together + run) * reals / DEPTH));
    Real* const pixels = area.data()->reals;
    Real* const coarse_pixels = pixels + size_t(together + run) * scale * fine.stride();
    for (int first = all.first; first < all.last; first += together) {
        int units = std::min(together, all.last - first);
        fine.stage(first * scale, units * scale, pixels);
        coarse.stage(first, units, coarse_pixels);
        for (int j = panels.first; j < panels.last; j++) {
            const Panel& panel = layer.panels[j];
            const Ahead ahead = j + 1 < panels.last ? weights_of(layer.panels[j + 1]) : next;
            (panel.vectors == 1 ? run_panel<1> : run_panel<2>)(layer, panel, fine, coarse, pixels, coarse_pixels, first,
                                                               units, ahead);
        }
    }
}

#else
struct MatrixUnit {
    static constexpr bool allowed() { return false; }
};

inline void gemm_staged(const Layer&, Range, Range, Ahead) {}
#endif
