//! Shapes as providers take them that build engines.

use dpar_export_spec::{AxisRange, Dim, GraphSpec, Port};

/// Shapes of all inputs at one point of the axis ranges, as the providers take them: `tokens:1x1,mask:1x1x1x1`.
pub(crate) fn profile(spec: &GraphSpec, size: impl Fn(&AxisRange) -> usize) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(n) => *n,
        Dim::Axis(_) | Dim::Sum(..) => dim.axes().iter().filter_map(|a| spec.axis(a)).map(&size).sum(),
    };
    let shape = |port: &Port| {
        let sizes: Vec<String> = port.dims.iter().map(|d| dim(d).to_string()).collect();
        format!("{}:{}", port.name, sizes.join("x"))
    };
    spec.inputs.iter().map(shape).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_export_spec::DType;

    #[test]
    fn shapes_are_written_as_the_providers_take_them() {
        let axis = |name: &str, min, opt, max| AxisRange { name: name.into(), min, opt, max };
        let spec = GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![
                Port::new("tokens", DType::I64, vec![Dim::axis("batch"), Dim::axis("tokens")]),
                Port::new("mask", DType::F32, vec![Dim::Fixed(1), Dim::sum("past", "tokens")]),
            ],
            outputs: vec![],
            axes: vec![axis("batch", 1, 8, 512), axis("tokens", 1, 1, 64), axis("past", 0, 32, 64)],
        };
        assert_eq!(profile(&spec, |a| a.min), "tokens:1x1,mask:1x1");
        assert_eq!(profile(&spec, |a| a.opt), "tokens:8x1,mask:1x33");
        assert_eq!(profile(&spec, |a| a.max), "tokens:512x64,mask:1x128");
    }
}
