//! The loop against a scripted model: which calls it makes, in which order, with what.

use std::sync::{Arc, Mutex};

use dpar_export_spec::{PatchMode, PatchRule};

use super::*;

/// Answers with given entropies and logits, and writes down what it was asked. The image in a row is its class.
struct Scripted {
    /// e_t by image and slot; slot 0 is never asked.
    entropy: Vec<Vec<f32>>,
    /// Image, slot and whether it is guided, by row.
    rows: Vec<(usize, usize, bool)>,
    calls: Arc<Mutex<Vec<String>>>,
}

const VOCAB: usize = 4;
const NULL: i64 = 9;

impl Scripted {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

impl StepModel for Scripted {
    fn vocab(&self) -> usize {
        VOCAB
    }

    fn reset(&mut self, rows: usize, null: Option<i64>) {
        self.rows = vec![(0, 0, false); rows];
        self.note(format!("reset {rows} {null:?}"));
    }

    fn open(&mut self, openings: &[Opening]) -> Result<(), EngineError> {
        let mut said = Vec::new();
        for Opening { row, after } in openings {
            match after {
                After::Class { class, guided } => {
                    self.rows[*row] = (*class as usize, 0, *guided);
                    said.push(format!("{row}:class {class}"));
                }
                After::Patch { first, last } => said.push(format!("{row}:{first}-{last}")),
            }
        }
        if !said.is_empty() {
            self.note(format!("open {}", said.join(", ")));
        }
        Ok(())
    }

    fn push(&mut self, tokens: &[Pushed]) -> Result<Option<Vec<f32>>, EngineError> {
        let said: Vec<String> =
            tokens.iter().map(|p| format!("{}:{} in {}", p.row, p.token, p.patch_start)).collect();
        self.note(format!("push {}", said.join(", ")));
        let entropy = tokens.iter().map(|p| {
            let (image, slot, _) = &mut self.rows[p.row];
            *slot += 1;
            self.entropy[*image][*slot]
        });
        Ok(Some(entropy.collect()))
    }

    /// The best token is the slot number; without the class it is another one.
    fn logits(&mut self, rows: &[usize]) -> Result<SlotLogits, EngineError> {
        let line = |best: usize| (0..VOCAB).map(move |v| if v == best % VOCAB { 1.0 } else { 0.0 });
        let own = rows.iter().flat_map(|row| line(self.rows[*row].1));
        let null = rows.iter().filter(|row| self.rows[**row].2).flat_map(|row| line(self.rows[*row].1 + 1));
        let guided = rows.iter().map(|row| self.rows[*row].2).collect();
        Ok(SlotLogits::new(VOCAB, own.chain(null).collect(), guided))
    }

    fn drop_guidance(&mut self, row: usize) {
        self.rows[row].2 = false;
        self.note(format!("drop guidance of {row} at {}", self.rows[row].1));
    }

