//! Model cards: every number of a report, and every change of one seen.

use camino::Utf8PathBuf;
use dpar_export_checkpoint::LoadOptions;

use crate::attest::{key, private_key};
use crate::cli::{Run, json, run};
use crate::common::{Temp, export, fixture};

#[test]
fn a_card_cites_reports_and_every_change_is_exit_5() {
    let temp = Temp::new();
    let at = |name: &str| temp.path(name).into_string();
    let (bundle, golden, card) = (at("b"), fixture("variants/combined").into_string(), at("card"));
    export("variants/combined/dpar", &LoadOptions::default(), &temp.path("b"));
    let reports = [temp.path("verify.json"), temp.path("generate.json")];
    let made = |args: &[&str], report: &Utf8PathBuf| {
        let out = run(args);
        assert_eq!(out.code, 0, "{}", out.stderr);
        fs_err::write(report, out.stdout).unwrap();
    };
    made(&["verify", &bundle, "--reference", &golden, "--no-probes", "--json"], &reports[0]);
    made(&["generate", &bundle, "--num", "2", "-o", &at("images"), "--json"], &reports[1]);
    let write = |more: &[&str]| -> Run {
        let cite = ["--cite", reports[0].as_str(), reports[1].as_str()];
        run(&[&["card", &bundle, "-o", &card], &cite[..], more].concat())
    };
    let out = write(&["--license", "Apache-2.0", "--json"]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let said = json(&out);
    let text = fs_err::read_to_string(temp.path("card/README.md")).unwrap();
    let bom = fs_err::read_to_string(temp.path("card/bom.cdx.json")).unwrap();
    for report in said["reports"].as_array().unwrap() {
        let sha256 = report["sha256"].as_str().unwrap();
        assert!(text.contains(sha256) && bom.contains(sha256), "{report}");
    }
    assert!(
        text.starts_with("---\nlibrary_name: \"dpar-export\"\n") && text.contains("| verdict on tract "),
        "{text}"
    );
    let bom: serde_json::Value = serde_json::from_str(&bom).unwrap();
    let model = &bom["metadata"]["component"];
    assert_eq!(model["hashes"][0]["content"], said["bundle"]);
    let metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"].as_array().unwrap();
    assert_eq!(said["numbers"], metrics.len());

    let check = || write(&["--license", "Apache-2.0", "--check"]);
    assert_eq!(check().code, 0, "{}", check().stderr);
    let of_now = fs_err::read_to_string(&reports[1]).unwrap();
    fs_err::write(&reports[1], of_now.replacen("\"images\": 2", "\"images\": 3", 1)).unwrap();
    let out = check();
    assert!(out.code == 5 && out.stderr.contains("generate.json has SHA-256"), "{}", out.stderr);
    fs_err::write(&reports[1], &of_now).unwrap();
    fs_err::write(temp.path("card/README.md"), text.replacen("| pass |", "| PASS |", 1)).unwrap();
    let out = check();
    assert!(out.code == 5 && out.stderr.contains("README.md is not what"), "{}", out.stderr);

    // Signed by nobody, then by the owner of the key.
    let public = key("test-only-public.pem").into_string();
    let signed = || write(&["--force", "--key", &public, "--json"]);
    assert_eq!(signed().code, 2, "no attestations");
    let private = private_key(&temp).into_string();
    for path in [&bundle, reports[0].as_str(), reports[1].as_str()] {
        assert_eq!(run(&["attest", path, "--key", &private]).code, 0);
    }
    let out = signed();
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(json(&out)["signed"].is_string(), "{}", out.stdout);
    fs_err::write(&reports[1], of_now.replacen("\"images\": 2", "\"images\": 3", 1)).unwrap();
    let out = signed();
    assert!(out.code == 5 && out.stderr.contains("does not vouch"), "{}", out.stderr);

    // A report of other files.
    let own = said["bundle"].as_str().unwrap();
    fs_err::write(&reports[1], of_now.replace(own, &"0".repeat(64))).unwrap();
    let out = write(&["--force"]);
    assert!(out.code == 5 && out.stderr.contains("another bundle"), "{}", out.stderr);
}
