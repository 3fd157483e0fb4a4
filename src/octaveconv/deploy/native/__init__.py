"""The native engine: C++ for inference on the CPU, and the Python that feeds it."""