    fn calls(&self) -> Vec<GraphCalls> {
        Vec::new()
    }
}

fn rule() -> PatchRule {
    PatchRule {
        mode: PatchMode::EntropyRowBoundary,
        threshold: Some(1.0),
        max_patch_length: Some(2),
        ..PatchRule::per_token(4)
    }
}

fn options(cfg_scale: f32, cfg_interval: Option<usize>) -> DecodeOptions {
    let sampler = SamplerOptions { greedy: true, ..SamplerOptions::default() };
    DecodeOptions { cfg_scale, cfg_interval, sampler, seed: 7 }
}

fn requests(n: u64) -> Vec<Request> {
    (0..n).map(|index| Request { index, class: index as i64 }).collect()
}

/// A decoder of images with these entropies, and what it asks its model.
fn decoder(
    entropy: Vec<Vec<f32>>,
    rows: usize,
    schedule: Schedule,
) -> (Decoder<'static>, Arc<Mutex<Vec<String>>>) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let tokens = entropy[0].len();
    let model = Scripted { entropy, rows: Vec::new(), calls: calls.clone() };
    let images = Images { rule: rule(), tokens, null_class: Some(NULL) };
    (Decoder::new(Box::new(model), images, Batching { rows, schedule }), calls)
}

type Decoded = Result<Vec<Stream>, DecodeError>;

fn decode(
    entropy: Vec<Vec<f32>>,
    options: &DecodeOptions,
    rows: usize,
    schedule: Schedule,
) -> (Decoded, Vec<String>) {
    let n = entropy.len() as u64;
    let (mut decoder, calls) = decoder(entropy, rows, schedule);
    let streams = decoder.run(&requests(n), options, &mut |_| true);
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    (streams, calls)
}

/// Image 0 opens a patch at 2 by its entropy; image 1 at 3 by the length limit; both at 4, a row start.
fn two_images() -> Vec<Vec<f32>> {
    vec![vec![0.0, 0.0, 2.0, 0.0, 0.0, 0.0], vec![0.0; 6]]
}

#[test]
fn in_lockstep_images_close_their_patches_independently() {
    let (streams, calls) = decode(two_images(), &options(1.0, None), 2, Schedule::Lockstep);
    let streams = streams.unwrap();
    assert_eq!(streams[0].patch_lengths, [1, 1, 2, 2]);
    assert_eq!(streams[1].patch_lengths, [1, 2, 1, 2]);
    assert_eq!((streams[0].steps(), streams[1].steps()), (4, 4));
    assert_eq!(streams[0].tokens, [0, 1, 2, 3, 0, 1]);
    assert!(streams[0].entropy[0].is_nan() && streams[0].entropy[2] == 2.0);
    assert_eq!(
        calls,
        [
            "reset 2 Some(9)",
            "open 0:class 0, 1:class 1",
            "push 0:0 in 0, 1:0 in 0",
            "open 0:0-0, 1:0-0",
            "push 0:1 in 1, 1:1 in 1",
            "open 0:1-1",
            "push 0:2 in 2, 1:2 in 1",
            "open 1:1-2",
            "push 0:3 in 2, 1:3 in 3",
            "open 0:2-3, 1:3-3",
            "push 0:0 in 4, 1:0 in 4",
        ]
    );
}

#[test]
fn aligned_by_patches_all_rows_open_one_together() {
    let (streams, calls) = decode(two_images(), &options(1.0, None), 2, Schedule::Patch);
    // As text: NaN is no number that is equal to itself.
    let alone = decode(two_images(), &options(1.0, None), 1, Schedule::Lockstep).0.unwrap();
    assert_eq!(format!("{:?}", streams.unwrap()), format!("{alone:?}"));
    assert_eq!(
        calls,
        [
            "reset 2 Some(9)",
            "open 0:class 0, 1:class 1",
            "push 0:0 in 0, 1:0 in 0",
            "open 0:0-0, 1:0-0",
            "push 0:1 in 1, 1:1 in 1",
            // Row 0 waits for row 1, whose patch goes on.
            "push 1:2 in 1",
            "open 0:1-1, 1:1-2",
            "push 0:2 in 2, 1:3 in 3",
            "push 0:3 in 2",
            "open 0:2-3, 1:3-3",
            "push 0:0 in 4, 1:0 in 4",
        ]
    );
}

#[test]
fn a_row_that_is_free_is_taken_by_the_next_image() {
    // Image 0 has six patches, the others four.
    let mut entropy = vec![vec![2.0; 6]];
    entropy.extend(vec![vec![0.0; 6]; 3]);
    let opens = |schedule| {
        let (streams, calls) = decode(entropy.clone(), &options(1.0, None), 2, schedule);
        let steps: Vec<usize> = streams.unwrap().iter().map(Stream::steps).collect();
        assert_eq!(steps, [6, 4, 4, 4]);
        calls.into_iter().filter(|c| c.starts_with("open")).collect::<Vec<_>>()
    };
    assert_eq!(opens(Schedule::Patch).len(), 6 + 4);
    let refilled = opens(Schedule::Continuous);
    assert_eq!(refilled[4], "open 0:3-3, 1:class 2");
    assert_eq!(refilled[6], "open 0:class 3, 1:1-2");
    // Of 18 patches in two rows.
    assert_eq!(refilled.len(), 10);
}

#[test]
fn streams_do_not_depend_on_schedule_rows_or_order() {
    let mut seed = 5_u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) as f32 / 32_768.0
    };
    let entropy: Vec<Vec<f32>> = (0..7).map(|_| (0..9).map(|_| next()).collect()).collect();
    for options in [options(1.0, None), options(2.0, Some(3))] {
        let alone = decode(entropy.clone(), &options, 1, Schedule::Lockstep).0.unwrap();
        for schedule in Schedule::ALL {
            for rows in [2, 3, 7, 9] {
                let (mut decoder, _) = decoder(entropy.clone(), rows, schedule);
                let mut order = requests(7);
                order.rotate_left(rows % 7);
                order.swap(0, 5);
                let mut streams = decoder.run(&order, &options, &mut |_| true).unwrap();
                assert_eq!(streams.iter().map(|s| s.request).collect::<Vec<_>>(), order);
                streams.sort_by_key(|s| s.request.index);
                assert_eq!(format!("{streams:?}"), format!("{alone:?}"), "{schedule:?} {rows}");
            }
        }
    }
}

