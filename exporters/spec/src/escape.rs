//! Text from outside made visible: names in files, messages of libraries and words of a command line must neither steer a
//! terminal nor give orders to a CI log.

use std::borrow::Cow;
use std::fmt::Write;

/// One line of text in which every character shows: controls, line breaks, bidirectional marks and what has no width
/// become Rust's escapes (`\n`, `\u{202e}`), and so does the first character of a CI command (`::` where a line begins,
/// `##[` and `##vso[` anywhere). A text that shows as it is stays as it is; so does one that was escaped before.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |at, c| !shows(c) || orders(text, at, c),
        |c, out| match c {
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            _ => out.extend(c.escape_unicode()),
        },
    )
}

/// A JSON document that says exactly the same in characters that show, and holds no CI command.
pub fn visible_json(text: &str) -> Cow<'_, str> {
    // Outside of strings JSON is plain ASCII, and `#` stands nowhere else.
    let hidden = |at, c| c != '\n' && (!shows(c) || (c == '#' && orders(text, at, c)));
    escaped(text, hidden, |c, out| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    })
}

fn escaped(
    text: &str,
    hidden: impl Fn(usize, char) -> bool,
    escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if !text.char_indices().any(|(at, c)| hidden(at, c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for (at, c) in text.char_indices() {
        if hidden(at, c) { escape(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Whether a reader sees that the character is there.
fn shows(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Default-ignorable characters that count as letters or marks: joiners, fillers, variation selectors.
        '\u{34f}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{17b4}'
        | '\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}'
        | '\u{e0100}'..='\u{e01ef}' => false,
        // What the standard library prints as it is behind a letter: also a mark on it.
        c => ['a', c].iter().collect::<String>().escape_debug().count() == 2,
    }
}

/// Whether a CI command begins at `c`. Runners look for `::` behind spaces, and for `##` commands in the whole line.
fn orders(text: &str, at: usize, c: char) -> bool {
    match c {
        ':' => text[at..].starts_with("::") && text[..at].trim_start().is_empty(),
        '#' => text[at..]
            .strip_prefix("##")
            .is_some_and(|rest| rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).starts_with('[')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_hides_is_shown() {
        for (text, want) in [
            ("a\x1b[31mb", r"a\u{1b}[31mb"),
            ("a\nb\r\tc\0\x7f", r"a\nb\r\tc\u{0}\u{7f}"),
            ("\u{9b}31m\u{85}", r"\u{9b}31m\u{85}"),
            ("exe\u{202e}gnp.\u{2066}x\u{2069}\u{200f}", r"exe\u{202e}gnp.\u{2066}x\u{2069}\u{200f}"),
            ("a\u{200b}b\u{feff}c\u{2028}d\u{ad}e", r"a\u{200b}b\u{feff}c\u{2028}d\u{ad}e"),
            ("a\u{fe0f}\u{3164}\u{e0041}", r"a\u{fe0f}\u{3164}\u{e0041}"),
            ("::error::x", r"\u{3a}:error::x"),
            ("  ::error::x", r"  \u{3a}:error::x"),
            ("x ##[error]y", r"x \u{23}#[error]y"),
            ("###vso[task]", r"#\u{23}#vso[task]"),
        ] {
            assert_eq!(visible(text), want);
        }
        let json = serde_json::to_string_pretty(&["\u{202e}\u{9b}\x7f", "😀\u{e0001}", "##[error]"]).unwrap();
        let shown = visible_json(&json);
        assert_eq!(
            shown,
            "[\n  \"\\u202e\\u009b\\u007f\",\n  \"😀\\udb40\\udc01\",\n  \"\\u0023#[error]\"\n]"
        );
    }

    #[test]
    fn what_shows_stays_as_it_is() {
        for text in
            ["a::b \\n 'c' \"d\"", "é e\u{301} ñ 漢字 한글 हिन्दी 😀 ± → ✓ …", "1..2  3 #####", "", "a: b"]
        {
            assert!(matches!(visible(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_visible_line(text in any::<String>(), before in " {0,2}(::|##|)") {
            let text = before + &text;
            let once = visible(&text).into_owned();
            prop_assert!(once.chars().all(shows) && !once.trim_start().starts_with("::"));
            prop_assert_eq!(visible(&once), once.as_str());
            let json = serde_json::to_string_pretty(&text).unwrap();
            let back: String = serde_json::from_str(&visible_json(&json)).unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
