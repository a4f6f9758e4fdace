use std::collections::BTreeMap;

use dpar_export_decode::generate::Schedule;

use super::*;
use crate::measure::{GraphCost, GraphShare, Quantiles};
use crate::report::Machine;

/// A case of two graphs; each round's times in seconds: `entropy_step`, `global_step`, the loop.
fn case(batch: usize, rounds: &[[f64; 3]]) -> Measurement {
    let cost = |seconds| GraphCost { calls: 10, rows: 10, seconds };
    let round = |[entropy, global, outside]: &[f64; 3]| Round {
        seconds: entropy + global + outside,
        first_token: 0.1,
        graphs: BTreeMap::from([
            ("entropy_step".to_owned(), cost(*entropy)),
            ("global_step".to_owned(), cost(*global)),
        ]),
    };
    let share = GraphShare { cost: cost(1.0), percent: 50.0, weight_bytes: 4, caches: None };
    Measurement {
        system: "s".to_owned(),
        bundle: "b".to_owned(),
        precision: "fp32".to_owned(),
        engine: "e".to_owned(),
        engine_version: "1".to_owned(),
        device: "cpu".to_owned(),
        provider: "p".to_owned(),
        threads: Some(1),
        caches: None,
        batch,
        schedule: Schedule::Lockstep,
        images: batch,
        tokens: 64,
        cfg_scale: 2.0,
        threshold: None,
        seed: 0,
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
    let machine = Machine {
        cpu: Some("c".to_owned()),
        cores: 2,
        threads: 1,
        read_bytes_per_second: 1e10,
        read_streams: None,
    };
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
    // Other threads, guidance, images or another device are another case.
    let others: [fn(&mut Measurement); 5] = [
        |c| c.threads = None,
        |c| c.cfg_scale = 1.0,
        |c| c.seed = 7,
        |c| c.device = "cuda:0".to_owned(),
        |c| c.caches = Some(dpar_engine_api::CacheForm::Joined),
    ];
    for change in others {
        let mut other = one.clone();
        other.cases.iter_mut().for_each(change);
        assert!(matches!(compare(&other, &one), Err(BenchError::NoCase(_))), "{other:?}");
    }
}

#[test]
fn two_bundles_of_one_system_are_not_taken_for_each_other() {
    let of = |bundle: &str, seconds| Measurement {
        bundle: bundle.to_owned(),
        ..case(1, &[[seconds, seconds, 0.1], [seconds, seconds, 0.1]])
    };
    let before = report(vec![of("a", 1.0), of("b", 5.0)]);
    let found = compare(&before, &report(vec![of("b", 5.0), of("a", 1.0)])).unwrap();
    assert_eq!(found.verdict, Verdict::Pass);
    let slower = compare(&before, &report(vec![of("a", 1.5), of("b", 5.0)])).unwrap();
    assert_eq!(slower.verdict, Verdict::Fail);
    // One of the two was exported again, or they are the same: nobody knows which is which.
    for now in [[of("a", 1.0), of("c", 5.0)], [of("a", 1.0), of("a", 1.0)]] {
        let e = compare(&before, &report(now.into())).unwrap_err();
        assert!(matches!(e, BenchError::Several(_)), "{e}");
    }
    // A single bundle that was exported again is the one there was.
    let again = compare(&report(vec![of("a", 1.0)]), &report(vec![of("c", 1.0)])).unwrap();
    assert_eq!(again.verdict, Verdict::Pass);
}

#[test]
fn what_measured_nothing_is_no_report() {
    let good = report(vec![case(1, &[[1.0, 2.0, 0.1]])]);
    let text = serde_json::to_string(&good).unwrap();
    assert_eq!(BenchReport::parse(&text).unwrap(), good);
    let mut empty = good.clone();
    empty.cases[0].rounds.clear();
    let mut negative = good.clone();
    negative.cases[0].rounds[0].seconds = -3.0;
    let mut graph = good.clone();
    graph.cases[0].rounds[0].graphs.values_mut().for_each(|g| g.seconds = -1.0);
    for (bad, why) in [(empty, "no rounds"), (negative, "time is none"), (graph, "time is none")] {
        let e = BenchReport::parse(&serde_json::to_string(&bad).unwrap()).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    }
    for bad in ["", "[]", "{}", &text.replacen("3.1", "null", 1), &text.replacen("3.1", "1e999", 1)] {
        assert!(matches!(BenchReport::parse(bad), Err(BenchError::NoReport(_))), "{bad}");
    }
    // Of another version nothing else is read.
    let newer = r#"{"schema_version": 9, "cases": {}}"#;
    assert!(matches!(BenchReport::parse(newer), Err(BenchError::Version { found: 9, .. })));
}