/// With one row where none is asked for.
#[test]
fn a_request_joins_at_the_next_step_or_at_the_next_patches() {
    for (schedule, rows, steps) in [
        (Schedule::Rolling, 2, 8),
        (Schedule::Continuous, 2, 9),
        (Schedule::Rolling, 0, 12),
        (Schedule::Continuous, 0, 12),
    ] {
        let (mut decoder, calls) = decoder(vec![vec![0.0; 6]; 2], rows, schedule);
        let [first, second] = requests(2)[..] else { panic!("two") };
        decoder.submit(first, &options(1.0, None)).unwrap();
        decoder.step().unwrap();
        decoder.step().unwrap();
        // The patch of tokens 1 and 2 stays open.
        decoder.submit(second, &options(1.0, None)).unwrap();
        let mut taken = 2;
        while !decoder.is_idle() && taken < 99 {
            decoder.step().unwrap();
            taken += 1;
        }
        assert_eq!(taken, steps, "{schedule:?}, {rows} rows");
        if let (Schedule::Rolling, 2) = (schedule, rows) {
            let all = calls.lock().unwrap().clone();
            let joined = ["push 0:1 in 1", "open 1:class 1", "push 0:2 in 1, 1:0 in 0", "open 0:1-2, 1:0-0"];
            assert_eq!(all[4..8], joined);
        }
    }
}

#[test]
fn requests_come_and_go_while_others_run() {
    let (mut decoder, _) = decoder(vec![vec![0.0; 6]; 4], 2, Schedule::Continuous);
    let all = requests(4);
    let first: Vec<Ticket> =
        all[..3].iter().map(|r| decoder.submit(*r, &options(1.0, None)).unwrap()).collect();
    let mut events = decoder.step().unwrap();
    assert_eq!(events.len(), 2);
    assert!(matches!(events[1], Event::Token { ticket: Ticket(1), slot: 0, token: 0, .. }), "{events:?}");
    // One that runs and one that waits; the row goes to the next one.
    assert!(decoder.cancel(first[0]) && decoder.cancel(first[2]));
    assert!(!decoder.cancel(first[0]) && !decoder.is_idle());
    let guided = decoder.submit(all[3], &options(2.0, None)).unwrap();
    while !decoder.is_idle() {
        events.extend(decoder.step().unwrap());
    }
    assert!(decoder.step().unwrap().is_empty());
    let closed: Vec<(usize, usize)> = events
        .iter()
        .filter_map(|e| match e {
            Event::PatchClosed { ticket, first, last } if *ticket == guided => Some((*first, *last)),
            _ => None,
        })
        .collect();
    assert_eq!(closed, [(0, 0), (1, 2), (3, 3), (4, 5)]);
    let done: Vec<(Ticket, u64)> = events
        .iter()
        .filter_map(|e| match e {
            Event::Done { ticket, stream } => Some((*ticket, stream.request.index)),
            _ => None,
        })
        .collect();
    assert_eq!(done, [(first[1], 1), (guided, 3)]);
}

