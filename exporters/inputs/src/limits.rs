//! How much of an input is read, by what it is. An option is named where one raises the limit.

/// Bytes of a JSON or YAML file: settings, reports, class names.
pub const TEXT: u64 = 64 << 20;

/// Bytes of a `.onnx` file: protobuf ends there.
pub const GRAPH: u64 = 2 << 30;

/// Pixels of a picture that is read.
pub const PIXELS: u64 = 1 << 28;

/// Images that `score`, `decode` and `encode` take from a file; `--max-images` raises it.
pub const IMAGES: u64 = 100_000;

/// Memory for what is read of one input; `--max-memory` sets it. Half of what the machine, the container and the
/// process have, where that is less.
pub(crate) const MEMORY: u64 = 4 << 30;
