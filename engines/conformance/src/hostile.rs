//! Checks of what must be refused: files that are not the graph, inputs that are not its inputs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{Engine, EngineErrorKind, GraphFile, Session, Tensor, TensorView};
use dpar_export_spec::{DType, Dim, GraphSpec};

use crate::checks::{compare, run, text};
use crate::close::EXACT;
use crate::inputs::{self, Inputs};
use crate::{CheckFailure, CheckResult, ConformanceCheck, GraphCase};

pub(crate) fn all(
    engine: &dyn Engine,
    case: &GraphCase,
    note: &mut dyn FnMut(ConformanceCheck, CheckResult),
) {
    note(ConformanceCheck::OtherSpec, other_spec(engine, case));
    type Body = fn(&dyn Engine, &GraphCase, &Utf8Path) -> Result<Option<&'static str>, CheckFailure>;
    let table: [(ConformanceCheck, Body); 4] = [
        (ConformanceCheck::TruncatedGraph, truncated_graph),
        (ConformanceCheck::Garbage, garbage),
        (ConformanceCheck::MissingData, missing_data),
        (ConformanceCheck::TruncatedData, truncated_data),
    ];
    for (check, body) in table {
        let found = io(tempfile::tempdir()).and_then(|dir| {
            let path = Utf8PathBuf::from_path_buf(dir.path().to_owned());
            body(engine, case, &path.map_err(|p| format!("{} is not UTF-8", p.display()))?)
        });
        note(check, found);
    }
}

fn io<T>(result: std::io::Result<T>) -> Result<T, CheckFailure> {
    result.map_err(|e| e.to_string().into())
}

/// The engine must refuse the file as a graph error that names the graph, and must not panic.
fn refused(engine: &dyn Engine, spec: &GraphSpec, path: &Utf8Path, what: &str) -> Result<(), CheckFailure> {
    let prepared = catch_unwind(AssertUnwindSafe(|| engine.prepare(GraphFile::new(spec, path)).map(|_| ())));
    match prepared {
        Err(_) => Err(format!("{what}: it panicked").into()),
        Ok(Ok(())) => Err(format!("{what}: it was accepted").into()),
        Ok(Err(e)) if e.kind != EngineErrorKind::Graph => {
            Err(format!("{what}: not a graph error: {}", text(e)).into())
        }
        Ok(Err(e)) if e.graph.as_deref() != Some(&spec.name) => {
            Err(format!("{what}: the error does not name the graph: {}", text(e)).into())
        }
        Ok(Err(_)) => Ok(()),
    }
}

fn other_spec(engine: &dyn Engine, case: &GraphCase) -> CheckResult {
    let mut renamed = case.spec.clone();
    let mut retyped = case.spec.clone();
    let mut resized = case.spec.clone();
    let mut extra = case.spec.clone();
    for port in renamed.outputs.iter_mut().take(1) {
        port.name.push_str("_other");
    }
    for port in retyped.inputs.iter_mut().take(1) {
        port.dtype = if port.dtype == DType::F32 { DType::I64 } else { DType::F32 };
    }
    for port in resized.inputs.iter_mut().take(1) {
        port.dims.push(Dim::Fixed(1));
    }
    extra.inputs.pop();
    for (what, spec) in [
        ("another output name", &renamed),
        ("another input dtype", &retyped),
        ("another input rank", &resized),
        ("one input less", &extra),
    ] {
        refused(engine, spec, &case.path, what)?;
    }
    Ok(None)
}

fn truncated_graph(engine: &dyn Engine, case: &GraphCase, dir: &Utf8Path) -> CheckResult {
    let bytes = io(fs_err::read(&case.path))?;
    let path = dir.join("graph.onnx");
    for keep in [bytes.len() / 2, bytes.len() - 1, 40.min(bytes.len() / 4)] {
        io(fs_err::write(&path, &bytes[..keep]))?;
        refused(engine, &case.spec, &path, &format!("the first {keep} of {} bytes", bytes.len()))?;
    }
    Ok(None)
}

fn garbage(engine: &dyn Engine, case: &GraphCase, dir: &Utf8Path) -> CheckResult {
    let path = dir.join("graph.onnx");
    refused(engine, &case.spec, &path, "no file")?;
    for (what, bytes) in [
        ("an empty file", Vec::new()),
        ("text", b"this is not a graph\n".repeat(20)),
        ("bytes of 0xff", vec![0xff; 4096]),
        ("zeros", vec![0; 4096]),
    ] {
        io(fs_err::write(&path, bytes))?;
        refused(engine, &case.spec, &path, what)?;
    }
    refused(engine, &case.spec, dir, "a folder")?;
    Ok(None)
}

