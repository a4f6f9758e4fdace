//! Rows on their own: the same streams under every schedule, and how often the large transformer runs.

use dpar_export::bundle::Bundle;
use dpar_export::generate::sampler::{Method, SamplerOptions};
use dpar_export::generate::{Batching, DecodeOptions, GraphCalls, Request, Schedule, Stream};
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::GraphName;

use crate::common::{ENGINES, Temp, export, llamagen, on, quiet};

/// Images of a comparison. Draws are Gumbel-max: the rounding of other batches parts almost none.
const IMAGES: u64 = 18;

fn options(cfg_scale: f32, cfg_interval: Option<usize>) -> DecodeOptions {
    let sampler = SamplerOptions { method: Method::Gumbel, ..SamplerOptions::default() };
    DecodeOptions { cfg_scale, cfg_interval, sampler, seed: 3 }
}

fn decode(
    bundle: &Bundle,
    engine: &str,
    options: &DecodeOptions,
    requests: &[Request],
    rows: usize,
    schedule: Schedule,
) -> (Vec<Stream>, Vec<GraphCalls>) {
    let batching = Batching { rows, schedule };
    on(bundle, engine).decode_counted(requests, options, batching, &mut quiet).unwrap()
}

/// Tokens and patches, by image.
fn decisions(streams: &[Stream]) -> Vec<(u64, &[u32], &[usize])> {
    let mut all: Vec<_> =
        streams.iter().map(|s| (s.request.index, &s.tokens[..], &s.patch_lengths[..])).collect();
    all.sort_unstable();
    all
}

/// Whatever the schedule, the rows, the order and the neighbours.
fn same_streams(bundle: &Bundle, options: &DecodeOptions) {
    let requests = Request::all_seeded(options.seed, IMAGES, bundle.system().num_classes);
    for engine in ENGINES {
        let (first, _) = decode(bundle, engine, options, &requests, 6, Schedule::Lockstep);
        assert_eq!(first.iter().map(|s| s.request).collect::<Vec<_>>(), requests);
        for (rows, schedule) in [(1, Schedule::Lockstep), (7, Schedule::Patch), (5, Schedule::Continuous)] {
            let mut order = requests.clone();
            order.reverse();
            order.swap(1, 9);
            let (streams, _) = decode(bundle, engine, options, &order, rows, schedule);
            assert_eq!(decisions(&streams), decisions(&first), "{engine} {schedule:?}, {rows} rows");
        }
    }
}

#[test]
fn streams_are_the_same_under_every_schedule() {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    same_streams(&bundle, &options(2.0, None));
}

#[test]
fn guidance_ends_for_each_row_at_its_own_slot() {
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    same_streams(&bundle, &options(3.0, Some(20)));
}

#[test]
fn a_baseline_has_the_same_streams_too() {
    let temp = Temp::new();
    let (file, load) = llamagen("emoji32");
    let bundle = export(file, &load, &temp.path("b"));
    same_streams(&bundle, &options(2.0, Some(30)));
}

/// Every encoder that sees its own patch only, and several of its layers.
#[test]
fn a_variant_with_every_switch_on_has_the_same_streams() {
    let temp = Temp::new();
    let bundle = export("variants/combined/dpar", &LoadOptions::default(), &temp.path("b"));
    same_streams(&bundle, &options(2.0, None));
}

#[test]
fn the_large_transformer_runs_as_often_as_the_schedule_promises() {
    const ROWS: usize = 16;
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let requests = Request::all_seeded(0, 4 * ROWS as u64, bundle.system().num_classes);
    let options = options(1.0, None);
    let global = |requests: &[Request], schedule| {
        let (streams, calls) = decode(&bundle, ENGINES[0], &options, requests, ROWS, schedule);
        let steps: Vec<usize> = streams.iter().map(Stream::steps).collect();
        let of = |graph| *calls.iter().find(|c| c.graph == graph).unwrap();
        let tokens = (requests.len() * bundle.system().tokens()) as u64;
        // Whatever the schedule: a row for each patch and for each token; the last one is not looked at.
        assert_eq!(of(GraphName::GlobalStep).rows, steps.iter().sum::<usize>() as u64);
        assert_eq!(of(GraphName::DecoderStep).rows, tokens);
        assert_eq!(of(GraphName::EntropyStep).rows, tokens - requests.len() as u64);
        (of(GraphName::GlobalStep).calls as f64, steps)
    };
    let (lockstep, steps) = global(&requests[..ROWS], Schedule::Lockstep);
    assert_eq!(
        lockstep,
        bundle.system().tokens() as f64,
        "in lockstep some image opens a patch at every token"
    );
    let most = steps.into_iter().max().unwrap() as f64;
    let (aligned, _) = global(&requests[..ROWS], Schedule::Patch);
    assert_eq!(aligned, most, "as often as the image with most patches needs");
    // Rows stay empty only at the end, when no image is left to begin: for less than one image's patches.
    let (refilled, steps) = global(&requests, Schedule::Continuous);
    let full = steps.iter().sum::<usize>() as f64 / ROWS as f64;
    let most = steps.into_iter().max().unwrap() as f64;
    assert!((full..full + most).contains(&refilled), "{refilled} calls, {full} would be full");
}

