//! The loop against a scripted model: which calls it makes, in which order, with what.

use std::cell::RefCell;
use std::rc::Rc;

use dpar_export_spec::PatchMode;

use super::*;

/// Answers with given entropies and logits, and writes down what it was asked.
struct Scripted {
    /// e_t by slot and image; slot 0 is never asked.
    entropy: Vec<Vec<f32>>,
    guided: bool,
    images: usize,
    slot: usize,
    calls: Rc<RefCell<Vec<String>>>,
}

const VOCAB: usize = 4;

impl StepModel for Scripted {
    fn vocab(&self) -> usize {
        VOCAB
    }

    fn start(&mut self, labels: &[i64], null: Option<i64>) -> Result<(), EngineError> {
        (self.images, self.guided, self.slot) = (labels.len(), null.is_some(), 0);
        self.calls.borrow_mut().push(format!("start {labels:?} {null:?}"));
        Ok(())
    }

    fn push(&mut self, tokens: &[u32], starts: &[usize]) -> Result<Option<Vec<f32>>, EngineError> {
        self.slot += 1;
        self.calls.borrow_mut().push(format!("push {tokens:?} {starts:?}"));
        Ok(Some(self.entropy[self.slot].clone()))
    }

    fn close(&mut self, patches: &[ClosedPatch]) -> Result<(), EngineError> {
        for p in patches {
            self.calls.borrow_mut().push(format!("close {}:{}-{}", p.row, p.first, p.last));
        }
        Ok(())
    }

    /// The best token is the slot number; without the class it is another one.
    fn logits(&mut self) -> Result<SlotLogits, EngineError> {
        let line = |best: usize| (0..VOCAB).map(move |v| if v == best % VOCAB { 1.0 } else { 0.0 });
        let logits = |best: usize| (0..self.images).flat_map(|_| line(best)).collect();
        Ok(SlotLogits {
            conditional: logits(self.slot),
            unconditional: self.guided.then(|| logits(self.slot + 1)),
        })
    }

    fn drop_guidance(&mut self) -> Result<(), EngineError> {
        self.guided = false;
        self.calls.borrow_mut().push(format!("drop guidance at {}", self.slot));
        Ok(())
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

type Decoded = Result<Vec<Stream>, DecodeError>;

fn decode(entropy: Vec<Vec<f32>>, options: &DecodeOptions, n: u64) -> (Decoded, Vec<String>) {
    let calls = Rc::new(RefCell::new(Vec::new()));
    let tokens = entropy.len();
    let mut model = Scripted { entropy, guided: false, images: 0, slot: 0, calls: calls.clone() };
    let streams = decode_batch(&mut model, &rule(), tokens, Some(9), options, &requests(n), &mut |_| true);
    (streams, calls.take())
}

#[test]
fn images_of_a_batch_close_their_patches_independently() {
    let low = vec![0.0, 0.0];
    let entropy = vec![vec![], low.clone(), vec![2.0, 0.0], low.clone(), low.clone(), low];
    let (streams, calls) = decode(entropy, &options(1.0, None), 2);
    let streams = streams.unwrap();
    // Image 0 opens a patch at 2 by its entropy; image 1 at 3 by the length limit; both at 4, a row start.
    assert_eq!(streams[0].patch_lengths, [1, 1, 2, 2]);
    assert_eq!(streams[1].patch_lengths, [1, 2, 1, 2]);
    assert_eq!((streams[0].steps(), streams[1].steps()), (4, 4));
    assert_eq!(streams[0].tokens, [0, 1, 2, 3, 0, 1]);
    assert!(streams[0].entropy[0].is_nan() && streams[0].entropy[2] == 2.0);
    assert_eq!(
        calls,
        [
            "start [0, 1] None",
            "push [0, 0] [0, 0]",
            "close 0:0-0",
            "close 1:0-0",
            "push [1, 1] [1, 1]",
            "close 0:1-1",
            "push [2, 2] [2, 1]",
            "close 1:1-2",
            "push [3, 3] [2, 3]",
            "close 0:2-3",
            "close 1:3-3",
            "push [0, 0] [4, 4]",
        ]
    );
}

#[test]
fn guidance_runs_above_one_and_stops_after_the_interval() {
    let entropy = vec![vec![0.0]; 5];
    let (streams, calls) = decode(entropy.clone(), &options(3.0, None), 1);
    assert_eq!(calls[0], "start [0] Some(9)");
    // u + 3 (c - u) prefers the conditional token.
    assert_eq!(streams.unwrap()[0].tokens, [0, 1, 2, 3, 0]);
    assert!(!calls.iter().any(|c| c.starts_with("drop")));
    // Decode index i is slot i + 1: with interval 1 the slots 0, 1 and 2 are guided.
    let (_, calls) = decode(entropy.clone(), &options(3.0, Some(1)), 1);
    assert!(calls.contains(&"drop guidance at 3".to_owned()), "{calls:?}");
    let (_, calls) = decode(entropy, &options(1.0, Some(1)), 1);
    assert!(calls[0].ends_with("None") && !calls.iter().any(|c| c.starts_with("drop")));
}

#[test]
fn an_entropy_that_is_no_number_is_an_error_and_not_a_missing_boundary() {
    let (streams, _) = decode(vec![vec![], vec![f32::NAN], vec![0.0]], &options(1.0, None), 1);
    assert!(matches!(streams, Err(DecodeError::Entropy { image: 0, slot: 1, .. })), "{streams:?}");
}

#[test]
fn the_caller_can_stop_after_any_slot() {
    let calls = Rc::new(RefCell::new(Vec::new()));
    let mut model = Scripted { entropy: vec![vec![0.0]; 4], guided: false, images: 0, slot: 0, calls };
    let mut seen = 0;
    let result =
        decode_batch(&mut model, &rule(), 4, Some(9), &options(1.0, None), &requests(1), &mut |slot| {
            seen = slot;
            slot < 2
        });
    assert!(matches!(result, Err(DecodeError::Interrupted)) && seen == 2);
}
