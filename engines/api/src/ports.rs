//! Check of the ports found in a graph file against those of its spec, the same for every engine.

use std::collections::{BTreeMap, BTreeSet};

use dpar_export_spec::{DType, Dim, GraphSpec, Port, text};

use crate::{EngineError, EngineErrorKind, GraphFault};

/// One input or output as an engine found it in a graph file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePort {
    /// Tensor name.
    pub name: String,
    /// Element type; `None` if it is one that no port can have.
    pub dtype: Option<DType>,
    /// Dimensions: a fixed size, or `None` where it is dynamic. `None` as a whole if the file gives no shape.
    pub dims: Option<Vec<Option<usize>>>,
}

impl std::fmt::Display for FilePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.dtype {
            Some(dtype) => write!(f, "{dtype}")?,
            None => f.write_str("another dtype")?,
        }
        match &self.dims {
            Some(dims) => {
                let dims: Vec<String> =
                    dims.iter().map(|d| d.map_or_else(|| "?".to_owned(), |n| n.to_string())).collect();
                write!(f, "[{}]", dims.join(", "))
            }
            None => f.write_str("[..]"),
        }
    }
}

/// Checks what an engine found in a file. Order does not matter: ports are matched by name.
///
/// # Errors
/// [`EngineErrorKind::Graph`] naming the port as the file and as the spec have it.
pub fn check_ports(
    engine: &str,
    spec: &GraphSpec,
    inputs: &[FilePort],
    outputs: &[FilePort],
) -> Result<(), EngineError> {
    for (side, promised, found) in [("input", &spec.inputs, inputs), ("output", &spec.outputs, outputs)] {
        check_side(side, promised, found).map_err(|fault| {
            EngineError::new(EngineErrorKind::Graph, engine, fault.to_string())
                .in_graph(&spec.name)
                .hint("the graph file and its manifest do not belong together: export both again")
        })?;
    }
    Ok(())
}

fn check_side(side: &str, promised: &[Port], found: &[FilePort]) -> Result<(), GraphFault> {
    let by_name: BTreeMap<&str, &FilePort> = found.iter().rev().map(|f| (f.name.as_str(), f)).collect();
    for port in promised {
        let dims: Vec<String> = port.dims.iter().map(ToString::to_string).collect();
        let want = format!("{}[{}]", port.dtype, dims.join(", "));
        let Some(file) = by_name.get(port.name.as_str()) else {
            let names: Vec<&str> = found.iter().map(|f| f.name.as_str()).collect();
            return Err(format!(
                "the spec has {side} `{}`: {want}, the file has {}",
                port.name,
                if names.is_empty() { format!("no {side}s") } else { text::names(names) }
            )
            .into());
        };
        let fits = file.dtype == Some(port.dtype)
            && file.dims.as_ref().is_none_or(|dims| {
                dims.len() == port.dims.len()
                    && port.dims.iter().zip(dims).all(|(want, have)| match (want, have) {
                        (Dim::Fixed(a), Some(b)) => a == b,
                        // A size baked into an input would refuse every other shape that the spec promises.
                        (Dim::Axis(_) | Dim::Sum(..), Some(_)) => side == "output",
                        (_, None) => true,
                    })
            });
        if !fits {
            return Err(format!("{side} `{}` is {file} in the file, {want} in the spec", port.name).into());
        }
    }
    let names: BTreeSet<&str> = promised.iter().map(|p| p.name.as_str()).collect();
    match found.iter().find(|f| !names.contains(f.name.as_str())) {
        Some(extra) => {
            Err(format!("the file has {side} `{}`: {extra}, the spec does not", extra.name).into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> GraphSpec {
        GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::Fixed(2)])],
            outputs: vec![Port::new("y", DType::I64, vec![Dim::axis("batch")])],
            axes: Vec::new(),
        }
    }

    fn port(name: &str, dtype: Option<DType>, dims: &[Option<usize>]) -> FilePort {
        FilePort { name: name.into(), dtype, dims: Some(dims.to_vec()) }
    }

    fn refused(inputs: &[FilePort], outputs: &[FilePort], text: &str) {
        let e = check_ports("e", &spec(), inputs, outputs).unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Graph);
        assert!(e.to_string().contains(text), "{e}");
    }

    #[test]
    fn both_sides_are_named() {
        let x = || port("x", Some(DType::F32), &[None, Some(2)]);
        let y = || port("y", Some(DType::I64), &[None]);
        check_ports("e", &spec(), &[x()], &[y()]).unwrap();
        refused(&[], &[y()], "e: graph `g`: the spec has input `x`: f32[batch, 2], the file has no inputs");
        refused(&[x()], &[x()], "the spec has output `y`: i64[batch], the file has x");
        refused(
            &[port("x", Some(DType::I64), &[None, Some(2)])],
            &[y()],
            "is i64[?, 2] in the file, f32[batch, 2]",
        );
        refused(&[port("x", None, &[None, Some(2)])], &[y()], "is another dtype[?, 2] in the file");
        refused(&[port("x", Some(DType::F32), &[None, Some(3)])], &[y()], "f32[?, 3] in the file");
        refused(&[port("x", Some(DType::F32), &[Some(1), Some(2)])], &[y()], "f32[1, 2] in the file");
        refused(&[x(), port("z", Some(DType::F32), &[])], &[y()], "the file has input `z`: f32[], the spec");
    }
}
