use std::collections::BTreeMap;

use dpar_export_decode::generate::Schedule;

use super::*;
use crate::measure::{GraphShare, Quantiles};
use crate::meter::GraphCost;
use crate::report::Machine;

/// A case of two graphs; each round's times in seconds: `entropy_step`, `global_step`, the loop.
fn case(batch: usize, rounds: &[[f64; 3]]) -> Measurement {
    let cost = |seconds| GraphCost { calls: 10, rows: 10, seconds };
    let round = |[entropy, global, outside]: &[f64; 3]| Round {
        seconds: entropy + global + outside,
        first_token: 0.1,
        steps: vec![0.1],
        graphs: BTreeMap::from([
            ("entropy_step".to_owned(), cost(*entropy)),
            ("global_step".to_owned(), cost(*global)),
        ]),
    };
    let share = GraphShare { cost: cost(1.0), percent: 50.0, weight_bytes: 4 };
    Measurement {
        system: "s".to_owned(),
        bundle: "b".to_owned(),
        precision: "fp32".to_owned(),
        engine: "e".to_owned(),
        engine_version: "1".to_owned(),
        device: "cpu".to_owned(),
        threads: Some(1),
        batch,
        schedule: Schedule::Lockstep,
        images: batch,
        tokens: 64,
        cfg_scale: 2.0,
        threshold: None,
        mean_steps: 36.0,
        opening: 0.1,
        images_per_second: 1.0,
        step_ms: Quantiles { p50: 1.0, p90: 1.0, p99: 1.0 },
        graphs: ["entropy_step", "global_step"].map(|g| (g.to_owned(), share.clone())).into(),
        loop_percent: 1.0,
        weight_bytes_per_second: 1e9,
        memory: None,
        rounds: rounds.iter().map(round).collect(),
    }
}

fn report(cases: Vec<Measurement>) -> BenchReport {
    let machine = Machine { cpu: Some("c".to_owned()), cores: 2, threads: 1, read_bytes_per_second: 1e10 };
    BenchReport::new(machine, cases)
}

fn verdict_of<'a>(comparison: &'a Comparison, graph: Option<&str>) -> &'a Change {
    comparison.changes.iter().find(|c| c.graph.as_deref() == graph).unwrap()
}

#[test]
fn a_graph_that_got_slower_is_named() {
    let before = report(vec![case(1, &[[1.0, 2.0, 0.1], [1.1, 2.1, 0.1], [1.0, 2.0, 0.1]])]);
    let after = report(vec![case(1, &[[1.5, 2.0, 0.1], [1.4, 2.0, 0.1], [1.6, 2.1, 0.1]])]);
    let found = compare(&before, &after).unwrap();
    assert_eq!(found.verdict, Verdict::Fail);
    let entropy = verdict_of(&found, Some("entropy_step"));
    assert_eq!((entropy.verdict, entropy.ratio, entropy.counts), (Verdict::Fail, 1.5, true));
    assert_eq!(verdict_of(&found, Some("global_step")).verdict, Verdict::Pass);
    // The other way round it got faster.
    assert_eq!(compare(&after, &before).unwrap().verdict, Verdict::Pass);
}

#[test]
fn rounds_that_overlap_decide_nothing_and_small_parts_do_not_count() {
    let before = report(vec![case(1, &[[1.0, 2.0, 0.01], [1.5, 2.0, 0.01], [1.0, 2.0, 0.01]])]);
    let after = report(vec![case(1, &[[1.2, 2.0, 0.02], [1.4, 2.0, 0.02], [1.1, 2.0, 0.02]])]);
    let found = compare(&before, &after).unwrap();
    assert_eq!(found.verdict, Verdict::Inconclusive);
    // Twice as slow, and less than a hundredth of the time.
    let outside = verdict_of(&found, Some("loop"));
    assert_eq!((outside.verdict, outside.counts), (Verdict::Fail, false));
}

#[test]
fn what_cannot_be_compared_is_refused_or_named() {
    let one = report(vec![case(1, &[[1.0, 2.0, 0.1]]), case(8, &[[1.0, 2.0, 0.1]])]);
    let other = report(vec![case(8, &[[1.0, 2.0, 0.1]]), case(16, &[[1.0, 2.0, 0.1]])]);
    let found = compare(&one, &other).unwrap();
    assert_eq!(found.alone, ["s fp32 on e, batch 16, lockstep", "s fp32 on e, batch 1, lockstep"]);
    let far = report(vec![case(64, &[[1.0, 2.0, 0.1]])]);
    assert!(matches!(compare(&one, &far), Err(BenchError::NoCase(_))));
    let mut elsewhere = one.clone();
    elsewhere.machine.cores = 64;
    assert!(compare(&elsewhere, &one).unwrap_err().to_string().contains("c, 64 cores, here c, 2 cores"));
    let mut newer = one.clone();
    newer.schema_version = 9;
    assert!(matches!(compare(&newer, &one), Err(BenchError::Version { found: 9, .. })));
    // Other threads or another guidance are another case.
    let mut threads = one.clone();
    threads.cases.iter_mut().for_each(|c| c.threads = None);
    assert!(matches!(compare(&threads, &one), Err(BenchError::NoCase(_))));
}
