//! `deploy`: files for hosts, of a bundle's facts. `cargo xtask deploy-check` holds them against others' schemas.

use std::collections::BTreeSet;

use dpar_export::deploy::memory;
use dpar_export_checkpoint::LoadOptions;

use crate::cli::{json, run};
use crate::common::{Temp, export};
use crate::serve::Server;

const HOSTS: [&str; 4] = ["k8s", "kserve", "compose", "systemd"];

/// Names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    words.filter(|w| w.starts_with("dpar_")).map(str::to_owned).collect()
}

#[test]
fn every_host_gets_files_that_name_what_is_there() {
    let temp = Temp::new();
    let b = temp.path("b ü%$");
    let bundle = export("variants/combined/dpar", &LoadOptions::default(), &b);
    let need = memory(bundle.manifest(), 5);
    let mut named = BTreeSet::new();
    for host in HOSTS {
        let out = temp.path(host);
        let write = |more: &[&str]| {
            let common = ["deploy", host, b.as_str(), "-o", out.as_str(), "--batch", "5", "--engine", "ort"];
            run(&[&common[..], &["--json"], more].concat())
        };
        let ran = write(&[]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let said = json(&ran);
        assert_eq!(said["memory"]["all"], need.all);
        let mut text = String::new();
        for name in said["files"].as_array().unwrap() {
            text += &fs_err::read_to_string(out.join(name.as_str().unwrap())).unwrap();
        }
        for word in ["name", "image", "engine", "rows", "threads", "memory", "folder", "bundle", "row"] {
            assert!(!text.contains(&["{{", word, "}}"].concat()), "{host}: {word} is not filled in");
        }
        assert!(
            text.contains(bundle.manifest_sha256()) && text.contains(&format!("{}", need.all >> 20)),
            "{text}"
        );
        assert!(text.contains("ort") && text.contains("--batch"), "{text}");
        match host {
            "systemd" => assert!(text.contains("b ü%%$$\" --listen 127.0.0.1:8080"), "{text}"),
            "compose" => assert!(text.contains("b ü%$$\", target: /bundle"), "{text}"),
            _ => assert!(!text.contains(b.as_str()), "a cluster knows no folder of this machine"),
        }
        named.extend(metrics(&text));
        assert_eq!(write(&[]).code, 2, "it is there already");
        assert_eq!(write(&["--force"]).code, 0);
        assert_eq!(write(&["--force", "--image", "x\ny: z"]).code, 2);
    }
    // What dashboard and autoscaler ask for is what the service counts.
    let server = Server::start(&b, &[]);
    // What counts requests counts this one.
    assert_eq!(server.get("/v2").status(), 200);
    let text = server.get("/metrics").text();
    let counted: BTreeSet<String> = text.lines().filter(|l| !l.starts_with('#')).flat_map(metrics).collect();
    assert!(named.len() > 12, "{named:?}");
    assert_eq!(named.difference(&counted).collect::<Vec<_>>(), [] as [&String; 0]);
}

/// The request of memory is enough: weights twice, rows that are all full, and what is beside.
#[cfg(target_os = "linux")]
#[test]
fn a_service_stays_within_the_memory_that_is_asked_for() {
    let temp = Temp::new();
    let b = temp.path("b");
    let bundle = export("emoji32/dpar", &LoadOptions::default(), &b);
    let server = Server::start(&b, &["--batch", "32"]);
    let asked = serde_json::json!({ "class": 1, "n": 32, "cfg_scale": 2.0 });
    assert_eq!(server.post("/v1/images", &asked).status(), 200);
    let status = fs_err::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let need = memory(bundle.manifest(), 32);
    assert!(peak * 1024 < need.all, "{peak} kB of {need:?}");
    // A row: two layers of each, with their sizes.
    assert_eq!(need.row, 64 * 4 * (2 * 3 * 64 + 2 * 8 * 3 * 64 + 2 * 4 * 3 * 64 + 8 * 2 * 64));
}
