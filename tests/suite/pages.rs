//! Pages of the book that are made of the sources: commands, manifest, exit codes, metrics. `BOOK=write` writes them; a page
//! that its source does not give any more fails. (Python's is held by `python/tests/test_reference.py`.)

use std::fmt::Write;

use camino::Utf8PathBuf;
use dpar_export::commands::failure::Cause;
use serde_json::Value;

use crate::cli::{json, run};
use crate::common::fixture;

fn root() -> Utf8PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn source(path: &str) -> String {
    fs_err::read_to_string(root().join(path)).unwrap()
}

/// Holds a page of docs/ against what it must be.
fn held(name: &str, text: &str) {
    let path = root().join("docs").join(name);
    if std::env::var("BOOK").is_ok_and(|v| v == "write") {
        fs_err::write(&path, text).unwrap();
    }
    let page = fs_err::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(text.lines()).find(|(page, source)| page != source);
    assert!(page == text, "docs/{name} is not what its source gives (BOOK=write writes it): {differs:?}");
}

/// The start of a page, and who makes it.
fn page(title: &str, first: &str) -> String {
    format!("# {title}\n\n<!-- Made by tests/suite/pages.rs: BOOK=write writes it. -->\n\n{first}\n")
}

/// A cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[test]
fn commands_are_what_the_program_says() {
    held("commands.md", &run(&["manual", "--markdown"]).stdout);
}

/// What a schema says a value may be.
fn kind(schema: &Value) -> String {
    let words = |list: &[Value]| {
        let words: Vec<String> =
            list.iter().map(|v| format!("`{}`", v.to_string().trim_matches('"'))).collect();
        words.join(", ")
    };
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/$defs/").unwrap();
        return format!("[{name}](#{name})");
    }
    if let Some(values) = schema["enum"].as_array() {
        return words(values);
    }
    match (&schema["type"], &schema["items"]) {
        (Value::Array(either), _) => words(either).replace('`', "").replace(", ", " or "),
        (_, items @ Value::Object(_)) => format!("list of {}", kind(items)),
        (Value::String(one), _) => one.clone(),
        (found, _) => panic!("no type: {found} in {schema}"),
    }
}

/// The fields of an object, those of objects within it behind its name.
fn fields(schema: &Value, prefix: &str, rows: &mut String) {
    let properties = schema["properties"].as_object().unwrap();
    let required: Vec<&str> =
        schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let optional = properties.keys().map(String::as_str).filter(|key| !required.contains(key));
    for (name, must) in required.iter().map(|key| (*key, true)).chain(optional.map(|key| (key, false))) {
        let field = &properties[name];
        let text = field["description"].as_str();
        assert!(text.is_some() || field["$ref"].is_string(), "{prefix}{name} has no description");
        let may = if must { "" } else { "optional" };
        let text = cell(text.unwrap_or_default());
        writeln!(rows, "| `{prefix}{name}` | {} | {may} | {text} |", kind(field)).unwrap();
        let (within, mark) = match &field["items"] {
            items @ Value::Object(_) => (items, "[]."),
            _ => (field, "."),
        };
        if within["properties"].is_object() {
            fields(within, &format!("{prefix}{name}{mark}"), rows);
        }
    }
}

#[test]
fn the_manifest_is_what_its_schema_says() {
    const HEAD: &str = "\n| field | type | | what |\n|---|---|---|---|\n";
    let schema: Value = serde_json::from_str(&source("docs/manifest.schema.json")).unwrap();
    let mut text = page(
        "Manifest",
        "`manifest.json` of a bundle. The schema itself, for validators: [manifest.schema.json](manifest.schema.json); \
         unknown fields are refused. A bundle's patch rule is there unless its `system` is `extractor`.",
    );
    text += HEAD;
    fields(&schema, "", &mut text);
    for (name, part) in schema["$defs"].as_object().unwrap() {
        let what = part["description"].as_str().unwrap();
        write!(text, "\n## {name}\n\n{what}\n").unwrap();
        let object = if part["items"].is_object() { &part["items"] } else { part };
        if object["properties"].is_object() {
            text += HEAD;
            fields(object, "", &mut text);
        } else {
            writeln!(text, "\nA string that fits `{}`.", part["pattern"].as_str().unwrap()).unwrap();
        }
    }
    held("manifest.md", &text);
}