/// Over many images the rows that run empty at the end count for little.
#[test]
fn refilled_rows_are_nearly_full_over_many_images() {
    const ROWS: usize = 16;
    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let requests = Request::all_seeded(0, 512, bundle.system().num_classes);
    let (streams, calls) =
        decode(&bundle, ENGINES[0], &options(1.0, None), &requests, ROWS, Schedule::Continuous);
    let calls = calls.iter().find(|c| c.graph == GraphName::GlobalStep).unwrap().calls as f64;
    let full = streams.iter().map(Stream::steps).sum::<usize>() as f64 / ROWS as f64;
    assert!((full..=1.1 * full).contains(&calls), "{calls} calls, {full} would be full");
}

/// The exported graphs, which join past and new slots, and what is derived from them draw the same.
#[test]
fn caches_in_place_and_joined_ones_draw_the_same_and_are_named() {
    use dpar_engine_api::CacheForm::{InPlace, Joined};
    use dpar_export::engines::{self, EngineOptions};
    use dpar_export::loaded::LoadedBundle;

    use crate::common::engine_options;

    let temp = Temp::new();
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &temp.path("b"));
    let requests = Request::all_seeded(0, 6, bundle.system().num_classes);
    for engine in ["tract", "ort"] {
        let told = |caches| {
            let options = EngineOptions { caches, ..engine_options(engine) };
            LoadedBundle::new(&bundle, engines::create(engine, &options).unwrap()).unwrap()
        };
        let draw = |runtime: &LoadedBundle<'_>| {
            runtime.decode(&requests, &options(2.0, None), 4, &mut quiet).unwrap()
        };
        let [own, placed, joined] = [None, Some(InPlace), Some(Joined)].map(told);
        let [a, b, c] = [&own, &placed, &joined].map(draw);
        assert_eq!(decisions(&a), decisions(&b), "{engine}");
        assert_eq!(decisions(&a), decisions(&c), "{engine}");
        assert_eq!(own.caches(), placed.caches());
        let graphs = ["decoder_step", "encoder_step", "entropy_step", "global_step"];
        assert!(own.caches().iter().map(|(g, f)| (g.as_str(), *f)).eq(graphs.map(|g| (g, InPlace))));
        assert!(joined.caches().iter().map(|(g, f)| (g.as_str(), *f)).eq(graphs.map(|g| (g, Joined))));
        assert_eq!((own.info().caches, joined.info().caches), (None, Some(Joined)));
    }
    // Where they cannot be in place, that is said.
    let half = crate::common::export_as(
        "dpar-small/dpar",
        dpar_export_spec::Precision::Fp16,
        &LoadOptions::default(),
        &temp.path("half"),
    );
    let options = EngineOptions { caches: Some(InPlace), ..engine_options("tract") };
    let runtime = LoadedBundle::new(&half, engines::create("tract", &options).unwrap()).unwrap();
    let e = runtime.model().err().unwrap().to_string();
    assert!(e.contains("its caches cannot be kept in place"), "{e}");
}

/// Names of axes are a file's own, in graphs that are derived too.
#[test]
fn axes_of_step_graphs_have_any_name() {
    use dpar_export_onnx::proto::DimensionValue;

    let temp = Temp::new();
    let (good, other) = (temp.path("good"), temp.path("other"));
    let bundle = export("dpar-small/dpar", &LoadOptions::default(), &good);
    crate::faults::copy(&good, &other);
    for name in ["entropy_step", "encoder_step", "global_step", "decoder_step"] {
        crate::faults::graph(&other, name, |model| {
            let graph = model.graph.as_mut().unwrap();
            for port in graph.input.iter_mut().chain(&mut graph.output) {
                let shape = port.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape.as_mut();
                for dim in &mut shape.unwrap().dim {
                    if let Some(DimensionValue::Param(name)) = &mut dim.value {
                        *name = "N-1/a b".to_owned();
                    }
                }
            }
        });
    }
    crate::faults::rehash(&other);
    let renamed = Bundle::open(&other).unwrap();
    let requests = Request::all_seeded(1, 3, bundle.system().num_classes);
    for engine in ["tract", "ort"] {
        let draw =
            |bundle: &Bundle| decode(bundle, engine, &options(2.0, None), &requests, 3, Schedule::Lockstep).0;
        assert_eq!(decisions(&draw(&bundle)), decisions(&draw(&renamed)), "{engine}");
    }
}
