// How the compiler laid out the records of program.h, for Python to compare with its own structures.
#pragma once
#include <cstddef>
#include <string>

#include "program.h"

#define RECORD(record) #record " " + std::to_string(sizeof(record))
#define FIELD(record, field) ", " #field " " + std::to_string(offsetof(record, field))

// A line for each record: its name and size, then its fields and their offsets.
inline std::string described_records() {
    std::string out;  // a stream would bring a third of a megabyte along, where the C++ library is linked statically
    out += RECORD(Term) + FIELD(Term, source) + FIELD(Term, pixels) + FIELD(Term, taps) + FIELD(Term, tap_count) +
           FIELD(Term, depthwise) + "\n";
    out += RECORD(Slice) + FIELD(Slice, weights) + FIELD(Slice, first) + FIELD(Slice, count) + "\n";
    out += RECORD(Panel) + FIELD(Panel, slices) + FIELD(Panel, bias) + FIELD(Panel, weights) +
           FIELD(Panel, weights_end) + FIELD(Panel, channel) + FIELD(Panel, vectors) + "\n";
    out += RECORD(Addend) + FIELD(Addend, source) + FIELD(Addend, pixels) + FIELD(Addend, gate) +
           FIELD(Addend, gate_pixels) + FIELD(Addend, per_block) + "\n";
    out += RECORD(Output) + FIELD(Output, full) + FIELD(Output, pixels) + FIELD(Output, pooled) +
           FIELD(Output, blocks) + FIELD(Output, scale) + FIELD(Output, shift) + FIELD(Output, full_channels) +
           FIELD(Output, pooled_channels) + FIELD(Output, activation) + FIELD(Output, low) + FIELD(Output, high) + "\n";
    out += RECORD(Window) + FIELD(Window, source) + FIELD(Window, target) + FIELD(Window, images) +
           FIELD(Window, height) + FIELD(Window, width) + FIELD(Window, out_height) + FIELD(Window, out_width) +
           FIELD(Window, channels) + FIELD(Window, kernel) + FIELD(Window, stride) + FIELD(Window, padding) +
           FIELD(Window, count_padding) + FIELD(Window, source_image) + FIELD(Window, source_row) +
           FIELD(Window, source_stride) + FIELD(Window, target_image) + FIELD(Window, target_row) +
           FIELD(Window, target_stride) + FIELD(Window, slot) + FIELD(Window, first) + "\n";
    out += RECORD(Layer) + FIELD(Layer, kind) + FIELD(Layer, units) + FIELD(Layer, blocks) + FIELD(Layer, term_count) +
           FIELD(Layer, coarse_count) + FIELD(Layer, panel_count) + FIELD(Layer, addend_count) +
           FIELD(Layer, output_count) + FIELD(Layer, pixels_outside) + FIELD(Layer, staged) +
           FIELD(Layer, channel_split) + FIELD(Layer, terms) + FIELD(Layer, panels) + FIELD(Layer, addends) +
           FIELD(Layer, outputs) + FIELD(Layer, window) + "\n";
    out += RECORD(Program) + FIELD(Program, layers) + FIELD(Program, phases) + FIELD(Program, phase_count) + "\n";
    out += RECORD(Outside) + FIELD(Outside, data) + FIELD(Outside, strides) + FIELD(Outside, step) + "\n";
    return out;
}

#undef RECORD
#undef FIELD
