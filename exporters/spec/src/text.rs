//! Parts of error texts that come from files: bounded, so that no file decides how long an error is, and in an order
//! that does not change from run to run.

use std::borrow::Cow;
use std::fmt::Write;

/// Most names of a list.
pub const MOST_NAMES: usize = 20;
/// Longest name of a list, in bytes.
pub const LONGEST_NAME: usize = 160;
/// Longest text of an error, in bytes.
pub const LONGEST_TEXT: usize = 8192;

/// `text`, or its first `most` bytes and how many more there are.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(most);
    Cow::Owned(format!("{}… ({} more bytes)", &text[..end], text.len() - end))
}

/// Names in the order of the alphabet, separated by commas: at most [`MOST_NAMES`], and how many more there are.
pub fn names<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut all: Vec<T> = names.into_iter().collect();
    all.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    list(all)
}

/// The same in the order given, where that says something.
pub fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let (mut text, mut count) = (String::new(), 0_usize);
    for item in items {
        if count < MOST_NAMES {
            text += if count == 0 { "" } else { ", " };
            text += &cut(item.as_ref(), LONGEST_NAME);
        }
        count += 1;
    }
    if count > MOST_NAMES {
        let _ = write!(text, " and {} more", count - MOST_NAMES);
    }
    text
}

/// Longer names are like none: the time that a comparison takes grows with both lengths.
const LONGEST_COMPARED: usize = 100;

/// The name that is most like another, the first of equals in the order of the alphabet; none where at most half agrees.
pub fn nearest<'o>(name: &str, others: &[&'o str]) -> Option<&'o str> {
    nearer(name, others, 0.5)
}

/// The same where at least this share of the two agrees.
fn nearer<'o>(name: &str, others: &[&'o str], share: f64) -> Option<&'o str> {
    let short = |name: &str| name.len() <= LONGEST_COMPARED;
    others
        .iter()
        .filter(|o| short(name) && short(o))
        .map(|o| (strsim::normalized_levenshtein(name, o), *o))
        .filter(|(similarity, _)| *similarity >= share)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
        .map(|(_, o)| o)
}

/// The name that another is a slip of: the same word written otherwise (`top-k`, `TopK`), or a letter or two off.
pub fn misspelt<'o>(name: &str, others: &[&'o str]) -> Option<&'o str> {
    /// Of `cfgscal`, but not of `seeds`, which may be anything.
    const ALIKE: f64 = 0.85;
    let plain = |name: &str| -> String {
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let words: Vec<String> = others.iter().map(|o| plain(o)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let meant = nearer(&plain(name), &words, ALIKE)?;
    others.iter().zip(words).find(|(_, word)| *word == meant).map(|(other, _)| *other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_end() {
        assert_eq!(names(["b", "a"]), "a, b");
        assert_eq!(list(["b", "a"]), "b, a");
        assert_eq!(names::<&str>([]), "");
        let many: Vec<String> = (0..60_000).rev().map(|i| format!("n{i:05}")).collect();
        let text = names(&many);
        assert!(text.starts_with("n00000, n00001, ") && text.ends_with("n00019 and 59980 more"), "{text}");
        assert!(names(["x".repeat(1 << 20)]).len() < 200);
    }

    #[test]
    fn the_nearest_name_is_like_at_least_half() {
        let known = ["logits", "entropy", "patch_lengths", "tokens"];
        assert_eq!(nearest("logit", &known), Some("logits"));
        assert_eq!(nearest("patch_length", &known), Some("patch_lengths"));
        assert_eq!(nearest("weights", &known), None);
        assert_eq!(nearest("ab", &["ac", "aa"]), Some("aa"));
        let keys = ["cfg_scale", "top_k", "seed"];
        let slips =
            ["cfg-scale", "CfgScale", "cfg_scal", "topK", "seeds", "scale"].map(|name| misspelt(name, &keys));
        assert_eq!(
            slips,
            [Some("cfg_scale"), Some("cfg_scale"), Some("cfg_scale"), Some("top_k"), None, None]
        );
        let long = "x".repeat(1 << 20);
        assert_eq!(nearest(&long, &[long.as_str()]), None);
    }

    #[test]
    fn texts_are_cut_between_characters_and_say_so() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("ab", 1), "a… (1 more bytes)");
        // Two bytes each.
        assert_eq!(cut("éé", 3), "é… (2 more bytes)");
        assert_eq!(cut("é", 1), "… (2 more bytes)");
    }
}
