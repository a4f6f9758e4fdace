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
    let need = memory(&bundle, 5);
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
        assert_eq!(said["memory"]["reload"], need.reload);
        let mut text = String::new();
        for name in said["files"].as_array().unwrap() {
            text += &fs_err::read_to_string(out.join(name.as_str().unwrap())).unwrap();
        }
        for word in [
            "name", "image", "engine", "rows", "threads", "memory", "limit", "need", "body", "folder",
            "bundle",
        ] {
            assert!(!text.contains(&["{{", word, "}}"].concat()), "{host}: {word} is not filled in");
        }
        assert!(
            text.contains(bundle.manifest_sha256()) && text.contains(&format!("{}", need.all >> 20)),
            "{text}"
        );
        // Where a reload can be asked for, there is room for two bundles; KServe's has no token, and so no reload.
        let unit = if host == "compose" { "m" } else { "M" };
        let roomy = text.contains(&format!("{}{unit}", need.reload >> 20));
        assert_eq!(roomy, host != "kserve", "{text}");
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
        // What would be a number without quotes.
        assert_eq!(write(&["--force", "--image", "12:30"]).code, 0);
        let file = out.join(said["files"][0].as_str().unwrap());
        let quoted = fs_err::read_to_string(file).unwrap().contains("image: \"12:30\"");
        assert_eq!(quoted, host != "systemd");
        let words = ["deploy", host, b.as_str(), "-o", out.as_str(), "--force", "--engine", "tensorrt"];
        let refused = run(&words);
        assert!(refused.code == 2 && refused.stderr.contains("GPU"), "{}", refused.stderr);
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

/// The service gets the link, which may point at another bundle when it opens it again; what its name says is no template.
#[cfg(unix)]
#[test]
fn a_link_stays_one() {
    let temp = Temp::new();
    let (b, link, out) = (temp.path("b"), temp.path("{{bundle}}"), temp.path("out"));
    export("variants/combined/dpar", &LoadOptions::default(), &b);
    fs_err::os::unix::fs::symlink(&b, &link).unwrap();
    for (host, file) in [("systemd", "dpar-export.service"), ("compose", "compose.yaml")] {
        assert_eq!(run(&["deploy", host, link.as_str(), "-o", out.join(host).as_str()]).code, 0);
        let text = fs_err::read_to_string(out.join(host).join(file)).unwrap();
        assert!(text.contains(&format!("\"{link}\"")), "{text}");
    }
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
    let need = memory(&bundle, 32);
    // One request arrived.
    assert!(peak * 1024 < need.all - need.bodies, "{peak} kB of {need:?}");
    // A row: two layers of each, with their sizes.
    assert_eq!(need.row, 64 * 4 * (2 * 3 * 64 + 2 * 8 * 3 * 64 + 2 * 4 * 3 * 64 + 8 * 2 * 64));
    // Twelve times 32 channels of 32 × 32; 512 requests of 1 MiB; then each term once, or that of a bundle twice.
    assert_eq!((need.picture, need.bodies), (12 * 4 * 32 * 32 * 32, 512 << 20));
    let (one, beside) = (2 * need.weights + 32 * need.row + need.picture, need.bodies + (256 << 20));
    assert_eq!(need.all, (one + beside).next_multiple_of(1 << 20));
    assert_eq!(need.reload, (2 * one + beside).next_multiple_of(1 << 20));
}
