"""octavify: a dense network becomes an octave network, layer by layer, and keeps its weights."""