#[test]
fn an_image_that_cannot_go_on_ends_alone() {
    let mut entropy = vec![vec![0.0; 6]; 4];
    entropy[1][3] = f32::NAN;
    for schedule in Schedule::ALL {
        let (mut decoder, _) = decoder(entropy.clone(), 2, schedule);
        for request in requests(4) {
            decoder.submit(request, &options(1.0, None)).unwrap();
        }
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        while !decoder.is_idle() {
            for event in decoder.step().unwrap() {
                match event {
                    Event::Done { ticket, stream } => done.push((ticket.0, stream.tokens.len())),
                    Event::Failed { ticket, error } => failed.push((ticket.0, error.to_string())),
                    Event::Token { .. } | Event::PatchClosed { .. } => {}
                }
            }
        }
        assert_eq!(done, [(0, 6), (2, 6), (3, 6)], "{schedule:?}");
        assert_eq!(failed, [(1, "image 1, slot 3: the entropy is NaN".to_owned())], "{schedule:?}");
    }
}

#[test]
fn guidance_runs_above_one_and_stops_after_the_interval() {
    let entropy = vec![vec![0.0; 5]];
    let (streams, _) = decode(entropy.clone(), &options(3.0, None), 1, Schedule::Lockstep);
    // u + 3 (c - u) prefers the conditional token.
    assert_eq!(streams.unwrap()[0].tokens, [0, 1, 2, 3, 0]);
    // Decode index i is slot i + 1: with interval 1 the slots 0, 1 and 2 are guided.
    for schedule in Schedule::ALL {
        let (_, calls) = decode(entropy.clone(), &options(3.0, Some(1)), 1, schedule);
        let dropped: Vec<&String> = calls.iter().filter(|c| c.starts_with("drop")).collect();
        assert_eq!(dropped, ["drop guidance of 0 at 3"]);
    }
    let (mut decoder, _) = decoder(entropy, 1, Schedule::Lockstep);
    decoder.images.null_class = None;
    let refused = decoder.submit(requests(1)[0], &options(3.0, None));
    assert!(matches!(refused, Err(DecodeError::NoNullClass)));
}

#[test]
fn options_that_the_loop_cannot_run_or_that_have_no_effect_are_refused() {
    let refused = |options: &DecodeOptions| {
        let (streams, _) = decode(vec![vec![0.0]], options, 1, Schedule::Lockstep);
        let Err(DecodeError::Sample { source, .. }) = streams else { panic!("{options:?} runs") };
        source
    };
    for scale in [-2.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(refused(&options(scale, None)), SampleError::Guidance(_)), "{scale}");
    }
    assert_eq!(refused(&options(1.0, Some(1))), SampleError::Interval);
    let with = |sampler| refused(&DecodeOptions { sampler, ..options(2.0, Some(1)) });
    assert_eq!(
        with(SamplerOptions { temperature: -1.0, ..Default::default() }),
        SampleError::Temperature(-1.0)
    );
    assert_eq!(with(SamplerOptions { top_p: -0.5, ..Default::default() }), SampleError::TopP(-0.5));
    for scale in [0.0, 0.5, 1.0] {
        assert_eq!(options(scale, None).validate(), Ok(()));
    }
}

#[test]
fn an_entropy_that_is_no_number_is_an_error_and_not_a_missing_boundary() {
    let entropy = vec![vec![0.0, f32::NAN, 0.0]];
    let (streams, _) = decode(entropy, &options(1.0, None), 1, Schedule::Lockstep);
    assert!(matches!(streams, Err(DecodeError::Entropy { image: 0, slot: 1, .. })), "{streams:?}");
}

#[test]
fn the_caller_can_stop_after_any_step() {
    let (mut decoder, _) = decoder(vec![vec![0.0; 4]; 2], 2, Schedule::Lockstep);
    let mut seen = 0;
    let result = decoder.run(&requests(2), &options(1.0, None), &mut |tokens| {
        seen = tokens;
        tokens < 4
    });
    assert!(matches!(result, Err(DecodeError::Interrupted)) && seen == 4);
}
