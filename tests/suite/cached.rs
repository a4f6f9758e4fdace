//! Cached decoding equals recomputing from scratch: logits of every slot against `score` on every prefix.

use dpar_export::arrays::ArrayFile;
use dpar_export::bundle::Bundle;
use dpar_export::generate::sampler::SamplerOptions;
use dpar_export::generate::{After, DecodeOptions, Opening, Pushed, Request, TeacherForced};
use dpar_export::loaded::RunError;
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::GraphName;

use crate::common::{ENGINES, Temp, export, llamagen, on, quiet};

/// Two evaluations of one fp32 model in other orders of summation, logits of magnitude 10: the same bound that
/// holds against PyTorch would hide a wrong cache behind nothing, but a tighter one is met.
const CACHED_ABS: f32 = 5e-5;

/// Walks tokens through the caches and compares each slot's logits with those of the prefix alone.
fn check(bundle: &Bundle, golden: &str, engine: &str) {
    let system = bundle.system();
    let (t, vocab, rule) = (system.tokens(), system.vocab, &system.patch_rule);
    let file = ArrayFile::open(crate::common::fixture(golden).join("golden.safetensors")).unwrap();
    let ids: Vec<i64> = file.i64("tokens", &[None, Some(t)]).unwrap().iter().copied().take(3 * t).collect();
    let labels: Vec<i64> = file.i64("class_labels", &[None]).unwrap().iter().copied().take(3).collect();
    let n = labels.len();
    let runtime = on(bundle, engine);
    let mut prepare = |name: GraphName| runtime.prepare_cached(name);
    let mut teacher = TeacherForced::prepare::<RunError>(system, &mut prepare).unwrap();
    let mut model = runtime.model().unwrap();
    model.reset(n, None);
    let mut lengths: Vec<Vec<usize>> = vec![Vec::new(); n];
    let mut last = vec![f32::NAN; n];
    let mut worst = 0.0_f32;
    for slot in 0..t {
        let mut openings = Vec::new();
        let mut entropy = None;
        if slot > 0 {
            let pushed = |row: usize| Pushed {
                row,
                token: ids[row * t + slot - 1] as u32,
                patch_start: slot - lengths[row].last().unwrap(),
            };
            entropy = model.push(&(0..n).map(pushed).collect::<Vec<_>>()).unwrap();
        }
        for (row, lengths) in lengths.iter_mut().enumerate() {
            let open = lengths.last().copied().unwrap_or(0);
            let e = entropy.as_ref().map_or(f32::NAN, |e| e[row]);
            if rule.opens(slot, open, e, last[row]) {
                let after = match slot {
                    0 => After::Class { class: labels[row], guided: false },
                    _ => After::Patch { first: slot - open, last: slot - 1 },
                };
                openings.push(Opening { row, after });
                lengths.push(1);
            } else {
                *lengths.last_mut().unwrap() += 1;
            }
            last[row] = e;
        }
        model.open(&openings).unwrap();
        let cached = model.logits(&(0..n).collect::<Vec<_>>()).unwrap();

        // From scratch: the prefix x_<slot and one token that its slot does not see, patches from the prefix's own entropies.
        let len = slot + 1;
        let prefix: Vec<i64> = (0..n)
            .flat_map(|i| (0..len).map(move |k| (i, k)))
            .map(|(i, k)| if k < slot { ids[i * t + k] } else { 0 })
            .collect();
        let entropy = teacher.entropy(&prefix, len).unwrap();
        let scratch_lengths = TeacherForced::patch_lengths(rule, entropy.as_deref(), n, len);
        for (cached, scratch) in lengths.iter().zip(&scratch_lengths) {
            let opened = |lengths: &[usize]| {
                lengths
                    .iter()
                    .scan(0, |at, l| Some(std::mem::replace(at, *at + l)))
                    .take_while(|s| *s <= slot)
                    .count()
            };
            assert_eq!(opened(cached), opened(scratch), "{golden} {engine} slot {slot}");
        }
        let scratch = teacher.logits(&prefix, len, &labels, &scratch_lengths).unwrap();
        for row in 0..n {
            let a = cached.conditional(row);
            let b = &scratch[(row * len + slot) * vocab..][..vocab];
            let d = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(d <= CACHED_ABS, "{golden} {engine} slot {slot} image {row}: {d}");
            worst = worst.max(d);
        }
    }
    assert!(worst > 0.0, "the two ways are not the same code");
}

#[test]
fn dpar_slot_by_slot_equals_every_prefix() {
    let temp = Temp::new();
    let bundle = export("dpar-small/dpar", &LoadOptions::default(), &temp.path("b"));
    for engine in ENGINES {
        check(&bundle, "dpar-small", engine);
    }
}

#[test]
fn a_variant_with_every_switch_on() {
    let temp = Temp::new();
    let bundle = export("variants/combined/dpar", &LoadOptions::default(), &temp.path("b"));
    for engine in ENGINES {
        check(&bundle, "variants/combined", engine);
    }
}

#[test]
fn llamagen_slot_by_slot_equals_every_prefix() {
    let temp = Temp::new();
    let (file, options) = llamagen("llamagen-small");
    let bundle = export(file, &options, &temp.path("b"));
    for engine in ENGINES {
        check(&bundle, "llamagen-small", engine);
    }
}

/// With `cfg_interval` i, slots 0..=i + 1 are guided and later ones conditional only: greedy tokens are the arg-max of
/// teacher-forced logits mixed accordingly.
#[test]
fn guidance_ends_after_the_interval_on_a_real_model() {
    const INTERVAL: usize = 20;
    const SCALE: f32 = 3.0;
    let temp = Temp::new();
    let bundle = export("dpar-small/dpar", &LoadOptions::default(), &temp.path("b"));
    let system = bundle.system();
    let (t, vocab, null) = (system.tokens(), system.vocab, system.num_classes as i64);
    let runtime = on(&bundle, "tract");
    let requests: Vec<Request> = (0..2).map(|i| Request { index: i, class: i as i64 }).collect();
    let sampler = SamplerOptions { greedy: true, ..SamplerOptions::default() };
    let mut seen = Vec::new();
    for cfg_interval in [Some(INTERVAL), None] {
        let options = DecodeOptions { cfg_scale: SCALE, cfg_interval, sampler, seed: 0 };
        let streams = runtime.decode(&requests, &options, 2, &mut quiet).unwrap();
        let ids: Vec<i64> = streams.iter().flat_map(|s| s.tokens.iter().map(|x| i64::from(*x))).collect();
        let with = runtime.score(&ids, &[0, 1], None, 2, &mut quiet).unwrap().logits;
        let without = runtime.score(&ids, &[null, null], None, 2, &mut quiet).unwrap().logits;
        for (slot, (c, u)) in with.chunks(vocab).zip(without.chunks(vocab)).enumerate() {
            let guided = cfg_interval.is_none_or(|i| slot % t <= i + 1);
            let mix = |v: usize| if guided { u[v] + SCALE * (c[v] - u[v]) } else { c[v] };
            let chosen = mix(ids[slot] as usize);
            let best = (0..vocab).map(mix).fold(f32::MIN, f32::max);
            assert!(
                best - chosen <= SCALE * 2.0 * CACHED_ABS,
                "slot {slot}: {chosen} is not the best, {best}"
            );
        }
        seen.push(ids);
    }
    assert_eq!(seen[0][..INTERVAL + 2], seen[1][..INTERVAL + 2]);
    assert_ne!(seen[0], seen[1], "the interval must matter");
}
