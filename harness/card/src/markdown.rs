//! The model card.

use std::fmt::Write;

use dpar_export_spec::escape::visible;
use serde_json::json;

use crate::{BOM, Card, CitedNumber};

/// A text as Markdown shows it, whatever it holds: one line, in which nothing is markup.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        if "\\`*_[]<>|#".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A table; its cells are shown as they are.
fn table<const N: usize>(out: &mut String, header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let _ = writeln!(out, "| {} |\n|{}", header.join(" | "), "---|".repeat(N));
    for row in rows {
        let _ = writeln!(out, "| {} |", row.map(|cell| plain(&cell)).join(" | "));
    }
    out.push('\n');
}

/// What hubs read, in YAML: every value is written as JSON, which YAML takes as it is.
fn front_matter(card: &Card<'_>) -> String {
    let manifest = card.bundle.manifest();
    let mut out = String::from("---\n");
    let mut field = |key: &str, value: serde_json::Value| {
        let _ = writeln!(out, "{key}: {value}");
    };
    field("library_name", json!("dpar-export"));
    field("pipeline_tag", json!("unconditional-image-generation"));
    field("tags", json!(["onnx", "image-generation", "autoregressive", manifest.system.to_string()]));
    if let Some(license) = &card.license {
        field("license", json!(license));
    }
    let measured = card.reports.iter().filter(|r| r.kind == "evaluate");
    let results: Vec<serde_json::Value> = measured
        .map(|report| {
            let metric = |n: &CitedNumber| {
                json!({ "type": n.what, "name": n.what, "value": n.value.parse::<f64>().ok() })
            };
            json!({
                "task": { "type": "unconditional-image-generation" },
                "dataset": { "type": report.name, "name": format!("reference of {}", report.name) },
                "metrics": report.numbers.iter().map(metric).collect::<Vec<_>>(),
                "source": { "name": format!("{}, sha256 {}", report.name, report.sha256), "url": report.name },
            })
        })
        .collect();
    if !results.is_empty() {
        field("model-index", json!([{ "name": manifest.name, "results": results }]));
    }
    out + "---\n"
}

pub(crate) fn write(card: &Card<'_>) -> String {
    let (manifest, system) = (card.bundle.manifest(), card.bundle.system());
    let rule = &system.patch_rule;
    let mut out = front_matter(card);
    let mega = |bytes: u64| match bytes {
        ..100_000 => format!("{bytes} bytes"),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    };
    let parameters: u64 = manifest.components.iter().map(|c| c.parameters).sum();
    let bytes: u64 = manifest.files.iter().map(|f| f.size).sum();
    let _ = writeln!(out, "\n# {}\n", plain(&manifest.name));
    let _ = writeln!(
        out,
        "A class-conditional model of images ({}): {size} × {size} px, {} classes, {} tokens an image, {} codes; patching mode {}. \
         {:.1}M parameters in {} ONNX graphs (opset {}, {}), {}.\n",
        manifest.system,
        system.num_classes,
        system.tokens(),
        system.vocab,
        plain(rule.mode.word()),
        parameters as f64 / 1e6,
        manifest.graphs.len(),
        manifest.opset,
        plain(&manifest.numbers().to_string()),
        mega(bytes),
        size = system.image_size,
    );
    let components = manifest
        .components
        .iter()
        .map(|c| [c.kind.name().to_owned(), c.parameters.to_string(), c.graphs.join(", ")]);
    table(&mut out, ["component", "parameters", "graphs"], components);

    out += "## Results\n\nEvery number is of a report below; in brackets, which.\n\n";
    let numbers = card.reports.iter().enumerate().flat_map(|(i, report)| {
        report.numbers.iter().map(move |number| {
            let interval = number.interval_90.as_ref();
            let interval = interval.map(|[low, high]| format!(" (90 % interval {low} to {high})"));
            let value = format!("{}{}", number.value, interval.unwrap_or_default());
            [number.what.clone(), value, format!("({})", i + 1)]
        })
    });
    table(&mut out, ["what", "value", "report"], numbers);
    let by = |signed: &Option<String>| signed.clone().unwrap_or_else(|| "not checked".to_owned());
    let reports = card.reports.iter().enumerate().map(|(i, r)| {
        [format!("({})", i + 1), r.name.clone(), r.kind.to_owned(), r.sha256.clone(), by(&r.signed)]
    });
    table(&mut out, ["", "report", "made by", "SHA-256", "signed by key"], reports);

    out += "## Where it comes from\n\n";
    let _ = writeln!(
        out,
        "Exported by {} {}. SHA-256 of `manifest.json`, which names every file of the bundle: `{}`; signed by key: {}.\n",
        plain(&manifest.tool.name),
        plain(&manifest.tool.version),
        card.bundle.manifest_sha256(),
        by(&card.signed),
    );
    let sources =
        manifest.sources.iter().map(|s| [s.role.clone(), s.name.clone(), mega(s.size), s.sha256.clone()]);
    table(&mut out, ["source", "file", "size", "SHA-256"], sources);

    // The card does not depend on where the bundle lies.
    let folder = "BUNDLE";
    let _ = writeln!(
        out,
        "## How to run it\n\n```\ndpar-export inspect {folder}\ndpar-export generate {folder} --num 16 -o images\n```\n\n\
         ```python\nimport dpar_export\n\nbundle = dpar_export.open(\"{folder}\")\nsamples = bundle.generate(num=16)\n```\n\n\
         The same as a bill of materials (CycloneDX): `{BOM}`. `dpar-export card {folder} --cite … -o CARD --check` tells \
         whether this card is what bundle and reports say.",
    );
    out
}
