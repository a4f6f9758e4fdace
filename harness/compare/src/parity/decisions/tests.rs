use dpar_export_spec::PatchMode;

use super::*;

fn rule() -> PatchRule {
    PatchRule { mode: PatchMode::Entropy, threshold: Some(2.0), ..PatchRule::per_token(4) }
}

fn replay(lengths: &[usize], entropy: &[f32], logits: &[f32]) -> Replay {
    Replay {
        patch_lengths: vec![lengths.to_vec()],
        entropy: entropy.to_vec(),
        conditional: logits.to_vec(),
        guided: None,
    }
}

fn cdf() -> SamplerOptions {
    SamplerOptions { method: Method::Cdf, ..SamplerOptions::default() }
}

fn sizes(rule: &PatchRule) -> ComparedSizes<'_> {
    let (rounding, sampler) = (Rounding::FP32, cdf());
    ComparedSizes { rule, tokens: 4, vocab: 2, seed: 0, sampler, rounding, cfg_scale: 1.0 }
}

fn compare(a: &Replay, b: &Replay) -> Compared {
    let rule = rule();
    teacher_forced(sizes(&rule), a, b, true).unwrap()
}

const EVEN: [f32; 8] = [0.0, 3.0, 0.0, 3.0, 0.0, 3.0, 0.0, 3.0];

#[test]
fn a_boundary_flip_is_held_against_the_errors_seen_elsewhere() {
    let a = replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.000_001], &EVEN);
    let near = replay(&[1, 1, 2], &[f32::NAN, 2.500_001, 2.5, 1.999_999], &EVEN);
    let compared = compare(&a, &near);
    let flip = &compared.decisions.flips[0];
    assert!((flip.slot, flip.reference, flip.found) == (3, 1, 0) && flip.near_tie, "{flip:?}");
    assert_eq!((compared.decisions.slots, compared.decisions.equal), (3, 0));
    // The same margin where all other entropies agree to the last bit.
    let exact = replay(&[1, 1, 2], &[f32::NAN, 2.5, 2.5, 1.999_999], &EVEN);
    assert!(!compare(&a, &exact).decisions.flips[0].near_tie);
    // Entropies on one side of the threshold: another rule was applied.
    let other = replay(&[1, 1, 2], &[f32::NAN, 2.500_001, 2.5, 2.000_001], &EVEN);
    let flip = compare(&a, &other).decisions.flips.remove(0);
    assert_eq!((flip.margin, flip.near_tie), (None, false));
}

/// As `verify` measures: an entropy of 4.3 may not be off by more than one of 0 may.
#[test]
fn a_slot_is_off_by_the_distance_alone() {
    let lengths = [1, 1, 1, 1];
    let a = replay(&lengths, &[f32::NAN, 4.3, 4.3, 4.3], &EVEN);
    let b = replay(&lengths, &[f32::NAN, 4.3, 4.3005, 4.3], &EVEN);
    let compared = compare(&a, &b);
    assert_eq!(compared.decisions.first_off, [Some(2)]);
    let limit = Rounding::FP32.limit(Quantity::Entropy);
    assert_eq!(compared.entropy.absolute("entropy", limit).status, crate::status::Status::Fail);
    let mut far = EVEN;
    far[1] = 3.0 + 4e-4;
    let compared = compare(&a, &replay(&lengths, &a.entropy, &far));
    assert_eq!(compared.decisions.first_off, [Some(0)]);
}

#[test]
fn an_arg_max_far_from_a_tie_is_a_defect() {
    let a = replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.5], &EVEN);
    let mut swapped = EVEN;
    swapped[4..6].copy_from_slice(&[3.0, 0.0]);
    let b = replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.5], &swapped);
    let compared = compare(&a, &b);
    let flip = compared.decisions.flips.iter().find(|f| f.kind == DecisionKind::ArgMax).unwrap();
    assert_eq!((flip.slot, flip.reference, flip.found, flip.near_tie), (2, 1, 0, false));
    assert_eq!(compared.decisions.first_off, [Some(2)]);
    assert_eq!(compared.observed.logit, Some(0.0));
    let mut near = EVEN;
    near[0] = 1e-6;
    let compared = compare(&a, &replay(&[1, 1, 1, 1], &[f32::NAN, 2.5, 2.5, 2.5], &near));
    assert!(compared.decisions.flips.is_empty() && compared.decisions.first_off == [None]);
    assert_eq!(compared.observed.logit, Some(f64::from(1e-6_f32)));
}

#[test]
fn free_streams_are_compared_up_to_their_first_divergence() {
    let stream = |tokens: &[u32], lengths: &[usize], margin: f32| Stream {
        request: dpar_export_decode::generate::Request { index: 0, class: 0 },
        tokens: tokens.to_vec(),
        patch_lengths: lengths.to_vec(),
        entropy: vec![f32::NAN, 2.5, 2.5, 1.0],
        margin: vec![margin; 4],
    };
    let observed = Observed { entropy: Some(1e-6), logit: None, draw: Some(1e-7) };
    let a = [stream(&[0, 1, 0, 1], &[1, 1, 2], 1e-7)];
    let b = [stream(&[0, 1, 1, 0], &[1, 1, 2], 1e-3)];
    let with = |margin| {
        let gap = &mut |image, slot, tokens| {
            assert_eq!((image, slot, tokens), (0, 2, [0, 1]));
            margin
        };
        free_running(sizes(&rule()), &a, &b, &observed, gap)
    };
    let found = with(Some(1e-7));
    assert_eq!((found.flips.len(), found.slots), (1, 2));
    assert!(found.flips[0].near_tie);
    for margin in [Some(1e-3), None] {
        assert!(!with(margin).flips[0].near_tie);
    }
    let found = free_running(sizes(&rule()), &a, &a, &observed, &mut |_, _, _| None);
    assert_eq!((found.flips.len(), found.equal, found.slots), (0, 1, 4));
}

#[test]
fn a_margin_is_between_the_two_chosen_tokens() {
    // 0 and 1 tie in both; one source chose 2, which is far behind.
    let (a, b) = ([3.0, 3.000_001, 0.0], [3.000_001, 3.0, 0.0]);
    let greedy = SamplerOptions { greedy: true, ..SamplerOptions::default() };
    let gap = |other: &[f32], tokens| draw_gap(&greedy, [&a, other], tokens, (0, 0)).unwrap().unwrap();
    assert!(gap(&b, [1, 0]) < 2e-6);
    assert_eq!(gap(&[3.0, 3.0, 3.5], [1, 2]), f64::from(3.000_001_f32));
}
