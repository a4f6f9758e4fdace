use dpar_export_bundle::{ComponentChain, GraphLink, Link, SourceEntry, ToolEntry};

use super::*;
use crate::check::CheckId;
use crate::decision::DecisionKind;

const HOSTILE: &str =
    "<script>alert(1)</script>\"'&</style>\u{1b}[31m\u{9b}1m\u{202e}\u{200b}\n::error::x ##[error]y";

fn check(id: CheckId, status: Status, flips: Vec<Decision>) -> Check {
    let tensor = id == CheckId::Logits;
    Check {
        max_abs: tensor.then_some(3e-4),
        limit: tensor.then_some(2e-4),
        flips,
        ..Check::new(id, status, HOSTILE)
    }
}

fn flip(slot: usize, near_tie: bool) -> Decision {
    let margin = near_tie.then_some(1e-6);
    Decision { near_tie, limit: 1e-5, ..Decision::open(DecisionKind::ArgMax, 1, slot, [5, 6], margin) }
}

fn info(engine: &str) -> EngineInfo {
    EngineInfo {
        engine: engine.to_owned(),
        version: HOSTILE.to_owned(),
        device: "cpu".to_owned(),
        provider: HOSTILE.to_owned(),
        library: Some(HOSTILE.to_owned()),
        threads: None,
        caches: None,
    }
}

/// Two engines, one of which failed, one that did not run, hostile texts wherever a text can come from outside.
fn page() -> Page {
    let flips = (0..300).map(|i| flip(i, i % 2 == 0)).collect();
    let link = || Link { file: HOSTILE.to_owned(), sha256: "0".repeat(64) };
    let source = SourceEntry {
        role: "dpar".into(),
        name: HOSTILE.into(),
        size: 1,
        sha256: "1".repeat(64),
        weights: None,
    };
    let graph = GraphLink { graph: "score".into(), link: link(), dialect: None, engines: vec![] };
    let chain = ComponentChain {
        component: "dpar".into(),
        sources: vec![source],
        weights: link(),
        graphs: vec![graph],
    };
    let item = |class| Sample {
        class,
        pixels: Some(vec![200; 8 * 8 * 3]),
        patch_lengths: vec![1, 3, 2, 2],
        entropy: vec![f32::NAN, 1.0, 2.0, 3.0, 1.5, 2.5, 0.5, 1.0],
    };
    Page {
        job: "parity".into(),
        verdict: Verdict::Fail,
        columns: vec![
            Column::new(
                info("ort"),
                vec![
                    check(CheckId::Logits, Status::Fail, vec![]),
                    check(CheckId::GreedyTokens, Status::Fail, flips),
                ],
            ),
            Column::new(info("tract"), vec![check(CheckId::Codes, Status::NotRun, vec![])]),
            Column::absent("tensorrt", HOSTILE),
        ],
        samples: Some(Samples {
            engine: HOSTILE.into(),
            draw: DrawOptions { num: 2, seed: 0, cfg_scale: 2.0, batch: 1 },
            grid: 4,
            tokens: 8,
            size: 8,
            threshold: Some(1.2),
            items: vec![item(3), item(4)],
        }),
        bundle: "2".repeat(64),
        provenance: Provenance {
            tool: ToolEntry { name: HOSTILE.into(), version: HOSTILE.into() },
            name: HOSTILE.into(),
            precision: dpar_export_spec::Precision::Fp32.into(),
            shared_sources: vec![],
            components: vec![chain],
        },
        compared: vec![RecordedFile { name: HOSTILE.into(), size: 1, sha256: "3".repeat(64) }],
    }
}

#[test]
fn nothing_from_outside_becomes_markup() {
    let html = html(&page());
    assert!(!html.contains("<script") && !html.contains("</style>\""), "a text became markup");
    assert_eq!(html.matches("</style>").count(), 1);
    assert!(html.contains("&lt;script&gt;alert(1)"));
    // No address but data, and no event handler.
    for attribute in ["src=\"", "href=\""] {
        for rest in html.split(attribute).skip(1) {
            assert!(rest.starts_with("data:") || rest.starts_with('#'), "{attribute}{}", &rest[..40]);
        }
    }
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains("url("));
}

#[test]
fn what_hides_is_shown() {
    let (html, xml) = (html(&page()), junit(&page()).unwrap());
    for text in [&html, &xml] {
        let raw = |c: char| c.is_control() && c != '\n' || ['\u{202e}', '\u{200b}'].contains(&c);
        assert!(!text.contains(raw), "{:?}", text.lines().find(|l| l.contains(raw)));
        assert!(text.contains("\\u{1b}[31m\\u{9b}1m\\u{202e}\\u{200b}"), "dropped, not shown");
    }
    // A log may print the messages of test cases.
    assert!(!xml.contains("\n::") && !xml.contains("##["), "{xml}");
}

#[test]
fn every_section_says_what_it_holds() {
    let html = html(&page());
    for text in [
        "✗</span>Fail: parity of",
        "greedy tokens on ort",
        "did not run",
        "3.0e-4 of 2.0e-4",
        "and 100 more",
        "0 of 2",
        "Sample 1 of class 4, in 4 patches",
        "M0 0h4v2h-4zM0 1h4M1 0v1M2 1v1",
        "threshold 1.2",
        "4.00 on average",
        "compared with",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert_eq!(html.matches("<img").count(), html.matches(" alt=\"").count());
    assert_eq!(html, super::html(&page()), "the same page gives the same bytes");
}

#[test]
fn a_page_without_samples_is_whole_too() {
    let mut page = page();
    page.samples = None;
    page.columns.truncate(1);
    let html = html(&page);
    assert!(!html.contains("id=\"samples\"") && html.contains("id=\"provenance\""));
}

#[test]
fn junit_counts_and_explains() {
    let xml = junit(&page()).unwrap();
    assert!(
        xml.contains("tests=\"4\"") && xml.contains("failures=\"2\"") && xml.contains("errors=\"1\""),
        "{xml}"
    );
    assert!(xml.contains("<skipped") && xml.contains("… and 280 more"), "{xml}");
    assert!(xml.contains("largest difference 3.00e-4, allowed is 2.00e-4"), "{xml}");
    assert!(
        xml.contains("slot 1: arg-max is 6, reference 5 (margin none: no rounding explains it): DEFECT"),
        "{xml}"
    );
    assert!(!xml.contains("<script") && xml.contains("&lt;script"), "{xml}");
    assert_eq!(xml, junit(&page()).unwrap());
}
