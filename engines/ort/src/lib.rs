//! ONNX Runtime behind the engine contract, loaded dynamically and checked before use.
