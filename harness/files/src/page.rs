//! The frame of an offline HTML page: head, links to its parts, figures, parts, foot.

use dpar_export_spec::escape::visible;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Nothing is loaded and nothing runs, whatever a text in the page says.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// A section with its anchor.
pub struct Section {
    /// Its anchor.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What it says.
    pub body: Markup,
}

/// A page of these parts as one HTML file that loads nothing: a head, links to the parts, figures, the parts.
pub fn frame(title: &str, head: &Markup, figures: &Markup, parts: &[Section], foot: &Markup) -> String {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                // Without it a browser asks for one.
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(include_str!("page/style.css").replace('\n', " "))) }
            }
            body {
                @if let Some(first) = parts.first() {
                    a.skip href={ "#" (first.id) } { "Skip to the " (first.title.to_lowercase()) }
                }
                header.top {
                    (head)
                    nav aria-label="Sections" {
                        ul { @for part in parts { li { a href={ "#" (part.id) } { (part.title) } } } }
                    }
                    (figures)
                }
                main {
                    @for part in parts {
                        section id=(part.id) aria-labelledby={ (part.id) "-title" } {
                            h2 id={ (part.id) "-title" } { (part.title) }
                            (part.body)
                        }
                    }
                }
                footer {
                    p {
                        "Made by dpar-export " (env!("CARGO_PKG_VERSION")) ". This file loads nothing from anywhere. "
                        (foot)
                    }
                }
            }
        }
    };
    // The macro escapes markup. What hides is shown here: the page is one line, so a line break is a value's too.
    visible(&document.into_string()).into_owned()
}
