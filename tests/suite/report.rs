//! The HTML report and JUnit XML of `verify`. How the page looks is checked in a browser: `cargo xtask report-check`.

use dpar_export_checkpoint::LoadOptions;

use crate::cli::run;
use crate::common::{Temp, export, fixture, on};

#[test]
fn a_comparison_is_reported_for_people_and_for_ci() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    let golden = fixture("variants/combined");
    let (html, xml) = (temp.path("r.html"), temp.path("r.xml"));
    fs_err::write(&html, "an earlier report").unwrap();
    let verify = || {
        let args = ["verify", bundle.as_str(), "--reference", golden.as_str(), "--report-images", "5"];
        run(&[&args[..], &["--report", html.as_str(), "--junit", xml.as_str()]].concat())
    };
    let out = verify();
    assert_eq!(out.code, 0, "{}", out.stderr);
    let page = fs_err::read_to_string(&html).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.len() < 3_000_000);
    // A picture and an entropy map of each image.
    assert_eq!(page.matches("<img").count(), 10);
    for text in ["Pass: verify of", "guidance 2", "golden.safetensors", "Content-Security-Policy"] {
        assert!(page.contains(text), "{text}");
    }
    let junit = fs_err::read_to_string(&xml).unwrap();
    assert!(
        junit.contains("<testcase name=\"logits\" classname=\"verify.tract\"") && !junit.contains("<failure"),
        "{junit}"
    );
    assert_eq!(verify().code, 0);
    assert_eq!(fs_err::read_to_string(&html).unwrap(), page, "the same bytes again");
}

#[test]
fn a_failed_comparison_is_reported_too() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    let options = LoadOptions { epoch: Some(3), ..LoadOptions::default() };
    export("wrappings/experiment", &options, &bundle);
    let golden = fixture("wrappings");
    let (html, xml) = (temp.path("r.html"), temp.path("r.xml"));
    let args = ["verify", bundle.as_str(), "--reference", golden.as_str()];
    let out = run(&[&args[..], &["--report", html.as_str(), "--junit", xml.as_str()]].concat());
    assert_eq!(out.code, 1, "{}", out.stderr);
    let page = fs_err::read_to_string(&html).unwrap();
    assert!(
        page.contains("Fail: verify of") && page.contains("✗ defect") && !page.contains("id=\"samples\"")
    );
    let junit = fs_err::read_to_string(&xml).unwrap();
    assert!(
        junit.contains("<failure") && junit.contains("DEFECT") && junit.contains("type=\"tolerance\""),
        "{junit}"
    );
}

#[test]
fn parity_is_reported_with_a_column_for_each_engine() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    let opened = export("variants/combined/dpar", &LoadOptions::default(), &bundle);
    // A library of one of the two is told to that one, also where the pictures are made again on the other.
    let library = on(&opened, "ort").info().library.clone().unwrap();
    let golden = fixture("variants/combined");
    let (html, xml) = (temp.path("r.html"), temp.path("r.xml"));
    let args = [
        "parity",
        bundle.as_str(),
        "--engines",
        "tract,ort",
        "--reference",
        golden.as_str(),
        "--num",
        "3",
        "--ort-lib",
        &library,
    ];
    let out = run(&[&args[..], &["--report", html.as_str(), "--junit", xml.as_str()]].concat());
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    let page = fs_err::read_to_string(&html).unwrap();
    assert_eq!(page.matches("<img").count(), 6);
    for text in
        ["Pass: parity of", "decisions on its own tokens against tract", "graph outputs against", "tract 0."]
    {
        assert!(page.contains(text), "{text}");
    }
    let junit = fs_err::read_to_string(&xml).unwrap();
    assert!(
        junit.contains("classname=\"parity.tract\"") && junit.contains("classname=\"parity.ort\""),
        "{junit}"
    );
    assert_eq!(junit.matches("<testsuite ").count(), 2);
}

#[test]
fn reports_that_cannot_be_written_are_refused_before_the_work() {
    let temp = Temp::new();
    let bundle = temp.path("b");
    export("variants/token/dpar", &LoadOptions::default(), &bundle);
    let golden = fixture("variants/token");
    let verify =
        |more: &[&str]| run(&[&["verify", bundle.as_str(), "--reference", golden.as_str()], more].concat());
    let inside = bundle.join("r.html");
    let nowhere = temp.path("no/r.html");
    let (text, page) = (temp.path("r.txt"), temp.path("r.html"));
    for (more, message) in [
        (vec!["--report", text.as_str()], ".html"),
        (vec!["--junit", page.as_str()], ".xml"),
        (vec!["--report", inside.as_str()], "lies in the bundle"),
        (vec!["--report", nowhere.as_str()], "no"),
        (vec!["--report-images", "3"], "--report"),
        (vec!["--report", page.as_str(), "--report-images", "65"], "65"),
    ] {
        let out = verify(&more);
        assert!(out.code == 2 && out.stderr.contains(message), "{more:?}: {} {}", out.code, out.stderr);
        assert!(!page.exists() && !inside.exists());
    }
}
