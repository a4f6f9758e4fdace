//! The forms of the JSON documents on stdout, `docs/schemas`: every document that any test asks for is held against its schema,
//! and has no field that the schema does not name.
//!
//! `SCHEMAS=write cargo nextest run …` widens the schemas by what the tests see, and keeps what is written in them by hand:
//! descriptions, and `additionalProperties` where names are data.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export::arrays::{ArrayRef, write_npz};
use dpar_export::check::SCHEMA_VERSION;
use dpar_export_checkpoint::LoadOptions;
use serde_json::{Value, json};

use crate::common::{Temp, export, fixture};

/// What has a schema of its own.
const MANIFEST: &str = "manifest";

fn path(command: &str) -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/schemas/{command}.schema.json"))
}

fn stored(command: &str) -> Option<Value> {
    let text = fs_err::read_to_string(path(command)).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// The command of a command line, as the schemas call it.
fn command<'a>(args: &[&'a str]) -> &'a str {
    let named = dpar_export::commands::subcommands();
    args.first().copied().filter(|first| named.iter().any(|n| n == first)).unwrap_or("export")
}

/// Holds what a command line with `--json` has printed against the schema of its command.
pub(crate) fn hold(args: &[&str], stdout: &str) {
    if !args.contains(&"--json") || stdout.is_empty() {
        return;
    }
    let (command, document) = (command(args), serde_json::from_str(stdout).unwrap());
    if std::env::var("SCHEMAS").is_ok_and(|v| v == "write") {
        // One test at a time: each is a process.
        let lock =
            fs_err::File::create(Utf8Path::new(env!("CARGO_TARGET_TMPDIR")).join("schemas.lock")).unwrap();
        lock.file().lock().unwrap();
        let mut schema = stored(command).unwrap_or_else(|| root(command));
        widen(&mut schema, &document);
        schema["properties"]["schema_version"] = json!({ "const": SCHEMA_VERSION });
        fs_err::write(path(command), serde_json::to_string_pretty(&schema).unwrap() + "\n").unwrap();
    }
    let mut schema = stored(command).unwrap_or_else(|| panic!("{} is missing", path(command)));
    close(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).take(5).collect();
    assert!(errors.is_empty(), "`{}` is not as {} says: {errors:#?}", args.join(" "), path(command));
}

/// Refuses fields that a schema does not name, which readers of documents pass over.
fn close(schema: &mut Value) {
    if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
        schema["additionalProperties"] = json!(false);
    }
    for key in ["items", "additionalProperties"] {
        schema.get_mut(key).into_iter().for_each(close);
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(|p| p.values_mut()).for_each(close);
}

fn root(command: &str) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("What `dpar-export {command} --json` prints").replace(" export -", " -"),
    })
}

/// Makes a schema take a document too.
fn widen(schema: &mut Value, document: &Value) {
    let new = schema.get("type").is_none();
    let mut types: Vec<Value> = match schema.get("type") {
        None => Vec::new(),
        Some(Value::Array(types)) => types.clone(),
        Some(one) => vec![one.clone()],
    };
    let name = match document {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) if types.contains(&"number".into()) => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if name == "number" {
        types.retain(|t| t != "integer");
    }
    let had_object = types.contains(&"object".into());
    if !types.contains(&name.into()) {
        types.push(name.into());
        types.sort_by_key(|t| t.as_str().map(str::to_owned));
    }
    schema["type"] = if types.len() == 1 { types.remove(0) } else { types.into() };
    match document {
        Value::Array(items) => {
            let mut all = schema.get("items").cloned().unwrap_or_else(|| json!({}));
            items.iter().for_each(|item| widen(&mut all, item));
            if all != json!({}) {
                schema["items"] = all;
            }
        }
        Value::Object(fields) if schema.get("additionalProperties").is_some_and(Value::is_object) => {
            // Names are data: all values have one form.
            fields.values().for_each(|value| widen(&mut schema["additionalProperties"], value));
        }
        Value::Object(fields) => {
            let required: Vec<&String> = match schema.get("required").and_then(Value::as_array) {
                Some(required) if !new && had_object => {
                    fields.keys().filter(|key| required.iter().any(|r| r == *key)).collect()
                }
                _ => fields.keys().collect(),
            };
            schema["required"] = json!(required);
            for (key, value) in fields {
                if key == MANIFEST {
                    schema["properties"][key] = json!({ "type": "object", "description": "As manifest.json: ../manifest.schema.json" });
                    continue;
                }
                if schema["properties"].get(key).is_none() {
                    schema["properties"][key] = json!({});
                }
                widen(&mut schema["properties"][key], value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_command_that_prints_a_document_has_a_schema() {
    // `completions` and `manual` print no document; a checkpoint of `synth` is half a gigabyte and more, and its document has no test.
    let none = ["completions", "manual", "synth"];
    let commands = dpar_export::commands::subcommands().into_iter().filter(|c| !none.contains(&c.as_str()));
    let commands: Vec<String> = commands.chain(["export".to_owned()]).collect();
    for command in &commands {
        let schema = stored(command).unwrap_or_else(|| panic!("{} is missing", path(command)));
        assert_eq!(schema["properties"]["schema_version"], json!({ "const": SCHEMA_VERSION }), "{command}");
    }
    let folder = path("x").parent().unwrap().read_dir_utf8().unwrap();
    for entry in folder {
        let name = entry.unwrap().file_name().to_owned();
        let command = name.strip_suffix(".schema.json").unwrap_or(&name);
        assert!(commands.iter().any(|c| c == command), "{name} is of no command");
    }
}

/// The documents of what reads and writes arrays, which no other test asks for.
#[test]
fn arrays_that_are_written_are_told() {
    let temp = Temp::new();
    let at = |name: &str| temp.path(name).into_string();
    let (bundle, golden) = (at("b"), fixture("variants/combined/golden.safetensors").into_string());
    export("variants/combined/dpar", &LoadOptions::default(), &temp.path("b"));
    write_npz(&temp.path("tokens.npz"), &[("tokens", ArrayRef::i64(&[1, 16], &[0; 16]))]).unwrap();
    write_npz(&temp.path("images.npz"), &[("arr_0", ArrayRef::u8(&[1, 8, 8, 3], &[0; 8 * 8 * 3]))]).unwrap();
    for args in [
        ["score", &bundle, "--inputs", &golden, "-o", &at("scores.npz"), "--json"],
        ["decode", &bundle, "--tokens", &at("tokens.npz"), "-o", &at("decoded"), "--json"],
        ["encode", &bundle, "--images", &at("images.npz"), "-o", &at("codes.npz"), "--json"],
    ] {
        let out = crate::cli::run(&args);
        assert!(out.code == 0 && !out.stdout.is_empty(), "{}", out.stderr);
    }
}

#[test]
fn a_schema_is_widened_by_what_is_new_only() {
    let mut schema = json!({});
    widen(&mut schema, &json!({ "a": 1, "b": [null], "c": "x" }));
    widen(&mut schema, &json!({ "a": 1.5, "b": ["y"], "d": {} }));
    close(&mut schema);
    let takes = |document: Value| jsonschema::validator_for(&schema).unwrap().is_valid(&document);
    assert!(takes(json!({ "a": 2, "b": ["z", null] })));
    assert!(!takes(json!({ "a": 2 })) && !takes(json!({ "a": 2, "b": [1] })));
    assert!(!takes(json!({ "a": 2, "b": [], "e": 0 })));
}
