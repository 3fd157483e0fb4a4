// Runs a program on several threads. hatch_build.py builds it into a wheel, or build.py where it is used.
#include <chrono>

#include "kernel.h"
#include "matrix.h"
#include "records.h"
#include "threads.h"
#include "window.h"

namespace {

// A thread's share of a layer: units [first, last) for the panels [first, last).
struct Share {
    Range panels, units;
    Share(const Layer& layer, int thread, int threads)
        : Share(layer, thread, std::min(layer.channel_split, threads), threads) {}

   private:
    Share(const Layer& layer, int thread, int split, int threads)
        : panels(layer.panel_count, thread % split, split),
          units(layer.units, thread / split, threads / split) {
        if (thread >= threads / split * split) units.last = units.first;  // one thread too many
    }
};

// The units cut into runs of at most TILE, as even as possible, so that no tile is left with one pixel; blocks are cut
// into runs of whole tiles.
struct Cuts {
    int first, units, count, step;
    Cuts(Range range, int step)
        : first(range.first), units(range.last - range.first), count((units + TILE - 1) / TILE), step(step) {}
    int at(int i) const {
        if (i == count) return first + units;
        return first + static_cast<int>((int64_t(units) * i / count + step - 1) / step * step);
    }
};

INLINE void run_units(const Layer& layer, const Panel& panel, int first, int last, Ahead& ahead) {
    if (!layer.blocks) {
        All::fine[last - first - 1][panel.vectors - 1](layer, panel, first, nullptr, nullptr, ahead);
        return;
    }
    alignas(64) float coarse[TILE * PANEL * LANES];
    if (layer.coarse_count) All::coarse[last - first - 1][panel.vectors - 1](layer, panel, first, coarse, ahead);
    constexpr int STEP = TILE / 4;  // blocks of a tile
    for (int block = first; block < last; block += STEP) {
        int pixels = 4 * std::min(STEP, last - block);
        const float* start = layer.coarse_count ? coarse + (block - first) * panel.vectors * LANES : nullptr;
        All::fine[pixels - 1][panel.vectors - 1](layer, panel, 4 * block, start, nullptr, ahead);
    }
}

void gemm(const Layer& layer, const Share& share, Ahead next) {
    if (layer.staged && MatrixUnit::allowed()) return gemm_staged(layer, share.panels, share.units, next);
    Cuts cuts(share.units, layer.blocks ? TILE / 4 : 1);
    if (layer.pixels_outside) {
        for (int i = 0; i < cuts.count; i++)
            for (int j = share.panels.first; j < share.panels.last; j++)
                run_units(layer, layer.panels[j], cuts.at(i), cuts.at(i + 1), next);
        return;
    }
    for (int j = share.panels.first; j < share.panels.last; j++) {
        const Panel& panel = layer.panels[j];
        Ahead ahead = j + 1 < share.panels.last ? weights_of(layer.panels[j + 1]) : next;
        for (int i = 0; i < cuts.count; i++) run_units(layer, panel, cuts.at(i), cuts.at(i + 1), ahead);
    }
}

void run_layer(const Layer& layer, const Outside* outside, int64_t pass, int thread, int threads, Ahead next) {
    const Window* w = layer.window;
    switch (layer.kind) {
        case GEMM: return gemm(layer, Share(layer, thread, threads), next);
        case MEAN: return mean(*w, thread, threads);
        case MAX_POOL: return pool<true>(*w, thread, threads);
        case AVG_POOL: return pool<false>(*w, thread, threads);
        case READ: return copy<true>(*w, outside[w->slot], pass, thread, threads);
        case WRITE: return copy<false>(*w, outside[w->slot], pass, thread, threads);
        default: return pad(*w, layer.kind, thread, threads);
    }
}

// Every other layer is dealt out in reverse, so that no thread gets all the larger shares.
int part_of(int layer, int thread, int threads) { return layer % 2 ? threads - 1 - thread : thread; }

// The weights that a thread needs first in a layer.
Ahead first_weights(const Program& program, int layer, int thread, int threads) {
    if (layer == program.phases[program.phase_count] || program.layers[layer].kind != GEMM) return {};
    Share share(program.layers[layer], part_of(layer, thread, threads), threads);
    return share.panels.first < share.panels.last ? weights_of(program.layers[layer].panels[share.panels.first])
                                                  : Ahead{};
}

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

#pragma GCC visibility push(default)  // everything else is hidden: other builds may be loaded beside this one
extern "C" {

int lanes() { return LANES; }
int panel_vectors() { return PANEL; }

const char* records() {
    static const std::string text = described_records();
    return text.c_str();
}

// Run the program `passes` times, each on the next part of the outside tensors. `seconds`, if given, receives the time
// of each phase in the last pass.
void run(const Program* program, const Outside* outside, int passes, int threads, double* seconds) {
    const int phases = program->phase_count;  // a copy: after the last barrier the program may be gone
    thread_pool().run(threads, [=](int thread, Team& team) {
        [[maybe_unused]] MatrixUnit unit;
        for (int pass = 0; pass < passes; pass++)
            for (int phase = 0; phase < phases; phase++) {
                auto start = Clock::now();
                for (int i = program->phases[phase]; i < program->phases[phase + 1]; i++)
                    run_layer(program->layers[i], outside, pass, part_of(i, thread, team.threads), team.threads,
                              first_weights(*program, i + 1, thread, team.threads));
                team.barrier.wait();
                if (seconds && thread == 0) seconds[phase] = since(start);
            }
    });
}
}
#pragma GCC visibility pop
