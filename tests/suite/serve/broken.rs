//! Engines that fail while they serve: what is not theirs goes on.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::{
    Arithmetic, CacheForm, CachedSession, CallRow, Engine, EngineError, EngineErrorKind, EngineInfo,
    GraphFile, Outputs, Session, TensorSlice, TensorView,
};
use dpar_export::bundle::Bundle;
use dpar_export::engines::{self, EngineOptions};
use dpar_export::generate::sampler::SamplerOptions;
use dpar_export::generate::{Batching, DecodeOptions, Request};
use dpar_export::loaded::LoadedBundle;
use dpar_export::serve::http::{HttpLimits, HttpServer, ServedModel, Service};
use dpar_export::serve::{ImageJob, JobError, Scheduler, SchedulerLimits};
use dpar_export_spec::{GraphSpec, Precision};
use serde_json::{Value, json};

use super::protocols::{events, of};
use super::{Answer, Server, bundle};
use crate::common::{Temp, engine_options, on, quiet};

/// What happens to a step of a graph.
enum Fault {
    /// The engine fails.
    Fails,
    /// The call has no number in this line of its first input.
    NoNumber(usize),
}

/// Which step what happens to: by its graph, its inputs and its rows.
type Faults = dyn Fn(&str, &[(&str, TensorView<'_>)], &[CallRow]) -> Option<Fault> + Send + Sync;

/// An engine with faults.
struct Faulty {
    inner: Box<dyn Engine>,
    faults: Arc<Faults>,
}

impl Faulty {
    fn engine(caches: Option<CacheForm>, faults: &Arc<Faults>) -> Box<dyn Engine> {
        let options = EngineOptions { caches, ..engine_options("tract") };
        Box::new(Self { inner: engines::create("tract", &options).unwrap(), faults: faults.clone() })
    }
}

impl Engine for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        self.inner.probe()
    }

    fn arithmetic(&self, precision: Precision) -> Result<Arithmetic, EngineError> {
        self.inner.arithmetic(precision)
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        self.inner.prepare(graph)
    }

    fn prepare_cached(&self, graph: GraphFile<'_>) -> Result<Box<dyn CachedSession>, EngineError> {
        let inner = self.inner.prepare_cached(graph)?;
        Ok(Box::new(FaultySession { inner, faults: self.faults.clone() }))
    }
}

struct FaultySession {
    inner: Box<dyn CachedSession>,
    faults: Arc<Faults>,
}

impl CachedSession for FaultySession {
    fn spec(&self) -> &GraphSpec {
        self.inner.spec()
    }

    fn form(&self) -> Option<CacheForm> {
        self.inner.form()
    }

    fn cache_bytes(&self) -> u64 {
        self.inner.cache_bytes()
    }

    fn reset(&mut self, rows: usize) {
        self.inner.reset(rows);
    }

    fn step(&mut self, inputs: &[(&str, TensorView<'_>)], rows: &[CallRow]) -> Result<Outputs, EngineError> {
        match (self.faults)(&self.inner.spec().name, inputs, rows) {
            None => self.inner.step(inputs, rows),
            Some(Fault::Fails) => Err(EngineError::new(EngineErrorKind::Run, "test", "the device is lost")),
            Some(Fault::NoNumber(line)) => {
                let (name, first) = inputs[0].clone();
                let TensorSlice::F32(values) = first.data() else { panic!("`{name}` has no floats") };
                let mut values = values.to_vec();
                let width = values.len() / first.shape()[0];
                values[line * width..(line + 1) * width].fill(f32::NAN);
                let mut inputs = inputs.to_vec();
                inputs[0] = (name, TensorView::f32(first.shape().to_vec(), &values));
                self.inner.step(&inputs, rows)
            }
        }
    }
}

/// Whether images of a class begin in the call.
fn begins(inputs: &[(&str, TensorView<'_>)], class: i64) -> Option<usize> {
    let labels = inputs.iter().find(|(name, _)| *name == "class_labels")?.1.data();
    let TensorSlice::I64(labels) = labels else { return None };
    labels.iter().position(|label| *label == class)
}

/// A service of this process on loopback; it ends with the process.
fn serve(folder: &Utf8Path, rows: usize, caches: Option<CacheForm>, faults: Arc<Faults>) -> Server {
    let limits = SchedulerLimits { rows, ..SchedulerLimits::default() };
    let opened: Utf8PathBuf = folder.to_owned();
    let open = move || Ok(LoadedBundle::owning(Bundle::open(&opened)?, Faulty::engine(caches, &faults))?);
    let model = ServedModel::open(folder, None, Box::new(open), limits).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let service = Service::new(vec![model], None, HttpLimits::default(), address, false).unwrap();
    std::thread::spawn(move || HttpServer::new()?.run(listener, service));
    Server { child: None, address }
}

/// The class whose images the engine does not bear.
const POISON: i64 = 7;

fn ask(class: i64) -> Value {
    json!({"class": class, "seed": 4, "first": class, "trace": true})
}

/// An error of the engine takes one image with it. Those that were under way are drawn again, nothing is told twice, and where
/// the error does not come again nobody notices.
#[test]
fn an_engine_that_fails_in_the_middle_costs_one_image() {
    let temp = Temp::new();
    let once = Arc::new(AtomicBool::new(false));
    let faults: Arc<Faults> = {
        let once = once.clone();
        Arc::new(move |graph, inputs, rows| {
            let now = graph == "decoder_step" && rows.iter().any(|r| r.past > 20);
            let fails = begins(inputs, POISON).is_some() || (now && once.swap(false, Ordering::Relaxed));
            fails.then_some(Fault::Fails)
        })
    };
    let server = serve(&bundle(&temp), 4, None, faults);
    let alone: Vec<Value> = (1..4).map(|class| server.post("/v1/images", &ask(class)).good()).collect();
    let streams = || -> Vec<_> {
        let streamed = |class| {
            let mut ask = ask(class);
            (ask["stream"], ask["tokens"]) = (true.into(), true.into());
            server.begin("/v1/images", &ask)
        };
        (1..4).map(streamed).collect()
    };
    let check = |streams: Vec<std::net::TcpStream>| {
        for (stream, alone) in streams.into_iter().zip(&alone) {
            let events = events(&Answer::read(stream));
            let trace = &alone["images"][0]["trace"];
            let tokens: Vec<&Value> = of(&events, "token", 0).iter().map(|t| &t["token"]).collect();
            assert_eq!(json!(tokens), trace["tokens"]);
            let firsts: Vec<u64> =
                of(&events, "patch", 0).iter().map(|p| p["first"].as_u64().unwrap()).collect();
            assert!(firsts.is_sorted_by(|a, b| a < b), "{firsts:?}");
            assert_eq!(firsts.len() as u64, alone["images"][0]["steps"].as_u64().unwrap());
            assert_eq!(of(&events, "done", 0)[0]["trace"], *trace);
            assert_eq!(events.last().unwrap().0, "end");
        }
    };
    let drawn = server.metric("dpar_tokens_total");
    let under_way = streams();
    server.until("dpar_tokens_total", |n| n > drawn + 20.0);
    let bad = server.post("/v1/images", &ask(POISON)).refused(500);
    assert!(bad.contains("the device is lost"), "{bad}");
    check(under_way);
    assert_eq!(server.metric("dpar_images_failed_total"), 1.0);
    // Once only: it was the moment, not an image.
    once.store(true, Ordering::Relaxed);
    check(streams());
    assert!(!once.load(Ordering::Relaxed));
    assert_eq!(server.metric("dpar_images_failed_total"), 1.0);
    assert_eq!(server.get("/v2/health/ready").status, 200);
}

/// What is no number in one row is no error of the others: no step is made again, and the row's next image is what it is alone.
#[test]
fn a_row_without_numbers_ends_alone_and_leaves_nothing_behind() {
    const SLOT: usize = 4;
    let temp = Temp::new();
    let folder = bundle(&temp);
    for caches in [CacheForm::InPlace, CacheForm::Joined] {
        // The label of the bad image among those that begin, then its row.
        let label: Mutex<Option<usize>> = Mutex::default();
        let victim: Mutex<Option<usize>> = Mutex::default();
        let faults: Arc<Faults> = Arc::new(move |graph, inputs, rows| {
            if let Some(at) = begins(inputs, POISON) {
                *label.lock().unwrap() = Some(at);
            }
            if graph != "global_step" {
                return None;
            }
            let mut victim = victim.lock().unwrap();
            if let Some(at) = label.lock().unwrap().take() {
                *victim = rows.iter().filter(|r| r.past == 0).nth(at).map(|r| r.row);
            }
            let line = rows.iter().position(|r| Some(r.row) == *victim && r.past == SLOT)?;
            *victim = None;
            Some(Fault::NoNumber(line))
        });
        let server = serve(&folder, 3, Some(caches), faults);
        let classes = [1, 2, 3, 4, 5, 6];
        let alone = classes.map(|class| server.post("/v1/images", &ask(class)).good());
        let steps = |graph: &str| {
            let text = server.get("/metrics").text();
            let of = |line: &&str| line.starts_with("dpar_graph_rows_total") && line.contains(graph);
            text.lines().find(of).unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let begun = steps("\"start\"");
        let bad = server.begin("/v1/images", &ask(POISON));
        let others = classes.map(|class| server.begin("/v1/images", &ask(class)));
        let message = Answer::read(bad).refused(500);
        assert!(message.contains("is not a number"), "{message}");
        // Margins of other batches differ by rounding.
        let same = |found: &Value, alone: &Value| {
            let (found, alone) = (&found["images"][0], &alone["images"][0]);
            assert_eq!(found["trace"]["tokens"], alone["trace"]["tokens"], "{caches:?}");
            assert_eq!((&found["png"], &found["steps"]), (&alone["png"], &alone["steps"]), "{caches:?}");
        };
        others.into_iter().zip(&alone).for_each(|(stream, alone)| same(&Answer::read(stream).good(), alone));
        // And when the row is used again.
        for (class, alone) in classes.into_iter().zip(&alone) {
            same(&server.post("/v1/images", &ask(class)).good(), alone);
        }
        assert_eq!(server.metric("dpar_images_failed_total"), 1.0);
        assert_eq!(steps("\"start\"") - begun, 13, "each image begins once");
        assert!(server.metric("dpar_cache_bytes") > 0.0);
    }
}

/// Rows of a step that failed are drawn again one by one: only the one that is the reason fails. Without HTTP.
#[test]
fn one_bad_row_does_not_take_the_others_with_it() {
    let temp = Temp::new();
    let folder = bundle(&temp);
    let options =
        DecodeOptions { cfg_scale: 1.0, cfg_interval: None, sampler: SamplerOptions::default(), seed: 4 };
    let requests: Vec<Request> = (0..6).map(|i| Request { index: i, class: i as i64 }).collect();
    let alone = Bundle::open(&folder).unwrap();
    let alone = on(&alone, "tract").decode(&requests, &options, Batching::from(1), &mut quiet).unwrap();

    let failures = Arc::new(AtomicUsize::new(0));
    let faults: Arc<Faults> = {
        let failures = failures.clone();
        Arc::new(move |_, inputs, _| {
            begins(inputs, POISON)?;
            failures.fetch_add(1, Ordering::Relaxed);
            Some(Fault::Fails)
        })
    };
    let loaded = LoadedBundle::owning(Bundle::open(&folder).unwrap(), Faulty::engine(None, &faults)).unwrap();
    let limits = SchedulerLimits { rows: 4, ..SchedulerLimits::default() };
    let scheduler = Scheduler::start(loaded, limits).unwrap();
    let ask = |request: Request| scheduler.submit(ImageJob::new(vec![request], options.clone())).unwrap();
    let mut running: Vec<_> = requests[..3].iter().map(|r| ask(*r)).collect();
    let bad = ask(Request { index: 9, class: POISON });
    running.extend(requests[3..].iter().map(|r| ask(*r)));
    for (running, alone) in running.into_iter().zip(&alone) {
        let drawn = running.all_blocking().unwrap();
        assert_eq!(drawn[0].stream.tokens, alone.tokens);
        assert_eq!(drawn[0].stream.patch_lengths, alone.patch_lengths);
    }
    let error = bad.all_blocking().unwrap_err();
    assert!(
        matches!(&error, JobError::Run(_)) && error.to_string().contains("the device is lost"),
        "{error}"
    );
    assert!(failures.load(Ordering::Relaxed) >= 1);
    assert!(scheduler.unwell().is_none());
    scheduler.finish();
    assert!(matches!(scheduler.submit(ImageJob::new(requests, options)), Err(JobError::Ended)));
}
