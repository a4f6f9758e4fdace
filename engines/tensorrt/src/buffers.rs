//! The device buffers of one profile, one per port, kept from call to call.
//!
//! Where all of them fit into half of the free device memory at the profile's largest sizes, they are allocated so
//! once, at the profile's first call. A profile over a graph's whole ranges can be far larger than any device (512
//! rows of 256 past slots in 24 layers are 26 GB of cache); then buffers start at what is needed and double.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dpar_export_spec::{DType, GraphSpec};

use crate::cuda::{CudaDevice, CudaError, DeviceBuffer};
use crate::profile::{Point, Profile};

/// Bytes of an element; `None` for a type this engine does not know.
pub(crate) fn element_bytes(dtype: DType) -> Option<usize> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::I64 => Some(dtype.bytes()),
    }
}

pub(crate) struct Buffers {
    device: Arc<CudaDevice>,
    by_port: BTreeMap<String, DeviceBuffer>,
    /// Largest bytes of each port, where the profile is known.
    most: BTreeMap<String, usize>,
}

impl Buffers {
    /// Buffers for all ports but those in `elsewhere`.
    pub(crate) fn new(
        device: &Arc<CudaDevice>,
        spec: &GraphSpec,
        profile: Option<&Profile>,
        elsewhere: &BTreeSet<String>,
    ) -> Result<Self, CudaError> {
        let mut most = profile.map(|p| largest(spec, p)).unwrap_or_default();
        most.retain(|port, _| !elsewhere.contains(port));
        let mut buffers = Self { device: Arc::clone(device), by_port: BTreeMap::new(), most };
        let total = buffers.most.values().fold(0_usize, |sum, n| sum.saturating_add(*n));
        if total > 0 && total <= device.free_memory()? / 2 {
            let all: Vec<(String, usize)> = buffers.most.clone().into_iter().collect();
            for (port, bytes) in all {
                buffers.reserve(&port, bytes)?;
            }
        }
        Ok(buffers)
    }

    /// The port's buffer with room for `bytes`. Nothing may be running that uses the buffer it had.
    pub(crate) fn reserve(&mut self, port: &str, bytes: usize) -> Result<&DeviceBuffer, CudaError> {
        let have = self.by_port.get(port).map(DeviceBuffer::bytes);
        if have.is_none_or(|have| have < bytes) {
            let doubled = have.unwrap_or_default().saturating_mul(2);
            let most = self.most.get(port).copied().unwrap_or(usize::MAX);
            let room = doubled.min(most).max(bytes);
            // Free the old one first: the two together may not fit.
            self.by_port.remove(port);
            let buffer = DeviceBuffer::new(&self.device, room)?;
            return Ok(self.by_port.entry(port.to_owned()).or_insert(buffer));
        }
        self.get(port)
    }

    pub(crate) fn get(&self, port: &str) -> Result<&DeviceBuffer, CudaError> {
        self.by_port.get(port).ok_or_else(|| format!("no buffer for `{port}`").into())
    }
}

/// Bytes of every port at the profile's largest sizes, as far as they follow from the graph's axes.
fn largest(spec: &GraphSpec, profile: &Profile) -> BTreeMap<String, usize> {
    let ports = spec.inputs.iter().chain(&spec.outputs);
    let sized = ports.filter_map(|port| {
        let shape = profile.shape(spec, port, Point::Max).ok()?;
        let bytes = shape.iter().try_fold(element_bytes(port.dtype)?, |n, d| n.checked_mul(*d))?;
        Some((port.name.clone(), bytes))
    });
    sized.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::fake;
    use dpar_export_spec::{AxisRange, Dim, Port};

    fn spec(max: usize) -> GraphSpec {
        GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![Port::new("x", DType::F32, vec![Dim::axis("n"), Dim::Fixed(2)])],
            outputs: vec![Port::new("y", DType::I64, vec![Dim::axis("n")])],
            axes: vec![AxisRange { name: "n".into(), min: 1, opt: 1, max }],
        }
    }

    #[test]
    fn small_profiles_are_allocated_once_and_large_ones_grow() {
        let device = CudaDevice::open(&fake::driver(), 0).unwrap();
        let none = BTreeSet::new();
        let bytes = |b: &Buffers, port| b.get(port).map(DeviceBuffer::bytes).ok();

        let small = spec(100);
        let profile = Profile::from_spec("p", &small);
        let mut buffers = Buffers::new(&device, &small, Some(&profile), &none).unwrap();
        assert_eq!((bytes(&buffers, "x"), bytes(&buffers, "y")), (Some(800), Some(800)));
        let before = buffers.get("x").unwrap().raw();
        assert_eq!(buffers.reserve("x", 8).unwrap().raw(), before);
        let without_x = Buffers::new(&device, &small, Some(&profile), &["x".to_owned()].into()).unwrap();
        assert_eq!((bytes(&without_x, "x"), bytes(&without_x, "y")), (None, Some(800)));

        // 1.6 MB do not fit into half of the stand-in's 1 MiB.
        let large = spec(100_000);
        let profile = Profile::from_spec("p", &large);
        let mut buffers = Buffers::new(&device, &large, Some(&profile), &none).unwrap();
        assert_eq!(bytes(&buffers, "x"), None);
        for (asked, room) in
            [(0, 0), (8, 8), (16, 16), (17, 32), (32, 32), (500_000, 500_000), (500_008, 800_000)]
        {
            assert_eq!(buffers.reserve("x", asked).unwrap().bytes(), room, "{asked}");
        }

        let mut unknown = Buffers::new(&device, &large, None, &none).unwrap();
        assert_eq!(unknown.reserve("y", 24).unwrap().bytes(), 24);
        assert!(unknown.reserve("y", 1 << 21).err().unwrap().to_string().contains("out of memory"));
    }
}
