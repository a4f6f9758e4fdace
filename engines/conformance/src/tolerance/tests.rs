use super::*;
use ArithmeticKind::{AsGraph, NarrowSums, Wider};
use Precision::{Bf16, Bf16Autocast, Bf16AutocastExplicit, Fp16, Fp16Autocast, Fp32};
use Quantity as Q;

fn at(
    reference: impl Into<Recorded>,
    found: Precision,
    kind: ArithmeticKind,
    quantity: Quantity,
) -> Option<f64> {
    Rounding::between(reference, found, kind).limit(quantity).finite()
}

#[test]
fn a_coarser_type_has_wider_limits_and_its_own_reference_narrower_ones() {
    assert_eq!(Rounding::between(Fp32, Fp32, AsGraph), Rounding::FP32);
    assert_eq!(Rounding::between(Fp32, Fp32, Wider), Rounding::FP32);
    for (reference, found, kind, limit) in [
        (Fp32, Fp32, AsGraph, 2e-4),
        (Fp32, Fp16, AsGraph, 5e-2),
        (Fp16, Fp32, AsGraph, 5e-2),
        (Fp16, Fp16, AsGraph, 2.5e-2),
        (Fp16, Fp16, NarrowSums, 2.5e-2),
        (Fp16, Fp16, Wider, 5e-2),
        (Fp32, Bf16, AsGraph, 5e-1),
        (Fp16, Bf16, AsGraph, 5e-1),
        (Bf16, Bf16, AsGraph, 2e-1),
        (Fp32, Bf16Autocast, AsGraph, 3e-1),
        (Fp16Autocast, Fp16Autocast, AsGraph, 2.5e-2),
    ] {
        assert_eq!(at(reference, found, kind, Q::Logits), Some(limit), "{reference} {found} {kind:?}");
    }
    let pixels = [NarrowSums, Wider].map(|kind| at(Fp32, Fp16, kind, Q::Pixels));
    assert_eq!(pixels, [Some(35.0), Some(5.0)]);
    let picture = |kind| Rounding::between(Fp32, Fp16, kind).limit(Q::Picture).value();
    assert_eq!((picture(NarrowSums), picture(Wider)), (35.0 / 127.5, 5.0 / 127.5));
    assert_eq!(Rounding::engines(Bf16Autocast).limit(Q::Picture).value(), 1e-4);
}

#[test]
fn the_form_of_a_graph_changes_no_limit_and_a_gpu_widens_the_mean() {
    let typed = Rounding::between(Bf16Autocast, Bf16Autocast, AsGraph);
    assert_eq!(typed.limit(Q::EntropyMean).value(), 1.8e-3);
    assert_eq!(Rounding::between(Bf16Autocast, Bf16AutocastExplicit, AsGraph), typed);
    let apart = Rounding::between(Bf16Autocast, Fp32, AsGraph);
    assert_eq!(Rounding::between(Fp32, Bf16AutocastExplicit, AsGraph), apart);
    let of = |quantity| apart.limit(quantity).finite();
    assert_eq!([Q::EntropyMean, Q::Pixels, Q::CodeShare].map(of), [None, Some(1.0), Some(0.0)]);
    assert!(typed.limit(Q::Boundary) < apart.limit(Q::Boundary));
    let gpu = Recorded { precision: Bf16Autocast, on_gpu: true };
    let on_gpu = [Q::EntropyMean, Q::LogitsMean, Q::Boundary, Q::TieShare];
    let on_gpu = on_gpu.map(|quantity| at(gpu, Bf16Autocast, AsGraph, quantity));
    assert_eq!(on_gpu, [Some(4.5e-3), None, Some(1.25e-1), Some(3e-2)]);
    // A plain half type rounds more than autocast does.
    assert_eq!(at(Bf16, Bf16AutocastExplicit, AsGraph, Q::Logits), Some(5e-1));
    assert_eq!(at(Fp16, Bf16Autocast, AsGraph, Q::Logits), Some(5e-1));
    assert_eq!(at(Fp32, Fp16Autocast, NarrowSums, Q::Pixels), Some(1.0));
}

