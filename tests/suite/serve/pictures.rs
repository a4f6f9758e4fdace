//! Pixels are made beside the loop: nobody else waits for them.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use camino::Utf8Path;
use dpar_export::bundle::Bundle;
use dpar_export::generate::sampler::SamplerOptions;
use dpar_export::generate::{DecodeOptions, Request};
use dpar_export::loaded::LoadedBundle;
use dpar_export::serve::{ImageJob, JobError, JobEvent, Previews, RunningJob, Scheduler, SchedulerLimits};

use super::broken::{Fault, Faults, Faulty};
use super::{bundle, eventually};
use crate::common::{Temp, on};

/// Tokens of an image of the bundle.
const TOKENS: u64 = 64;

/// Makes no pixels until it is told to.
#[derive(Default)]
struct PictureGate {
    shut: AtomicBool,
    /// Pictures that were begun.
    begun: AtomicUsize,
    /// Whether the engine fails then.
    broken: AtomicBool,
}

impl PictureGate {
    fn faults(self: &Arc<Self>) -> Arc<Faults> {
        let gate = self.clone();
        Arc::new(move |graph, _, _| {
            if graph != "vq_decode" {
                return None;
            }
            gate.begun.fetch_add(1, Ordering::SeqCst);
            eventually("the gate", || !gate.shut.load(Ordering::SeqCst));
            gate.broken.swap(false, Ordering::SeqCst).then_some(Fault::Fails)
        })
    }

    fn shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::SeqCst);
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }
}

fn scheduler(folder: &Utf8Path, rows: usize, gate: &Arc<PictureGate>) -> Scheduler {
    let bundle = Bundle::open(folder).unwrap();
    let loaded = LoadedBundle::owning(bundle, Faulty::engine(None, &gate.faults())).unwrap();
    Scheduler::start(loaded, SchedulerLimits { rows, ..SchedulerLimits::default() }).unwrap()
}

fn job(class: i64) -> ImageJob {
    let sampler = SamplerOptions::default();
    let options = DecodeOptions { cfg_scale: 1.0, cfg_interval: None, sampler, seed: 4 };
    ImageJob::new(vec![Request { index: class as u64, class }], options)
}

/// Pixels of a job's one image, which are those of its tokens alone.
fn pixels(folder: &Utf8Path, running: RunningJob) {
    let drawn = running.all_blocking().unwrap().remove(0);
    let bundle = Bundle::open(folder).unwrap();
    let ids: Vec<i64> = drawn.stream.tokens.iter().map(|t| i64::from(*t)).collect();
    let image = on(&bundle, "tract").images(&ids, 1, &mut |_, _| true).unwrap();
    let size = bundle.system().image_size;
    assert_eq!(drawn.pixels.unwrap(), dpar_export::picture::to_u8_nhwc(&image, 1, size, size));
}

/// While a picture takes its time, rows go on, up to a bound; who went away is not drawn; what was asked for ends with its own.
#[test]
fn rows_go_on_while_pixels_are_made() {
    let temp = Temp::new();
    let folder = bundle(&temp);
    let gate = Arc::new(PictureGate::default());
    let scheduler = scheduler(&folder, 1, &gate);
    gate.shut(true);
    let ask = |class| scheduler.submit(job(class)).unwrap();
    let first = ask(1);
    let tokens = scheduler.submit(ImageJob { pixels: false, ..job(2) }).unwrap();
    // Its row is the one of the first.
    assert_eq!(tokens.all_blocking().unwrap()[0].pixels, None);
    assert_eq!(gate.begun(), 1);

    let (second, third, fourth) = (ask(3), ask(4), ask(5));
    let drawn = || scheduler.counts().tokens;
    // One is at work, one waits, one is complete and finds no room: the fourth does not begin.
    eventually("three images", || drawn() == 4 * TOKENS);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((drawn(), gate.begun(), scheduler.counts().done), (4 * TOKENS, 1, 1));

    drop(second);
    gate.shut(false);
    for running in [first, third, fourth] {
        pixels(&folder, running);
    }
    let counts = scheduler.counts();
    assert_eq!((gate.begun(), counts.done, counts.dropped, counts.failed), (3, 4, 1, 0));
    let made = counts.graphs.iter().find(|g| g.graph.as_str() == "vq_decode").unwrap();
    assert_eq!((made.calls, made.rows), (3, 3));

    // What was asked for is still done; whoever gives up gives up that too.
    gate.shut(true);
    let (last, lost) = (ask(6), ask(7));
    eventually("two images", || drawn() == 7 * TOKENS && gate.begun() == 4);
    scheduler.abort();
    gate.shut(false);
    pixels(&folder, last);
    assert!(matches!(lost.all_blocking(), Err(JobError::Ended)));
    scheduler.finish();
    assert!(scheduler.has_ended());
}

/// An engine that cannot make the pixels of one image costs that image.
#[test]
fn an_error_of_pixels_is_one_images() {
    let temp = Temp::new();
    let folder = bundle(&temp);
    let gate = Arc::new(PictureGate::default());
    let scheduler = scheduler(&folder, 2, &gate);
    gate.broken.store(true, Ordering::SeqCst);
    let error = scheduler.submit(job(1)).unwrap().all_blocking().unwrap_err();
    assert!(matches!(&error, JobError::Run(_)) && error.to_string().contains("lost"), "{error}");
    pixels(&folder, scheduler.submit(job(1)).unwrap());
    let counts = scheduler.counts();
    assert_eq!((counts.done, counts.failed), (1, 1));
    assert!(scheduler.unwell().is_none());
    scheduler.finish();
}

/// Previews come in their order and before the image, also where its own pixels are not wanted; patches are told where they are asked for.
#[test]
fn previews_come_before_the_image() {
    let temp = Temp::new();
    let folder = bundle(&temp);
    let gate = Arc::new(PictureGate::default());
    let scheduler = scheduler(&folder, 1, &gate);
    let number = |n| NonZeroUsize::new(n).unwrap();
    let (every, two) = (Previews::EveryPatches(number(4)), Previews::Number(number(2)));
    for (pixels, patches, preview) in [(true, true, every), (false, false, every), (true, false, two)] {
        let asked = ImageJob { pixels, patches, preview: Some(preview), ..job(3) };
        let mut running = scheduler.submit(asked).unwrap();
        let (mut shown, mut told, mut done) = (vec![0], 0, None);
        while let Some(event) = running.next_blocking() {
            match event.unwrap() {
                JobEvent::Preview { tokens, .. } => shown.push(tokens),
                JobEvent::Patch { .. } => told += 1,
                JobEvent::Done { drawn, .. } => done = Some(drawn),
                JobEvent::Token { .. } => panic!("tokens were not asked for"),
            }
            assert!(done.is_none() || running.next_blocking().is_none());
        }
        let done = done.unwrap();
        assert!(shown.len() > 1 && shown.is_sorted_by(|a, b| a < b), "{shown:?}");
        if preview == two {
            // The first when a third is drawn, and not twice as many pictures as are wanted.
            assert!(shown.len() <= 3 && shown[1] * 3 >= TOKENS as usize, "{shown:?}");
        }
        assert_eq!(told, if patches { done.stream.steps() } else { 0 });
        assert_eq!(done.pixels.is_some(), pixels);
    }
}