/// The variants of an enum in a source file: name, what stands behind it, documentation.
fn variants(source: &str, name: &str) -> Vec<(String, String, String)> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let (mut found, mut text) = (Vec::new(), String::new());
    for line in body.lines().map(str::trim) {
        if let Some(said) = line.strip_prefix("///") {
            text += said;
        } else if let Some((name, rest)) =
            line.strip_suffix(',').map(|v| v.split_once(" = ").unwrap_or((v, "")))
        {
            found.push((name.to_owned(), rest.to_owned(), std::mem::take(&mut text).trim().to_owned()));
        }
    }
    assert!(!found.is_empty() && found.iter().all(|(.., text)| !text.is_empty()), "{name}: {found:?}");
    found
}

#[test]
fn exit_codes_are_those_of_the_table_of_causes() {
    let table = source("harness/args/src/cause.rs");
    let mut text = page(
        "Exit codes",
        "The same for every command; what a pipeline does with them is in [ci.md](ci.md). From Python each is an exception \
         with an `exit_code`: [python-reference.md](python-reference.md).",
    );
    text += "\n| exit | meaning |\n|---|---|\n";
    for (_, code, meaning) in variants(&table, "Exit") {
        writeln!(text, "| {code} | {meaning} |").unwrap();
    }
    text += "\nA command that ends without its result says why with one word (`cause` of the last record of `--log-format json`), from which its exit code follows:\n\
             \n| cause | meaning | exit |\n|---|---|---|\n";
    for (name, _, meaning) in variants(&table, "Cause") {
        let cause = match name.as_str() {
            "Input" => Cause::Input,
            "Run" => Cause::Run,
            "Absent" => Cause::Absent,
            "Integrity" => Cause::Integrity,
            "Stopped" => Cause::Stopped,
            other => panic!("{other} is new: it needs its line here"),
        };
        let [alone, compared] = [false, true].map(|compares| cause.exit(compares) as u8);
        let code = match alone == compared {
            true => alone.to_string(),
            false => format!("{compared} where a comparison was asked for, else {alone}"),
        };
        writeln!(text, "| `{}` | {meaning} | {code} |", cause.word()).unwrap();
    }
    held("exit-codes.md", &text);
}

/// The sections of a report, as the program prints them: what is measured by which definition.
#[test]
fn metrics_are_named_and_defined_as_reports_name_and_define_them() {
    let numpy = |name: &str| fixture("metrics/numpy").join(name);
    let mut text = page(
        "Metrics by name",
        "What `metrics.json` and `dpar-export metrics --json` have below `metrics`: the key, and for each protocol the name and definition that a \
         report gives. `value` is the number; `standard_error` and `interval_90` are there where the statistics give them. The examples are of arrays \
         with 16 features; how the numbers are computed, and on what they depend: [metrics.md](metrics.md).",
    );
    for variant in ["adm", "torch-fidelity", "pytorch-fid", "clean-fid"] {
        write!(text, "\n## {variant}\n\n`--variant {variant}`\n\n| key | name | definition | beside the value |\n|---|---|---|---|\n").unwrap();
        let (samples, reference) = (numpy("saved.npz"), numpy("compressed.npz"));
        let out = run(&[
            "metrics",
            "--activations",
            samples.as_str(),
            "--reference",
            reference.as_str(),
            "--variant",
            variant,
            "--kid-subset-size",
            "20",
            "--json",
        ]);
        assert_eq!(out.code, 0, "{}", out.stderr);
        let report = json(&out);
        for (key, metric) in report["metrics"].as_object().unwrap() {
            let [name, definition] =
                ["name", "definition"].map(|field| cell(metric[field].as_str().unwrap()));
            let beside =
                ["standard_error", "interval_90"].into_iter().filter(|field| !metric[field].is_null());
            let details = metric["details"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
            let beside: Vec<String> = beside
                .map(|field| format!("`{field}`"))
                .chain(details.map(|key| format!("`details.{key}`")))
                .collect();
            writeln!(text, "| `{key}` | {name} | {definition} | {} |", beside.join(", ")).unwrap();
        }
    }
    let keys = variants(&source("harness/evaluate/src/evaluate/report.rs"), "Metric");
    text += "\n## Every key\n\n| metric | |\n|---|---|\n";
    for (name, _, what) in keys {
        let key: String = name
            .char_indices()
            .map(|(i, c)| {
                if i > 0 && c.is_uppercase() {
                    format!("_{}", c.to_lowercase())
                } else {
                    c.to_lowercase().to_string()
                }
            })
            .collect();
        writeln!(text, "| `{key}` | {what} |").unwrap();
    }
    held("metric-names.md", &text);
}