/// The data file beside the graph, if the graph names one.
fn data_file(case: &GraphCase) -> Result<Option<String>, CheckFailure> {
    let graph = io(fs_err::read(&case.path))?;
    let folder = case.path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    for entry in io(folder.read_dir_utf8())? {
        let name = io(entry)?.file_name().to_owned();
        let named = || graph.windows(name.len()).any(|w| w == name.as_bytes());
        if name.ends_with(".onnx_data") && named() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

const NO_DATA: &str = "no external data";

fn missing_data(engine: &dyn Engine, case: &GraphCase, dir: &Utf8Path) -> CheckResult {
    if data_file(case)?.is_none() {
        return Ok(Some(NO_DATA));
    }
    let path = dir.join("graph.onnx");
    io(fs_err::copy(&case.path, &path))?;
    refused(engine, &case.spec, &path, "no data file")?;
    match engine.prepare(GraphFile::new(&case.spec, &path)) {
        Err(e) if e.hint.as_deref().is_some_and(|h| h.contains("beside")) => Ok(None),
        _ => Err("the refusal does not say where the data file must lie".into()),
    }
}

fn truncated_data(engine: &dyn Engine, case: &GraphCase, dir: &Utf8Path) -> CheckResult {
    let Some(name) = data_file(case)? else { return Ok(Some(NO_DATA)) };
    let path = dir.join("graph.onnx");
    io(fs_err::copy(&case.path, &path))?;
    for len in [0, 1] {
        io(fs_err::write(dir.join(&name), vec![0; len]))?;
        refused(engine, &case.spec, &path, &format!("a data file of {len} bytes"))?;
    }
    Ok(None)
}

pub(crate) fn bad_inputs(session: &mut dyn Session, case: &GraphCase) -> CheckResult {
    let good = inputs::generate(case, &case.sizes(|a| a.opt), 7)?;
    let before = run(session, &good)?;
    let Some((name, first)) = good.0.first() else { return Ok(Some("no inputs")) };
    let with = |edit: &dyn Fn(&mut Inputs)| {
        let mut inputs = good.clone();
        edit(&mut inputs);
        inputs
    };
    let swapped = match first.dtype() {
        DType::I64 => Tensor::f32(first.shape(), vec![0.0; first.shape().iter().product()]),
        DType::F32 | DType::F16 | DType::BF16 => {
            Tensor::i64(first.shape(), vec![0; first.shape().iter().product()])
        }
    };
    let mut deeper = first.shape().to_vec();
    deeper.push(1);
    let deeper = TensorView::new(deeper, first.view().data());
    let tries = [
        ("an unknown input", with(&|l| l.0.push(("no_such_input".to_owned(), first.clone())))),
        ("a missing input", with(&|l| drop(l.0.remove(0)))),
        ("an input given twice", with(&|l| l.0.push(l.0[0].clone()))),
        ("a wrong dtype", with(&|l| l.0[0].1 = swapped.clone())),
    ];
    let mut verdicts: Vec<_> = tries.iter().map(|(what, i)| (*what, session.run(&i.views()))).collect();
    let mut views = good.views();
    views[0] = (name, deeper);
    verdicts.push(("a wrong rank", session.run(&views)));
    if let Some(axis) = case.spec.axes.iter().find(|a| a.max < case.cap_of(a)) {
        let mut sizes = case.sizes(|a| a.opt);
        sizes.insert(axis.name.clone(), axis.max + 1);
        let beyond = inputs::generate(case, &sizes, 7)?;
        verdicts.push(("a size beyond its range", session.run(&beyond.views())));
    }
    for (what, verdict) in verdicts {
        match verdict {
            Err(e) if e.kind == EngineErrorKind::Input => {}
            Err(e) => return Err(format!("{what}: not an input error: {}", text(e)).into()),
            Ok(_) => return Err(format!("{what}: it was accepted").into()),
        }
    }
    let after = run(session, &good)?;
    compare(&case.spec, EXACT, &after, &before).map_err(|e| format!("after refused inputs: {e}"))?;
    Ok(None)
}
