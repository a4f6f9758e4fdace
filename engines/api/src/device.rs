//! Where an engine runs, as `--device` has it.

use std::fmt;
use std::str::FromStr;

/// A device, and the way to it where an engine has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The CUDA device of this index, for an engine with one way to it.
    Index(u16),
    /// ONNX Runtime's CUDA kernels.
    Cuda(u16),
    /// ONNX Runtime's TensorRT provider.
    TensorRt(u16),
    /// ONNX Runtime's TensorRT-RTX provider.
    NvRtx(u16),
    /// The GPU of this index of a provider that ONNX Runtime loads from a library of its own.
    Gpu(u16),
    /// The NPU of this index of such a provider.
    Npu(u16),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected cpu, an index, or cuda, tensorrt, nvrtx, gpu or npu with or without :index".to_owned()
        };
        let index = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u16>().map_err(|_| expected()),
            false => Err(expected()),
        };
        let (way, digits) = text.split_once(':').unwrap_or((text, "0"));
        match way {
            "cpu" if text == "cpu" => Ok(Self::Cpu),
            "cuda" => index(digits).map(Self::Cuda),
            "tensorrt" => index(digits).map(Self::TensorRt),
            "nvrtx" => index(digits).map(Self::NvRtx),
            "gpu" => index(digits).map(Self::Gpu),
            "npu" => index(digits).map(Self::Npu),
            _ => index(text).map(Self::Index),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::TensorRt(index) => write!(f, "tensorrt:{index}"),
            Self::NvRtx(index) => write!(f, "nvrtx:{index}"),
            Self::Gpu(index) => write!(f, "gpu:{index}"),
            Self::Npu(index) => write!(f, "npu:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for (text, device, written) in [
            ("cpu", Device::Cpu, "cpu"),
            ("3", Device::Index(3), "3"),
            ("cuda", Device::Cuda(0), "cuda:0"),
            ("cuda:1", Device::Cuda(1), "cuda:1"),
            ("tensorrt:2", Device::TensorRt(2), "tensorrt:2"),
            ("nvrtx", Device::NvRtx(0), "nvrtx:0"),
            ("gpu", Device::Gpu(0), "gpu:0"),
            ("npu:1", Device::Npu(1), "npu:1"),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), written);
        }
        for text in
            ["", "gpu0", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:1:2", "-1", "99999", "CPU"]
        {
            assert!(text.parse::<Device>().unwrap_err().contains("expected cpu"), "{text}");
        }
    }
}
