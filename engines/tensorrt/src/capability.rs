//! Compute capabilities are plain numbers: they live in the spec, where a build without TensorRT can check them too.

pub use dpar_export_spec::{Capability, CapabilityError};

/// As the library has it.
#[cfg(not(feature = "enterprise"))]
pub(crate) fn native(capability: Capability) -> trtx::ComputeCapability {
    use trtx::ComputeCapability as Native;
    match capability.numbers() {
        (8, 0) => Native::kSM80,
        (8, 6) => Native::kSM86,
        (8, 9) => Native::kSM89,
        (12, 0) => Native::kSM120,
        (12, 1) => Native::kSM121,
        _ => Native::kNONE,
    }
}

#[cfg(all(test, not(feature = "enterprise")))]
mod tests {
    use super::*;

    #[test]
    fn known_ones_are_known_to_the_library() {
        for c in Capability::known() {
            assert_ne!(native(c), trtx::ComputeCapability::kNONE, "{c}");
        }
    }
}
