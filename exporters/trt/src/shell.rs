//! Words of a POSIX shell script: the one place that decides how they are quoted.

/// The variable of a script that may stand in a word, with the slash that follows it.
pub(super) const OUT: &str = "$OUT/";

/// A word as the shell takes it, whatever it holds: the first `$OUT/` in it is the folder in that variable, and
/// everything else is itself. No word of the system holds a NUL; here it is left out.
pub(super) fn word(text: &str) -> String {
    match text.split_once(OUT) {
        Some((before, after)) => {
            let quoted = |text: &str| if text.is_empty() { String::new() } else { literal(text) };
            format!("{}\"$OUT\"/{}", quoted(before), quoted(after))
        }
        None => literal(text),
    }
}

/// A word of a POSIX shell command in which nothing is special.
pub fn literal(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\0', "").replace('\'', "'\\''")),
    }
}

/// A text as the rest of a comment line: it has no line breaks, and nothing that turns the reading direction.
pub(super) fn comment(text: &str) -> String {
    let breaks = |c: char| {
        c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) || ('\u{2066}'..='\u{2069}').contains(&c)
    };
    text.replace(breaks, " ")
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn plain_words_stay_as_they_are() {
        for (text, quoted) in [
            ("--onnx=onnx/a.onnx", "--onnx=onnx/a.onnx"),
            ("--saveEngine=$OUT/a.engine", "--saveEngine=\"$OUT\"/a.engine"),
            ("$OUT/", "\"$OUT\"/"),
            ("tokens:[1,1]", "'tokens:[1,1]'"),
            ("a'b $(rm)", "'a'\\''b $(rm)'"),
            ("$OUT/`x`", "\"$OUT\"/'`x`'"),
            ("", "''"),
        ] {
            assert_eq!(word(text), quoted);
        }
    }

    /// Texts of characters that mean something to a shell, and of any others but NUL.
    fn text() -> impl proptest::strategy::Strategy<Value = String> {
        "([ \t\n'\"`$(){}\\[\\]\\\\;&|<>*?!#~=%^,:/.a-zA-Z0-9-]|\\$OUT/|\\$\\(touch pwned\\)|[^\\x00]){0,12}"
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(64))]
        #[test]
        fn a_shell_reads_every_word_as_it_was_meant(words in proptest::collection::vec(text(), 1..6), note in text()) {
            let folder = tempfile::tempdir().unwrap();
            let quoted: Vec<String> = words.iter().map(|w| word(w)).collect();
            let script = format!("# {}\nprintf '%s\\0' {}\n", comment(&note), quoted.join(" "));
            let shell = |more: &[&str]| {
                let mut command = Command::new("sh");
                command.args(more).args(["-c", &script]).current_dir(folder.path()).env("OUT", "/a b");
                command.output().unwrap()
            };
            proptest::prop_assert!(shell(&["-n"]).status.success(), "{script}");
            let ran = shell(&[]);
            let meant: Vec<u8> =
                words.iter().flat_map(|w| [w.replacen(OUT, "/a b/", 1).into_bytes(), vec![0]].concat()).collect();
            proptest::prop_assert_eq!(ran.stdout, meant, "{}", script);
            proptest::prop_assert!(ran.stderr.is_empty() && folder.path().read_dir().unwrap().next().is_none());
        }
    }
}
