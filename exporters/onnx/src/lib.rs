//! Writes ONNX graphs from component specs and weights.
