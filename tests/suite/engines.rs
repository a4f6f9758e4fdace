//! The conformance suite on the exported graphs, on every engine that runs here.

use dpar_engine_api::ArithmeticKind;
use dpar_engine_conformance::{GraphCase, agree, assert_passed, run};
use dpar_export::bundle::{Bundle, ExtractorBundle, ExtractorSpec, write_extractor};
use dpar_export::engines;
use dpar_export::tolerance::Rounding;
use dpar_export_checkpoint::{LoadOptions, load_extractor};
use dpar_export_spec::{ComponentKind, Dialect};

use crate::cli::run as run_command;
use crate::common::{ENGINES, Temp, engine_options, export, fixture, llamagen};

/// Every graph of a bundle that has a form, in that form, with the bounds that its integer inputs have.
fn cases(bundle: &Bundle, form: Dialect) -> Vec<GraphCase> {
    let system = bundle.system();
    let (t, vocab) = (system.tokens(), system.vocab);
    let graphs = bundle.manifest().graphs.iter();
    graphs
        .filter_map(|graph| Some((graph, graph.files().find(|(dialect, _)| *dialect == form)?.1)))
        .map(|(graph, file)| {
            let mut case = GraphCase::new(graph.spec.clone(), bundle.folder().join(file));
            // Large enough to differ from the tuned sizes, small enough for an image network.
            case.cap = 6;
            if graph.spec.component == "vq" {
                // Convolutions: the slowest of all.
                case.caps.insert("batch".to_owned(), 2);
            }
            // The patches of the whole batch stand in one list.
            case.coupled_rows = graph.spec.input("patch_tokens").is_some();
            for port in &graph.spec.inputs {
                let bound = match port.name.as_str() {
                    "tokens" | "slots" => vocab,
                    "class_labels" => system.num_classes + 1,
                    "positions" => t,
                    "patch_first" | "patch_last" | "patch_index" => t + 1,
                    // Flat indices: the first row exists whatever the shape.
                    _ => 1,
                };
                if port.dtype == dpar_export_spec::DType::I64 {
                    case = case.bound(&port.name, bound);
                }
            }
            case
        })
        .collect()
}

fn check(bundle: &Bundle) {
    check_cases(&ENGINES, &cases(bundle, Dialect::Portable));
}

fn check_cases(names: &[&str], cases: &[GraphCase]) {
    let engines: Vec<_> =
        names.iter().map(|name| engines::create(name, &engine_options(name)).unwrap()).collect();
    for engine in &engines {
        assert_passed(&run(engine.as_ref(), cases));
    }
    for other in &engines[1..] {
        assert_passed(&agree(engines[0].as_ref(), other.as_ref(), cases));
    }
}

#[test]
fn the_graphs_of_dpar() {
    let temp = Temp::new();
    check(&export("dpar-small/dpar", &LoadOptions::default(), &temp.path("b")));
}

#[test]
fn the_graphs_of_a_variant_with_every_switch_on() {
    let temp = Temp::new();
    check(&export("variants/combined/dpar", &LoadOptions::default(), &temp.path("b")));
}

#[test]
fn the_graphs_of_llamagen() {
    let temp = Temp::new();
    let (file, options) = llamagen("llamagen-small");
    check(&export(file, &options, &temp.path("b")));
}

/// The form of quantized weights that engines read themselves, with its caches as they are kept in place. Engines compare where
/// activations stay as they are; where ONNX Runtime rounds them, which tract does not, it is compared with itself alone.
#[test]
fn the_packed_graphs_of_quantized_weights() {
    let both = ["tract", "ort"];
    for (quantize, accuracy, engines) in [("int8", "4", &both[1..]), ("int4", "1", &both[..])] {
        let temp = Temp::new();
        let (from, out) = (fixture("emoji32/dpar"), temp.path("b"));
        let words = [from.as_str(), "--quantize", quantize, "--accuracy-level", accuracy, "-o", out.as_str()];
        assert_eq!(run_command(&words).code, 0);
        let bundle = Bundle::open(&out).unwrap();
        let mut cases = cases(&bundle, Dialect::Packed);
        assert_eq!(cases.len(), 6);
        for case in &mut cases {
            case.cap = 4;
            case.scaled = true;
            if accuracy == "4" {
                let numbers = bundle.manifest().numbers().of_graph(&case.spec.name);
                case.tolerances = Rounding::own(numbers, ArithmeticKind::NarrowActivations).into();
            }
        }
        check_cases(engines, &cases);
    }
}

/// FID-Inception has the same operators and padded pools besides; the test of its parity runs it. candle, whose depthwise
/// convolutions take most of a minute here, runs this network in its parity test.
#[test]
fn the_graph_of_a_feature_network() {
    let temp = Temp::new();
    let weights = crate::extractor::efficientnet_weights();
    let loaded = load_extractor(&weights, ComponentKind::EfficientnetLite0, Some(32), None).unwrap();
    let spec = ExtractorSpec::of(&loaded, None, None).unwrap();
    write_extractor(&loaded, &spec, &temp.path("b"), false, &mut |_| true).unwrap();
    let bundle = ExtractorBundle::open(&temp.path("b")).unwrap();
    let graph = &bundle.manifest().graphs[0];
    let mut case = GraphCase::new(graph.spec.clone(), bundle.folder().join(&graph.file));
    case.cap = 2;
    check_cases(&["tract", "ort"], &[case]);
}
