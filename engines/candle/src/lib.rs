//! candle-onnx behind the engine contract.
