//! What TensorRT's ONNX parser objects to, read from what it logs: the bindings pass on that it failed, not why.

use crate::error::ParseFault;
use crate::log::LogRecord;

/// Reads the parser's messages. Two forms occur:
///
/// ```text
/// ModelImporter.cpp:140: While parsing node number 45 [Softmix -> "softmax_46"]:
/// ModelImporter.cpp:142: --- Begin node ---
/// Node name: Softmax_46
/// ModelImporter.cpp:151: ERROR: onnxOpCheckers.cpp:998 In function checkFallbackPluginImporter:
/// [6] creator && "Plugin not found, are the plugin name, version, and namespace correct?"
/// ```
/// and `In node 3 with name: n and operator: Op (function): CODE: reason`, with node -1 where it is no node's fault.
pub(crate) fn fault(records: &[LogRecord]) -> ParseFault {
    let texts: Vec<&str> = records.iter().filter(|r| r.is_error()).map(|r| r.text.as_str()).collect();
    let mut fault = ParseFault::default();
    for text in &texts {
        if let Some(rest) = after(text, "While parsing node number ") {
            fault.count += 1;
            if fault.count == 1 {
                fault.node = leading_number(rest);
                fault.op = after(rest, "[").and_then(|r| r.split([' ', ']']).next()).and_then(filled);
            }
        } else if fault.count <= 1 && fault.name.is_none() {
            fault.name = after(text, "Node name: ").and_then(|r| r.lines().next()).and_then(filled);
        }
        if fault.message.is_empty() && text.contains("ERROR: ") {
            fault.message = reason(text);
        }
    }
    if fault.count == 0
        && let Some(text) = texts.iter().find_map(|t| after(t, "In node "))
    {
        fault.node = leading_number(text);
        fault.name = between(text, "with name: ", " and operator: ");
        fault.op = between(text, "and operator: ", " (");
    }
    if fault.message.is_empty() {
        fault.message = texts.first().map_or_else(
            || "TensorRT's parser refused it without a reason".to_owned(),
            |t| strip_place(t).to_owned(),
        );
    }
    fault
}

fn after<'t>(text: &'t str, mark: &str) -> Option<&'t str> {
    text.split_once(mark).map(|(_, rest)| rest)
}

fn between(text: &str, from: &str, to: &str) -> Option<String> {
    after(text, from).and_then(|r| r.split_once(to)).and_then(|(inner, _)| filled(inner))
}

fn filled(text: &str) -> Option<String> {
    Some(text.trim()).filter(|t| !t.is_empty()).map(str::to_owned)
}

fn leading_number(text: &str) -> Option<usize> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// The line after `ERROR: file:line In function f:`, without the error code.
fn reason(text: &str) -> String {
    let lines: Vec<&str> = text.lines().skip(1).map(str::trim).filter(|l| !l.is_empty()).collect();
    let joined =
        if lines.is_empty() { after(text, "ERROR: ").unwrap_or(text).to_owned() } else { lines.join(" ") };
    match joined.strip_prefix('[').and_then(|r| r.split_once("] ")) {
        Some((code, rest)) if code.chars().all(|c| c.is_ascii_digit()) => rest.to_owned(),
        _ => joined,
    }
}

/// Without `File.cpp:123: ` in front.
fn strip_place(text: &str) -> &str {
    match text.split_once(": ") {
        Some((place, rest)) if place.contains(".cpp:") => rest,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trtx::Severity;

    fn records(texts: &[&str]) -> Vec<LogRecord> {
        texts.iter().map(|t| LogRecord { severity: Severity::Error, text: (*t).to_owned() }).collect()
    }

    #[test]
    fn a_refused_operator_is_named_with_its_node() {
        let fault = fault(&records(&[
            "ModelImporter.cpp:140: While parsing node number 45 [Softmix -> \"softmax_46\"]:",
            "ModelImporter.cpp:142: --- Begin node ---\nNode name: Softmax_46",
            "ModelImporter.cpp:143: --- End node ---",
            "ModelImporter.cpp:151: ERROR: onnxOpCheckers.cpp:998 In function check:\n[6] creator && \"Plugin not found\"",
            "ModelImporter.cpp:140: While parsing node number 104 [Softmix -> \"softmax_105\"]:",
            "ModelImporter.cpp:142: --- Begin node ---\nNode name: Softmax_105",
        ]));
        let text = "node 45 `Softmax_46` (Softmix): creator && \"Plugin not found\" (and 1 more)";
        assert_eq!(fault.to_string(), text);
    }

    #[test]
    fn what_is_no_nodes_fault_says_so() {
        let fault = fault(&records(&[
            "WeightsContext.cpp:203: Failed to open file: nodata/dpar.onnx_data",
            "ModelImporter.cpp:151: ERROR: ModelImporter.cpp:899 In function importInitializers:\n[5] Failed to import \
             initializer: In node -1 with name:  and operator:  (importInitializers): UNSUPPORTED_NODE: w",
        ]));
        assert_eq!((fault.node, fault.name.clone(), fault.op.clone()), (None, None, None));
        assert!(fault.message.starts_with("Failed to import initializer"), "{fault}");
    }

    #[test]
    fn other_forms_and_silence_are_survived() {
        let fault_of = |texts: &[&str]| fault(&records(texts));
        let named = fault_of(&["In node 3 with name: n and operator: Op (parseNode): UNSUPPORTED_NODE: no"]);
        assert_eq!(
            (named.node, named.name.as_deref(), named.op.as_deref()),
            (Some(3), Some("n"), Some("Op"))
        );
        assert!(fault_of(&[]).message.contains("without a reason"));
        let deserialize = fault_of(&["(deserializeOnnxModel): MODEL_DESERIALIZE_FAILED: no ONNX model."]);
        assert!(deserialize.message.contains("DESERIALIZE"), "{deserialize}");
        for odd in ["While parsing node number ", "ERROR: ", "In node ", "[", "Node name: "] {
            let _ = fault_of(&[odd]).to_string();
        }
    }
}