#[test]
fn a_float_component_beside_a_quantized_one_is_held_as_a_float_one() {
    use WeightBits::{Int4, Int8};
    use dpar_export_spec::ComponentKind::{Dpar, Entropy, Llamagen};
    let of = |weights: &[_]| {
        Rounding::between(
            Fp32,
            Numbers::new(Fp32, weights.iter().copied()),
            ArithmeticKind::NarrowActivations,
        )
    };
    let (entropies, logits) =
        ([Q::Entropy, Q::EntropyMean, Q::Boundary, Q::BoundaryShare], [Q::Logits, Q::ArgMax, Q::Draw]);
    let same = |a: Rounding, b: Rounding, of: &[Quantity]| of.iter().all(|q| a.limit(*q) == b.limit(*q));
    let (both, dpar, entropy) =
        (of(&[(Dpar, Int4), (Entropy, Int8)]), of(&[(Dpar, Int4)]), of(&[(Entropy, Int8)]));
    assert!(same(dpar, Rounding::FP32, &entropies) && same(dpar, both, &logits));
    assert!(same(entropy, Rounding::FP32, &logits) && same(entropy, both, &entropies));
    assert!(same(dpar, of(&[(Llamagen, Int4)]), &logits));
    // What hangs on both has the coarser ones.
    assert!(same(both, dpar, &[Q::TieShare, Q::Steps, Q::Output, Q::Rows]));
    assert!(entropy.limit(Q::Steps) > Rounding::FP32.limit(Q::Steps));
}

#[test]
fn every_component_is_held_by_its_own_precision() {
    use dpar_export_spec::{
        ComponentKind::{Entropy, Vq},
        Precisions,
    };
    let of = |main, own: &[_]| Rounding::between(Fp32, Precisions::new(main, own.iter().copied()), AsGraph);
    let (mixed, half) = (of(Fp16, &[(Entropy, Fp32), (Vq, Fp32)]), of(Fp16, &[]));
    let same = |a: Rounding, b: Rounding, of: &[Quantity]| of.iter().all(|q| a.limit(*q) == b.limit(*q));
    let exact = [Q::Entropy, Q::EntropyMean, Q::Boundary, Q::Pixels, Q::CodeShare, Q::Picture];
    assert!(same(mixed, Rounding::FP32, &exact));
    assert!(same(mixed, half, &[Q::Logits, Q::ArgMax, Q::Draw, Q::TieShare, Q::Steps, Q::Output]));
    let vq = of(Fp32, &[(Vq, Fp16)]);
    assert!(same(vq, half, &[Q::Pixels, Q::CodeShare, Q::Picture]));
    assert!(same(vq, Rounding::FP32, &[Q::Entropy, Q::Logits, Q::TieShare, Q::Steps]));
    // One engine with every component in its own type is not further from another than the coarsest.
    let engines = Rounding::engines(Precisions::new(Fp32, [(Entropy, Bf16)]));
    assert!(same(engines, Rounding::engines(Bf16), &[Q::Entropy, Q::Steps]));
    assert!(same(engines, Rounding::FP32, &[Q::Logits, Q::Pixels]));
}

#[test]
fn near_ties_are_counted_per_decision() {
    let fp16 = Rounding::between(Fp32, Fp16, AsGraph);
    assert_eq!([1, 50, 51, 576].map(|n| fp16.ties(n)), [1, 1, 2, 12].map(Some));
    let (sums, exact) = (fp16.of_running_sums(), Rounding::FP32.of_running_sums());
    assert_eq!([1, 50, 51, 576].map(|n| sums.ties(n)), [1, 3, 3, 32].map(Some));
    assert_eq!((sums.limit(Q::Draw), exact.ties(1)), (fp16.limit(Q::Draw), None));
    let share = |reference: Precision, quantity| at(reference, Bf16Autocast, AsGraph, quantity);
    let shares = [Bf16Autocast, Fp32].map(|r| [Q::TieShare, Q::RunningSumTieShare].map(|q| share(r, q)));
    assert_eq!(shares, [[Some(2e-2), Some(7.5e-2)], [Some(3e-2), Some(3e-1)]]);
    let apart = Rounding::between(Bf16Autocast, Fp32, AsGraph);
    assert_eq!((apart.boundaries_moved(1000), fp16.boundaries_moved(1000)), (Some(3.0), None));
    assert_eq!((Rounding::FP32.ties(1), fp16.codes(100), Rounding::FP32.codes(100)), (None, 4, 0));
}

#[test]
fn guidance_amplifies_an_error_and_widens_near_ties_beyond_two() {
    assert_eq!([0.5, 1.0, 2.0, 40.0].map(guidance_gain), [1.0, 1.0, 3.0, 79.0]);
    assert_eq!([0.5, 2.0, 3.5].map(guidance_width), [1.0, 1.0, 2.0]);
    let fp16 = Rounding::engines(Fp16);
    let [logits, entropy] = [Q::Logits, Q::Entropy].map(|quantity| fp16.limit(quantity));
    // What a correct fp16 bundle needs.
    assert!(logits.scaled(guidance_gain(2.0)).value() > 8.6e-2 && entropy.value() > 4.9e-3);
}

#[test]
fn a_near_tie_is_within_the_table_and_within_what_was_seen() {
    let width = Rounding::FP32.limit(Q::Boundary);
    let seen = [None, Some(1.0), Some(1e-6), Some(0.0)].map(|seen| width.seen(seen).value());
    assert_eq!(seen, [2e-5, 2e-5, 4e-6, 0.0]);
}
